"""Augmentation: the mask follows the image, the report follows the flip, and the generator decides everything."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from tmca_core.cases.augment import augment, flip_cases
from tmca_core.config import AugmentationSettings
from tmca_core.text.findings import parse

STILL = AugmentationSettings(flip=0, rotate=0, scale=0, shift=0, gain=0, noise=0)
TEXTS = ["Opacity in the left lower lobe.", "Right lung.", "RUL consolidation.", ""]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 64, channels: int = 1, cases: int = 4) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Blobs; the image is the mask's smooth version, so agreement can be measured after any move."""
    y, x = np.mgrid[:size, :size] / size
    masks = []
    for k in range(cases):
        cx, cy = 0.35 + 0.1 * k, 0.6 - 0.05 * k
        masks.append((((x - cx) / 0.2) ** 2 + ((y - cy) / 0.12) ** 2 < 1).astype(np.float32))
    mask = torch.from_numpy(np.stack(masks))[:, None]
    return (0.2 + 0.6 * mask).repeat(1, channels, 1, 1), mask, [TEXTS[k % 4] for k in range(cases)]


def test_all_zero_is_the_exact_identity():
    images, masks, texts = torch.rand(4, 3, 40, 56), batch()[1][..., :40, :56], TEXTS
    x, y, t = augment(images, masks, texts, STILL, rng())
    assert torch.equal(x, images) and torch.equal(y, masks) and t == texts


def test_the_generator_decides_everything():
    settings = AugmentationSettings(flip=0.5)
    first, second, other = (augment(*batch(), settings, rng(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True)) and first[2] == second[2]
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment(*batch(), settings, rng())
    assert torch.equal(before, torch.get_rng_state())


def test_ranges_shapes_and_untouched_inputs():
    images, masks, texts = batch(channels=3)
    kept = images.clone(), masks.clone()
    x, y, t = augment(images, masks, texts, AugmentationSettings(flip=1, rotate=45, scale=0.9, shift=0.4, gain=0.9, noise=0.5), rng())
    assert x.shape == images.shape and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    assert y.shape == masks.shape and y.dtype == torch.float32 and set(y.unique().tolist()) <= {0.0, 1.0}
    assert len(t) == 4 and torch.isfinite(x).all()
    assert torch.equal(images, kept[0]) and torch.equal(masks, kept[1])


@pytest.mark.parametrize("seed", range(5))
def test_the_mask_follows_the_image(seed):
    moves = AugmentationSettings(flip=0.5, rotate=30, scale=0.3, shift=0.1, gain=0, noise=0)
    x, y, _ = augment(*batch(128), moves, rng(seed))
    seen = (x >= 0.5).float()  # background 0.2, lesion 0.8: half-way is the outline
    assert torch.equal(seen, y)


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
def test_the_move_agrees_with_a_slow_oracle(size):
    """Against scipy's affine_transform of pixel coordinates, written out from the definition."""
    height, width = size
    image = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random(size), 2).astype(np.float32))[None, None]
    settings = AugmentationSettings(flip=0, rotate=20, scale=0.2, shift=0.1, gain=0, noise=0)
    x, _, _ = augment(image, torch.zeros_like(image), [""], settings, rng(3))
    draw = (2 * torch.rand(1, 8, generator=rng(3)) - 1)[0].tolist()
    angle, zoom = math.radians(20) * draw[1], 1 + 0.2 * draw[2]
    dx, dy = 0.1 * draw[3] * width, 0.1 * draw[4] * height
    expected = np.zeros(size, np.float32)
    for row in range(height):
        for column in range(width):
            u, v = column - (width - 1) / 2, row - (height - 1) / 2
            source_x = (math.cos(angle) * u - math.sin(angle) * v) / zoom + dx + (width - 1) / 2
            source_y = (math.sin(angle) * u + math.cos(angle) * v) / zoom + dy + (height - 1) / 2
            expected[row, column] = ndimage.map_coordinates(image[0, 0].numpy(), [[source_y], [source_x]], order=1, mode="nearest")[0]
    assert np.abs(x[0, 0].numpy() - expected).max() < 1e-4


def test_zoom_changes_the_area_by_its_square_and_shift_keeps_it():
    _, mask, _ = batch(128, cases=1)
    for seed in range(4):
        zoomed = augment(mask, mask, [""], STILL.model_copy(update={"scale": 0.3}), rng(seed))[1]
        zoom = 1 + 0.3 * (2 * torch.rand(1, 8, generator=rng(seed)) - 1)[0, 2].item()
        assert zoomed.sum() / mask.sum() == pytest.approx(zoom**2, rel=0.03)
        shifted = augment(mask, mask, [""], STILL.model_copy(update={"shift": 0.1}), rng(seed))[1]
        assert shifted.sum() / mask.sum() == pytest.approx(1, rel=0.03)
        turned = augment(mask, mask, [""], STILL.model_copy(update={"rotate": 45.0}), rng(seed))[1]
        assert turned.sum() / mask.sum() == pytest.approx(1, rel=0.03)


def test_flipping_twice_is_the_original():
    images, masks, texts = batch()
    which = torch.tensor([True, False, True, True])
    once = flip_cases(images, masks, texts, which)
    assert not torch.equal(once[0][0], images[0]) and torch.equal(once[0][1], images[1])
    assert once[2] == ["Opacity in the right lower lobe.", "Right lung.", "LUL consolidation.", ""]
    twice = flip_cases(*once, which)
    assert torch.equal(twice[0], images) and torch.equal(twice[1], masks) and twice[2] == texts


def test_a_flip_keeps_report_and_mask_on_the_same_side():
    """Patient's left is on the image's right: a lesion at x > 1/2 is read as left, before and after."""
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, 0, 20:28, 22:30] = 1  # left lower zone
    mask[1, 0, 4:10, 2:9] = 1  # right upper zone
    texts = ["one infected area, lower left lung.", "one infected area, upper right lung."]
    settings = STILL.model_copy(update={"flip": 1.0})
    _, flipped, swapped = augment(mask, mask, texts, settings, rng())

    def side(one: torch.Tensor) -> str:
        columns = one[0].sum(0)
        return "left" if columns[16:].sum() > columns[:16].sum() else "right"

    for k in range(2):
        assert parse(texts[k]).side == side(mask[k])
        assert parse(swapped[k]).side == side(flipped[k]) != parse(texts[k]).side
        zones, after = parse(texts[k]).zones, parse(swapped[k]).zones
        assert after == zones[3:] + zones[:3]  # LU LM LL RU RM RL


def test_flip_probability():
    images, masks, _ = batch(8, cases=1)
    many = images.repeat(2000, 1, 1, 1), masks.repeat(2000, 1, 1, 1), ["Left lung."] * 2000
    _, _, texts = augment(*many, STILL.model_copy(update={"flip": 0.3}), rng())
    assert texts.count("Right lung.") / 2000 == pytest.approx(0.3, abs=0.04)


def test_gain_and_noise_leave_the_mask_and_have_their_size():
    images, masks, texts = torch.full((64, 1, 32, 32), 0.5), torch.zeros(64, 1, 32, 32), ["a"] * 64
    bright, same, _ = augment(images, masks, texts, STILL.model_copy(update={"gain": 0.2}), rng())
    assert torch.equal(same, masks)
    means = bright.mean(dim=(1, 2, 3))
    assert means.std() > 0.03 and means.min() > (0.5 * 0.8) ** math.exp(0.2) - 1e-3 and means.max() < (0.5 * 1.2) ** math.exp(-0.2) + 1e-3
    noisy, _, _ = augment(images, masks, texts, STILL.model_copy(update={"noise": 0.05}), rng())
    assert (noisy - images).std().item() == pytest.approx(0.05, rel=0.02)
