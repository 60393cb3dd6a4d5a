"""Masks: what counts as binary, and what is refused rather than guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tmca_core.cases.masks import read_mask
from tmca_core.errors import ImageError

BOX = np.zeros((40, 60), np.uint8)
BOX[10:25, 30:50] = 1


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("white", [1, 2, 128, 254, 255])
def test_any_two_values_with_background_zero(tmp_path: Path, white: int) -> None:
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", BOX * np.uint8(white)), (40, 60)), BOX)


def test_other_ways_of_writing_a_binary_mask(tmp_path: Path) -> None:
    white = BOX * np.uint8(255)
    files = [
        saved(tmp_path / "deep.png", BOX.astype(np.uint16) * 65535),
        saved(tmp_path / "bits.png", BOX.astype(bool)),
        saved(tmp_path / "rgb.png", np.dstack([white] * 3)),
        saved(tmp_path / "rgba.png", np.dstack([white] * 3 + [np.full_like(white, 255)])),
        saved(tmp_path / "la.png", np.dstack([white, np.full_like(white, 7)])),
        saved(tmp_path / "m.tif", BOX.astype(np.float32)),
        saved(tmp_path / "m.bmp", white),
    ]
    palette = Image.fromarray(1 - BOX, mode="P")  # index 0 is white here: what is seen counts
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.save(tmp_path / "p.png")
    for path in [*files, tmp_path / "p.png"]:
        np.testing.assert_array_equal(read_mask(path, (40, 60)), BOX, err_msg=path.name)


def test_an_empty_mask_is_a_negative_case(tmp_path: Path) -> None:
    assert not read_mask(saved(tmp_path / "m.png", np.zeros((40, 60), np.uint8)), (40, 60)).any()


@pytest.mark.parametrize("quality", [90, 95, 100])
def test_jpeg_noise_is_tolerated(tmp_path: Path, quality: int) -> None:
    yy, xx = np.mgrid[:300, :300]
    disc = ((yy - 140) ** 2 + (xx - 170) ** 2 < 60**2).astype(np.uint8)
    path = saved(tmp_path / "m.jpg", disc * np.uint8(255), quality=quality)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    np.testing.assert_array_equal(read_mask(path, (300, 300)), disc)


def test_the_share_of_noise_is_exact(tmp_path: Path) -> None:
    pixels = np.zeros((10, 100), np.uint8)
    pixels[:, 50:] = 255
    pixels[0, :10] = 9  # 10 of 1,000 pixels are farther than 8 levels: 99.0 %
    assert read_mask(saved(tmp_path / "a.png", pixels), (10, 100)).sum() == 500
    pixels[0, 10] = 9
    with pytest.raises(ImageError, match=r"is soft: 3 levels, only 98\.90 % of pixels"):
        read_mask(saved(tmp_path / "b.png", pixels), (10, 100))


def changed(**pixels: int) -> np.ndarray:
    mask = BOX * np.uint8(255)
    for at, value in pixels.items():
        mask[int(at[1:]), 0] = value
    return mask


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1)), "is soft"),
        (np.add(BOX, np.roll(BOX, 5, axis=1)), "soft, or several labels"),
        (np.add(BOX.astype(np.uint16) * 1000, 7 * np.roll(BOX, 5, axis=1)), "soft, or several labels"),
        (np.full((40, 60), 255, np.uint8), "without background"),
        (BOX + np.uint8(1), "values 1 and 2; background must be 0"),
        (BOX.astype(np.float32) - 1, "values from -1 to 0"),
        (np.where(BOX == 1, np.nan, 0).astype(np.float32), "not finite"),
        (np.dstack([BOX * np.uint8(255), BOX, BOX]), "is a coloured mask"),
        (np.dstack([BOX * np.uint8(255)] * 4), "varying alpha"),
        (np.zeros((60, 40), np.uint8), "is 40 × 60 pixels, its image 60 × 40"),
        (np.zeros((20, 30), np.uint8), "A mask has the size of its image"),
    ],
)
def test_refusals(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    path = saved(tmp_path / ("m.tif" if pixels.dtype == np.float32 else "m.png"), pixels)
    with pytest.raises(ImageError, match=message):
        read_mask(path, (40, 60))


def test_a_coloured_palette_is_a_coloured_mask(tmp_path: Path) -> None:
    palette = Image.fromarray(BOX, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(tmp_path / "voc.png")
    with pytest.raises(ImageError, match="coloured"):
        read_mask(tmp_path / "voc.png", (40, 60))
    Image.fromarray(np.dstack([BOX] * 4), mode="CMYK").save(tmp_path / "cmyk.jpg")
    with pytest.raises(ImageError, match="CMYK"):
        read_mask(tmp_path / "cmyk.jpg", (40, 60))


def test_an_unreadable_mask(tmp_path: Path) -> None:
    whole = saved(tmp_path / "m.png", BOX * np.uint8(255)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_mask(tmp_path / "cut.png", (40, 60))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pixels=arrays.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 0, 0, 1, 8, 64, 247, 255])))
def test_accepted_masks_are_binary_and_keep_black_and_white(tmp_path: Path, pixels: np.ndarray) -> None:
    try:
        mask = read_mask(saved(tmp_path / "m.png", pixels), (6, 7))
    except ImageError:
        assert len(np.unique(pixels)) != 2 or pixels.min() > 0
        return
    assert set(np.unique(mask)) <= {0, 1}
    assert not mask[pixels == 0].any() and (pixels.max() == 0 or mask[pixels == pixels.max()].all())
