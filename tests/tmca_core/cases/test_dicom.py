"""DICOM: windows, inversion, padding, and what is no single frame. The expected numbers are computed by hand."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from tmca_core.cases.images import read_image
from tmca_core.cases.masks import read_mask
from tmca_core.errors import ImageError

LEVELS = np.array([[0, 1000], [2000, 4000]], np.uint16)


def written(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **attributes: Any) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    colour = photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    frames = pixels.ndim - 2 - colour
    ds.Rows, ds.Columns = pixels.shape[frames : frames + 2]
    if frames:
        ds.NumberOfFrames = pixels.shape[0]
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + (b"\x00" if pixels.nbytes % 2 else b"")
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_window(tmp_path: Path) -> None:
    # PS3.3 C.11.2.1.2.1, centre 2000, width 4001: from -0.5 to 3999.5; 1000 → 1000.5/4000·255 = 63.8, 2000 → 127.5+
    path = written(tmp_path / "a", LEVELS, WindowCenter=2000, WindowWidth=4001)
    assert read_image(path, 1).tolist() == [[0, 64], [128, 255]]
    inverse = written(tmp_path / "b", LEVELS, "MONOCHROME1", WindowCenter=2000, WindowWidth=4001)
    assert read_image(inverse, 1).tolist() == [[255, 191], [127, 0]]


def test_the_first_of_several_windows_and_the_other_functions(tmp_path: Path) -> None:
    several = written(tmp_path / "a", LEVELS, WindowCenter=[2000, 40], WindowWidth=[4001, 400])
    assert read_image(several, 1).tolist() == [[0, 64], [128, 255]]
    exact = written(tmp_path / "b", LEVELS, WindowCenter=2000, WindowWidth=4000, VOILUTFunction="LINEAR_EXACT")
    assert read_image(exact, 1).tolist() == [[0, 64], [128, 255]]  # 63.75, 127.5
    sigmoid = written(tmp_path / "c", LEVELS, WindowCenter=2000, WindowWidth=4000, VOILUTFunction="SIGMOID")
    # 255/(1 + e²) = 30.4, 255/(1 + e) = 68.6, 127.5, 255/(1 + e⁻²) = 224.6
    assert np.abs(read_image(sigmoid, 1).astype(float) - [[30.4, 68.6], [127.5, 224.6]]).max() <= 0.6
    narrow = written(tmp_path / "d", LEVELS, WindowCenter=1500, WindowWidth=1)
    assert read_image(narrow, 1).tolist() == [[0, 0], [255, 255]]


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    stored = np.array([[-1000, 0], [40, 400]], np.int16) + 1024
    path = written(tmp_path / "a", stored.astype(np.uint16), RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0.5, WindowWidth=2001)
    # Hounsfield units -1000..1000 → 0..255: 0 → 127.5, 40 → 132.6, 400 → 178.5
    assert np.abs(read_image(path, 1).astype(float) - [[0, 127.5], [132.6, 178.5]]).max() <= 0.51


def test_lookup_table(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 0, 8])
    item.add_new("LUTData", "US", [0, 10, 200, 255])
    path = written(tmp_path / "a", np.array([[0, 1], [2, 3]], np.uint16), VOILUTSequence=[item])
    assert read_image(path, 1).tolist() == [[0, 10], [200, 255]]


def test_without_a_window(tmp_path: Path) -> None:
    ramp = np.linspace(0, 3000, 10_000).astype(np.uint16).reshape(100, 100)
    pixels = read_image(written(tmp_path / "a", ramp), 1)
    assert pixels.min() == 0 and pixels.max() == 255 and abs(int(pixels[50, 0]) - 127) <= 1
    eight = np.array([[3, 50], [100, 200]], np.uint8)
    assert read_image(written(tmp_path / "b", eight), 1).tolist() == eight.tolist()
    assert read_image(written(tmp_path / "c", eight, "MONOCHROME1"), 1).tolist() == (255 - eight).tolist()


def test_padding_is_black_and_does_not_set_the_window(tmp_path: Path) -> None:
    values = np.linspace(1000, 2000, 10_000).astype(np.int16).reshape(100, 100)
    values[:10] = -2000
    pixels = read_image(written(tmp_path / "a", values, "MONOCHROME1", PixelPaddingValue=-2000), 1)
    assert not pixels[:10].any() and pixels[10, 0] == 255 and pixels[-1, -1] == 0
    assert abs(int(pixels[55, 0]) - 127) <= 2


def test_colour(tmp_path: Path) -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)
    path = written(tmp_path / "a", rgb, "RGB")
    assert read_image(path, 3).tolist() == rgb.tolist()
    assert read_image(path, 1).tolist() == [[76, 150]]


@pytest.mark.parametrize(
    ("pixels", "photometric", "attributes", "message"),
    [
        (np.zeros((3, 2, 2), np.uint16), "MONOCHROME2", {}, "has 3 frames; a case is one"),
        (LEVELS, "MONOCHROME2", {"Rows": 60_000, "Columns": 60_000}, "more than the 64 million allowed"),
        (LEVELS, "MONOCHROME2", {"Rows": 20}, "cannot be decoded"),
        (LEVELS, "ARGB", {}, "has a photometric interpretation that is not read"),
        (LEVELS, "MONOCHROME2", {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, "stored mirrored"),
        (LEVELS, "MONOCHROME2", {"PatientOrientation": ["R", "F"]}, "stored mirrored"),
        (
            LEVELS,
            "MONOCHROME2",
            {"RescaleSlope": 1, "RescaleIntercept": 0, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
            "a DICOM segmentation",
        ),
    ],
)
def test_refusals(tmp_path: Path, pixels: np.ndarray, photometric: str, attributes: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.dcm"
    if photometric == "ARGB":
        written(path, pixels, PhotometricInterpretation="ARGB")
    else:
        written(path, pixels, photometric, **attributes)
    with pytest.raises(ImageError, match=message):
        read_image(path, 1)


def test_usual_orientations_are_read(tmp_path: Path) -> None:
    eight = np.array([[3, 50], [100, 200]], np.uint8)
    for name, attributes in (
        ("a", {"PatientOrientation": ["L", "F"]}),
        ("b", {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
        ("c", {"PatientOrientation": ["A", "F"]}),
    ):
        assert read_image(written(tmp_path / name, eight, **attributes), 1).tolist() == eight.tolist()


def test_one_frame_declared_as_multi_frame(tmp_path: Path) -> None:
    eight = np.array([[3, 50], [100, 200]], np.uint8)
    assert read_image(written(tmp_path / "a", eight, NumberOfFrames=1), 1).tolist() == eight.tolist()


def test_no_image(tmp_path: Path) -> None:
    path = written(tmp_path / "a", LEVELS)
    ds = pydicom.dcmread(path)
    del ds.PixelData
    ds.save_as(tmp_path / "b")
    with pytest.raises(ImageError, match="no pixel data"):
        read_image(tmp_path / "b", 1)
    del ds.Rows
    ds.save_as(tmp_path / "c")
    with pytest.raises(ImageError, match="without an image"):
        read_image(tmp_path / "c", 1)


def test_truncation_anywhere(tmp_path: Path) -> None:
    whole = written(tmp_path / "a", np.arange(400, dtype=np.uint16).reshape(20, 20)).read_bytes()
    for end in range(0, len(whole) - 2, 37):
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(ImageError):
            read_image(tmp_path / "cut", 1)


def test_a_deflated_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = written(tmp_path / "a", LEVELS)
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    ds.save_as(tmp_path / "b", enforce_file_format=True)
    content = (tmp_path / "b").read_bytes()
    squeeze = zlib.compressobj(wbits=-15)
    (tmp_path / "b").write_bytes(content + squeeze.compress(b"\x00" * 50_000_000) + squeeze.flush())
    with pytest.raises(ImageError, match="deflated as a whole"):
        read_image(tmp_path / "b", 1)


# --- masks ----------------------------------------------------------------------------------------------
def test_a_plain_dicom_mask_is_not_windowed(tmp_path: Path) -> None:
    mask = np.array([[0, 7], [7, 0]], np.uint16)
    path = written(tmp_path / "m", mask, WindowCenter=1000, WindowWidth=10)
    assert read_mask(path, (2, 2)).tolist() == [[0, 1], [1, 0]]


def segmentation(path: Path, masks: np.ndarray, kind: str = "BINARY") -> Path:
    """A SEG object of (1, H, W) or (1, H, W, segments) over a CT slice."""
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import CTImageStorage

    source = written(
        path.with_suffix(".source"),
        np.zeros(masks.shape[1:3], np.int16),
        SOPClassUID=CTImageStorage,
        Modality="CT",
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=[0, 0, 0],
        PixelSpacing=[1, 1],
        SliceThickness=1,
        FrameOfReferenceUID=generate_uid(),
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        PatientID="p",
        PatientName="p^",
        PatientBirthDate="",
        PatientSex="",
        StudyDate="",
        StudyTime="",
        StudyID="",
        AccessionNumber="",
        ReferringPhysicianName="",
        SeriesNumber=1,
        InstanceNumber=1,
    )
    segments = masks.shape[3] if masks.ndim == 4 else 1
    describe = [
        hd.seg.SegmentDescription(
            segment_number=i + 1,
            segment_label=f"s{i}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type="MANUAL",
        )
        for i in range(segments)
    ]
    hd.seg.Segmentation(
        source_images=[pydicom.dcmread(source)],
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=describe,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)
    return path


def test_dicom_seg(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    mask = np.zeros((1, 16, 16), np.uint8)
    mask[0, 2:5, 9:15] = 1
    path = segmentation(tmp_path / "seg.dcm", mask)
    np.testing.assert_array_equal(read_mask(path, (16, 16)), mask[0])
    with pytest.raises(ImageError, match="it belongs in the column 'mask'"):
        read_image(path, 1)
    two = np.stack([mask, np.roll(mask, 8, axis=1)], axis=3)
    with pytest.raises(ImageError, match=r"frames|segments"):
        read_mask(segmentation(tmp_path / "two.dcm", two), (16, 16))
    with pytest.raises(ImageError, match="FRACTIONAL segmentation"):
        read_mask(segmentation(tmp_path / "soft.dcm", mask.astype(np.float32) * 0.5, "FRACTIONAL"), (16, 16))


@pytest.mark.parametrize(("name", "shape"), [("CT_small.dcm", (128, 128)), ("MR_small.dcm", (64, 64))])
def test_a_preamble_that_is_a_tiff_header_is_still_dicom(name: str, shape: tuple[int, int]) -> None:
    path = Path(str(get_testdata_file(name)))
    assert path.read_bytes()[:4] == b"II*\x00"  # PS3.10 7.1 leaves the preamble free
    pixels = read_image(path, 1)
    assert pixels.shape == shape and pixels.max() - pixels.min() > 100
    stored = pydicom.dcmread(path).pixel_array.ravel().astype(float)
    assert np.corrcoef(pixels.ravel(), stored)[0, 1] > 0.9
