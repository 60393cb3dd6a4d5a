"""NIfTI slices in any orientation come out the same way up; what is no slice is refused from its header."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tmca_core.cases.images import read_image
from tmca_core.cases.masks import read_mask
from tmca_core.errors import ImageError


def written(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def in_orientation(slice_ras: np.ndarray, code: tuple[str, ...]) -> nibabel.Nifti1Image:
    """The same slice, stored along other axes."""
    image = nibabel.Nifti1Image(slice_ras, np.eye(4))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(code))
    return image.as_reoriented(turn)


ORIENTATIONS = [code for axes in itertools.permutations(["RL", "AP", "SI"]) for code in itertools.product(*axes)]


@pytest.mark.parametrize("through", [0, 1, 2])
def test_every_orientation_gives_the_same_picture(tmp_path: Path, through: int) -> None:
    shape = [5, 6, 7]
    shape[through] = 1
    ras = np.zeros(shape, np.uint8)
    # By hand: bright at the patient's LEFT (low x of RAS) and at the TOP (high z; high y in an axial slice).
    left_top = [0, 5 if through == 2 else 0, 0 if through == 2 else 6]
    if through == 0:
        left_top = [0, 5, 6]  # sagittal: anterior, superior
    ras[tuple(left_top)] = 200
    ras[tuple(s // 2 for s in shape)] = 100
    expected = None
    for code in ORIENTATIONS:
        path = tmp_path / f"{''.join(code)}.nii"
        in_orientation(ras, code).to_filename(path)
        pixels = read_image(path, 1)
        expected = pixels if expected is None else expected
        np.testing.assert_array_equal(pixels, expected)
    assert expected is not None
    # The patient's left is on the image's right; a sagittal slice looks to the image's left.
    corner = (0, 0) if through == 0 else (0, expected.shape[1] - 1)
    assert expected[corner] == 200 and len(ORIENTATIONS) == 48
    inplane = [s for s in shape if s != 1]
    assert expected.shape == (inplane[1], inplane[0])


def test_oblique_goes_to_the_closest(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    values = np.zeros((4, 4, 1), np.uint8)
    values[0, 3] = 9
    assert read_image(written(tmp_path / "a.nii", values, turn), 1)[0, 3] == 9


def test_two_axes_trailing_axes_gzip_and_nifti2(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = values[::-1, ::-1].T
    np.testing.assert_array_equal(read_image(written(tmp_path / "a.nii", values), 1), expected)
    np.testing.assert_array_equal(read_image(written(tmp_path / "b.nii.gz", values[:, :, None, None]), 1), expected)
    nibabel.Nifti2Image(values, np.eye(4)).to_filename(tmp_path / "c.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "c.nii", 1), expected)


def test_deep_values_are_windowed_and_scaled(tmp_path: Path) -> None:
    units = np.linspace(-1000, 1000, 10_000).reshape(100, 100, 1).astype(np.int16)
    pixels = read_image(written(tmp_path / "a.nii", units), 1)
    assert pixels[0, 0] == 255 and pixels[-1, -1] == 0 and abs(int(pixels[50, 50]) - 127) <= 2


def test_not_finite(tmp_path: Path) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 1:3] = np.nan, np.inf
    with pytest.raises(ImageError, match="2 pixels that are not finite"):
        read_image(written(tmp_path / "a.nii", values), 1)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"volume of 5 × 6 × 7.*slicer\[:, :, k:k\+1\]"):
        read_image(written(tmp_path / "a.nii", np.zeros((5, 6, 7), np.uint8)), 1)
    with pytest.raises(ImageError, match="volume of 5 × 6 × 1 × 3"):
        read_image(written(tmp_path / "b.nii", np.zeros((5, 6, 1, 3), np.uint8)), 1)
    image = nibabel.Nifti1Image(np.zeros((5, 6), np.uint8), None)
    image.to_filename(tmp_path / "c.nii")
    with pytest.raises(ImageError, match="states no orientation"):
        read_image(tmp_path / "c.nii", 1)
    flat = nibabel.Nifti1Image(np.zeros((5, 6), np.uint8), np.eye(4))
    flat.header["qform_code"], flat.header["sform_code"] = 0, 1
    flat.header["srow_x"] = flat.header["srow_y"] = flat.header["srow_z"] = 0
    flat.header["pixdim"][1:4] = 1
    (tmp_path / "d.nii").write_bytes(flat.header.binaryblock + b"\x00" * 4 + b"\x00" * 30)
    with pytest.raises(ImageError, match="maps no space"):
        read_image(tmp_path / "d.nii", 1)
    (tmp_path / "e.img").write_bytes(written(tmp_path / "e.nii", np.zeros((4, 4), np.uint8)).read_bytes())
    with pytest.raises(ImageError, match=r"name it \.nii"):
        read_image(tmp_path / "e.img", 1)
    colours = np.zeros((4, 4, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageError, match="holds colours"):
        read_image(written(tmp_path / "f.nii", colours), 1)


def test_bombs_stay_packed(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    header["dim"] = [2, 32000, 32000, 1, 1, 1, 1, 1]
    zeros = b"\x00" * 100_000_000
    for name, change, message in (
        ("a", {}, "32000 × 32000 pixels"),
        ("b", {"dim": [2, 8, 8, 1, 1, 1, 1, 1], "vox_offset": 9e7}, "pixels begin at byte"),
    ):
        for key, value in change.items():
            header[key] = value
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(gzip.compress(header.binaryblock + zeros, 1))
        tracemalloc.start()
        with pytest.raises(ImageError, match=message):
            read_image(path, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000  # of 100 MB that the file would unpack to


def test_truncation_anywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.nii", "a.nii.gz"):
        whole = written(tmp_path / name, rng.integers(0, 255, (20, 20), dtype=np.uint8)).read_bytes()
        for end in range(0, len(whole) - 8, 29):
            (tmp_path / f"cut-{name}").write_bytes(whole[:end])
            with pytest.raises(ImageError):
                read_image(tmp_path / f"cut-{name}", 1)


def test_masks_turn_with_their_images(tmp_path: Path) -> None:
    mask = np.zeros((6, 8, 1), np.float32)
    mask[0, 7] = 1.0  # left, anterior
    in_orientation(mask, ("P", "L", "I")).to_filename(tmp_path / "m.nii.gz")
    found = read_mask(tmp_path / "m.nii.gz", (8, 6))
    assert found[0, 5] == 1 and found.sum() == 1
    with pytest.raises(ImageError, match="soft, or several labels"):
        read_mask(written(tmp_path / "soft.nii", np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8, 1)), (8, 6))
