"""DICOM SEG over a film: what is written is read back by highdicom, pixel by pixel, and refers to the film it was drawn on."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from films import SECRETS, film
from pydicom.uid import CTImageStorage, generate_uid

from tmca_core.cases.masks import read_mask
from tmca_core.cases.segments import load_codes, read_segments, write_segments
from tmca_core.errors import ConfigError, ImageError

highdicom = pytest.importorskip("highdicom")

SHAPE = (40, 56)


def masks() -> dict[str, np.ndarray]:
    """Two that overlap, and one of which there is nothing."""
    upper, left = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    upper[3:20, 5:50], left[10:39, 30:55] = True, True
    return {"opacity": upper, "left-lung": left, "effusion": np.zeros(SHAPE, bool)}


def written(folder: Path, drawn: dict[str, np.ndarray], codes: Path | None = None, **attributes: object) -> tuple[pydicom.Dataset, Path]:
    source = film(folder / "film.dcm", **attributes)
    out = folder / "out" / "seg.dcm"
    write_segments(folder / "film.dcm", drawn, out, codes=load_codes(codes), algorithm="tmca-fl guide", version="1+ab")
    return source, out


@pytest.mark.parametrize(
    "more",
    [{}, {"FrameOfReferenceUID": generate_uid()}, {"PixelSpacing": [0.2, 0.3]}],
    ids=["plain", "with a frame of reference", "with a spacing"],
)
def test_each_target_is_a_segment_over_the_films_own_grid(tmp_path: Path, more: dict[str, object]) -> None:
    drawn = masks()
    source, out = written(tmp_path, drawn, **more)
    seg = highdicom.seg.segread(out)
    assert seg.get_source_image_uids() == [(source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID)]
    read = seg.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=False)
    np.testing.assert_array_equal(read[0], np.stack(list(drawn.values()), -1).astype(np.uint8))
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == list(drawn)
    types = [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in seg.SegmentSequence]
    assert types == ["52988006", "44029006", "60046008"]  # lesion, left lung, pleural effusion
    categories = [segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue for segment in seg.SegmentSequence]
    assert categories == ["49755003", "123037004", "49755003"]
    who = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (who.AlgorithmName, who.AlgorithmVersion) == ("tmca-fl guide", "1+ab")
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    # The person is the film's, the objects are new ones.
    for name in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        assert seg.get(name) == source.get(name)
    assert seg.SOPInstanceUID != source.SOPInstanceUID and seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.get("FrameOfReferenceUID") == more.get("FrameOfReferenceUID")


def test_a_segmentation_without_the_person_names_nobody_and_refers_to_the_same_film(tmp_path: Path) -> None:
    drawn, out = masks(), tmp_path / "seg.dcm"
    more = {
        "StudyDescription": "Krawczyk",
        "PatientComments": "Zbigniew",
        "FrameOfReferenceUID": generate_uid(),
        "PixelSpacing": [0.2, 0.3],
    }
    source = film(tmp_path / "film.dcm", **more)
    write_segments(tmp_path / "film.dcm", drawn, out, codes=load_codes(None), algorithm="a", version="1", person=False)
    held = out.read_bytes().lower()
    assert not [secret for secret in SECRETS if secret.lower().encode() in held]
    seg = pydicom.dcmread(out)
    assert not seg.PatientName and not seg.PatientID and seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    read = read_segments(out)
    assert read.film == source.SOPInstanceUID
    for name, mask in drawn.items():
        np.testing.assert_array_equal(read.masks[name], mask)


def test_a_segmentation_is_its_owner_s_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    monkeypatch.setattr(
        "os.fsync", lambda handle: modes.append(os.fstat(handle).st_mode) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    )
    before = os.umask(0o022)
    try:
        _, out = written(tmp_path, {"opacity": masks()["opacity"]})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(mode) for mode in (*modes, out.stat().st_mode)] == [0o600, 0o600]


def test_the_own_reader_finds_masks_and_film(tmp_path: Path) -> None:
    drawn = masks()
    source, out = written(tmp_path, drawn)
    read = read_segments(out)
    assert read.film == source.SOPInstanceUID and list(read.masks) == list(drawn)
    for name, mask in drawn.items():
        np.testing.assert_array_equal(read.masks[name], mask)
    _, alone = written(tmp_path / "alone", {"opacity": drawn["opacity"]})
    np.testing.assert_array_equal(read_mask(alone, SHAPE), drawn["opacity"])  # as a manifest's mask
    _, nothing = written(tmp_path / "nothing", {"opacity": drawn["effusion"]})
    assert read_segments(nothing).masks["opacity"].shape == SHAPE and not read_segments(nothing).masks["opacity"].any()


def test_a_hospitals_own_labels_and_codes(tmp_path: Path) -> None:
    codes = tmp_path / "codes.toml"
    codes.write_text('[opacity]\nlabel = "Opacity (AI)"\ntype = ["99LOCAL", "OP1", "Opacity"]\n')
    _, out = written(tmp_path, {"opacity": masks()["opacity"]}, codes)
    segment = highdicom.seg.segread(out).SegmentSequence[0]
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (segment.SegmentLabel, code.CodingSchemeDesignator, code.CodeValue) == ("Opacity (AI)", "99LOCAL", "OP1")


@pytest.mark.parametrize("text", ['[opacity]\ncolour = "red"', '[opacity]\ntype = ["SCT", "1"]', "opacity = 1", "["])
def test_codes_that_are_none_are_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "codes.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"codes\.toml"):
        load_codes(tmp_path / "codes.toml")


def test_a_film_that_lacks_what_may_be_empty_is_enough(tmp_path: Path) -> None:
    missing = dict.fromkeys(("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"))
    _, out = written(tmp_path, {"opacity": masks()["opacity"]}, **missing)
    assert read_segments(out).masks["opacity"].any()


def test_what_no_segmentation_can_refer_to_is_refused(tmp_path: Path) -> None:
    mask = {"opacity": masks()["opacity"]}
    with pytest.raises(ImageError, match="no DICOM SEG can refer to"):
        written(tmp_path, mask, StudyInstanceUID=None)
    with pytest.raises(ImageError, match="56 × 40 pixels, its mask 40 × 56"):
        written(tmp_path, {"opacity": mask["opacity"].T})
    (tmp_path / "film.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(ImageError, match="is no DICOM image"):
        write_segments(tmp_path / "film.png", mask, tmp_path / "s.dcm", codes={}, algorithm="a", version="1")
    assert not (tmp_path / "s.dcm").exists() and not (tmp_path / "out").exists()


def test_a_segmentation_over_several_films_or_damaged_is_refused(tmp_path: Path) -> None:
    _, out = written(tmp_path, masks())
    data = out.read_bytes()
    (tmp_path / "whole.dcm").write_bytes(data)
    out.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_segments(out)
    film(tmp_path / "no.dcm")
    with pytest.raises(ImageError, match="is no DICOM segmentation"):
        read_segments(tmp_path / "no.dcm")
    shared = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "FrameOfReferenceUID": "1.4", "SOPClassUID": CTImageStorage}
    plane = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "SliceThickness": 1}
    films = [film(tmp_path / f"{k}.dcm", ImagePositionPatient=[0, 0, k], **shared, **plane) for k in range(2)]
    described = highdicom.seg.segread(tmp_path / "whole.dcm").SegmentSequence[0]
    highdicom.seg.Segmentation(
        films, np.ones((2, *SHAPE), bool), "BINARY", [highdicom.seg.SegmentDescription.from_dataset(described)], generate_uid(), 2,
        generate_uid(), 1, "m", "n", "1", "0",
    ).save_as(tmp_path / "two.dcm")  # fmt: skip
    with pytest.raises(ImageError, match="refers to 2 images"):
        read_segments(tmp_path / "two.dcm")


def test_without_highdicom_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"pip install 'tmca-fl\[dicom\]'"):
        written(tmp_path, masks())
