"""Files to tensors: resizing against slow oracles, the cache, and what happens when it is damaged or not writable."""

from __future__ import annotations

import logging
import stat
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tmca_core.cases import decode as decode_module
from tmca_core.cases.case import Case, CaseTensors
from tmca_core.cases.decode import decode, decode_all, default_cache_dir, file_digest
from tmca_core.cases.manifest import read_manifest
from tmca_core.cases.resize import resize_image, resize_mask
from tmca_core.errors import CaseError, ManifestError

SHARED = Path(__file__).parents[3] / "../shared/data"


def case(folder: Path, name: str, pixels: np.ndarray, mask: np.ndarray | None, row: int = 2) -> Case:
    Image.fromarray(pixels).save(folder / f"{name}.png")
    if mask is not None:
        Image.fromarray(mask).save(folder / f"{name}-mask.png")
    masks = () if mask is None else (folder / f"{name}-mask.png",)
    return Case(name, name, "all", folder / f"{name}.png", masks, "x", "x", "patient", row=row)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(6):
        mask = np.zeros((60, 80), np.uint8)
        mask[10 : 20 + i, 30:60] = 255
        made.append(case(tmp_path, f"c{i}", rng.integers(0, 256, (60, 80), dtype=np.uint8), mask if i else None, row=i + 2))
    return made


def same(a: CaseTensors, b: CaseTensors) -> bool:
    return list(a.cases) == list(b.cases) and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)


def exact_area(mask: np.ndarray, size: int) -> np.ndarray:
    """The slow oracle: coverage in rational numbers."""
    height, width = mask.shape
    out = np.zeros((size, size), np.uint8)
    for r in range(size):
        for c in range(size):
            covered = Fraction(0)
            for y in range(height):
                dy = min(Fraction((r + 1) * height, size), y + 1) - max(Fraction(r * height, size), y)
                for x in range(width) if dy > 0 else ():
                    dx = min(Fraction((c + 1) * width, size), x + 1) - max(Fraction(c * width, size), x)
                    covered += dx * dy * int(mask[y, x]) if dx > 0 else 0
            out[r, c] = covered * size * size >= Fraction(height * width, 2)
    return out


@settings(deadline=None, max_examples=60)
@given(mask=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)), size=st.integers(1, 7))
def test_masks_resize_by_exact_area(mask: np.ndarray, size: int) -> None:
    np.testing.assert_array_equal(resize_mask(mask, size), exact_area(mask, size))


def test_half_a_pixel_is_lesion_and_less_is_not() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 0]], np.uint8)
    assert resize_mask(mask, 2).tolist() == [[1, 0], [0, 1]]


def test_images_do_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (128, 64))
    small = resize_image(stripes, 32)
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() <= 2  # nearest or plain bilinear would give stripes or one colour
    assert resize_image(np.zeros((5, 9, 3), np.uint8), 32).shape == (32, 32, 3)


def test_what_decode_returns(cases: list[Case]) -> None:
    tensors, skipped = decode(cases, size=32, channels=1, cache_dir=None)
    assert tensors.images.shape == (6, 1, 32, 32) and tensors.images.dtype == torch.uint8 and not skipped
    assert tensors.masks.shape == (6, 1, 32, 32) and set(tensors.masks.unique().tolist()) == {0, 1}
    assert not tensors.masks[0].any() and [c.case_id for c in tensors.cases] == [c.case_id for c in cases]
    colour, _ = decode(cases, size=32, channels=3, cache_dir=None)
    assert colour.images.shape == (6, 3, 32, 32) and torch.equal(colour.images[:, 1], tensors.images[:, 0])


def test_sizes_and_mask_pixels_are_of_the_files(cases: list[Case]) -> None:
    decoded = decode_all(cases, size=32, channels=1, cache_dir=None)
    assert decoded.sizes.tolist() == [[60, 80]] * 6
    assert decoded.mask_pixels.tolist() == [[-1], [330], [360], [390], [420], [450]]


def test_bad_files_are_skipped_with_row_and_column(cases: list[Case], tmp_path: Path) -> None:
    cases[1].image.write_bytes(cases[1].image.read_bytes()[:-40])
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(cases[3].masks[0])
    cases[4].image.unlink()
    for _ in range(2):  # the second time from the cache
        tensors, skipped = decode(cases, size=32, channels=1, cache_dir=tmp_path / "cache")
        assert [(skip.row, skip.column) for skip in skipped] == [(3, "image"), (5, "mask"), (6, "image")]
        assert [c.row for c in tensors.cases] == [2, 4, 7]
        assert "5 × 5 pixels, its image 80 × 60" in skipped[1].reason
    with pytest.raises(CaseError, match=r"row 3, column 'image': c1\.png"):
        decode(cases, size=32, channels=1, cache_dir=None, on_bad_case="fail")
    with pytest.raises(ManifestError, match="none of the 1 cases can be read"):
        decode(cases[4:5], size=32, channels=1, cache_dir=None)
    assert len(decode([], size=32, channels=1, cache_dir=None)[0]) == 0


def test_lesions_lost_by_resizing_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.zeros((320, 320), np.uint8)
    mask[5:8, 5:8] = 255
    decode([case(tmp_path, "a", mask, mask)], size=32, channels=1, cache_dir=None)
    assert "1 masks are empty at 32 × 32 pixels" in caplog.text


def test_progress(cases: list[Case]) -> None:
    seen: list[tuple[int, int]] = []
    decode(cases, size=32, channels=1, cache_dir=None, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


# --- cache ----------------------------------------------------------------------------------------------
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a file was decoded although the cache has it")

    monkeypatch.setattr(decode_module, "read_image", refuse)


def test_the_cache_gives_the_same_wherever_the_files_are(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first, _ = decode(cases, size=32, channels=1, cache_dir=cache)
    (file,) = cache.rglob("*.*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    no_reading(monkeypatch)
    second, _ = decode(cases, size=32, channels=1, cache_dir=cache)
    assert same(first, second)
    (tmp_path / "moved").mkdir()
    moved = []
    for c in cases:
        image, *masks = (path.rename(tmp_path / "moved" / path.name) for path in (c.image, *c.masks))
        moved.append(Case(c.case_id, c.patient_id, c.site, image, tuple(masks), "new report", "y", "image", row=c.row))
    third, _ = decode(moved, size=32, channels=1, cache_dir=cache)
    assert torch.equal(third.images, first.images) and third.cases[0].report == "new report"


def test_what_must_not_be_taken_from_the_cache(cases: list[Case], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    decode(cases, size=32, channels=1, cache_dir=cache)
    decode(cases, size=64, channels=1, cache_dir=cache)
    decode(cases, size=32, channels=3, cache_dir=cache)
    decode(cases[:5], size=32, channels=1, cache_dir=cache)
    decode(cases[::-1], size=32, channels=1, cache_dir=cache)
    decode(cases, size=32, channels=1, cache_dir=cache, columns=["mask:lesion"])
    pixels = np.asarray(Image.open(cases[2].image)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(cases[2].image)
    decode(cases, size=32, channels=1, cache_dir=cache)
    assert len(list(cache.rglob("*.safetensors"))) == 7


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "headless"])
def test_a_damaged_cache_is_rebuilt(cases: list[Case], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    first, _ = decode(cases, size=32, channels=1, cache_dir=cache)
    (file,) = cache.rglob("*.safetensors")
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[-100] ^= 255
    file.write_bytes({"cut": good[:-500], "flip": bytes(flipped), "empty": b"", "text": b"hello" * 100, "headless": good[8:]}[damage])
    again, _ = decode(cases, size=32, channels=1, cache_dir=cache)
    assert same(first, again) and "is damaged" in caplog.text
    caplog.clear()
    third, _ = decode(cases, size=32, channels=1, cache_dir=cache)
    assert same(first, third) and not caplog.text and [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_is_said_and_survived(cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        tensors, _ = decode(cases, size=32, channels=1, cache_dir=tmp_path / "file")
    assert len(tensors) == 6 and "cannot be cached" in caplog.text


def test_identity_of_large_files(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(9 << 20)
    path.write_bytes(content)
    first = file_digest(path)
    content[-5] = 1
    path.write_bytes(content)
    assert file_digest(path) != first
    assert file_digest(tmp_path / "none") == "unreadable: 2"


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "tmca"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path.home() / ".cache" / "tmca"


def test_the_second_time_reads_no_image_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = SHARED / "cxr-lungs/cases.csv"
    if not manifest.exists():
        pytest.skip("the development data are not here")
    cases = read_manifest(manifest).cases
    first, _ = decode(cases, size=128, channels=1, cache_dir=tmp_path)

    def refuse(*read: object) -> None:
        raise AssertionError(f"read again: {read}")

    monkeypatch.setattr("tmca_core.cases.decode.read_image", refuse)
    monkeypatch.setattr("tmca_core.cases.decode.read_mask", refuse)
    second, _ = decode(cases, size=128, channels=1, cache_dir=tmp_path)
    assert same(first, second) and len(first) == 276
