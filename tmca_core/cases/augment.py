"""Random changes to training cases that keep image, mask and report in agreement.

Shapes: B cases, C image channels, M targets, H × W pixels. Images are float32 in [0, 1], masks float32 of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tmca_core.config import AugmentationSettings
from tmca_core.errors import ConfigError
from tmca_core.text.sides import swap_sides


def mirrored_targets(names: Sequence[str]) -> list[int]:
    """Where each target's mask comes from when a film is flipped: "left-lung" and "right-lung" change places, others stay.

    Raises:
        ConfigError: a target is named after a side and its counterpart is no target, so a flipped film has no mask for it.

    Example:
        >>> mirrored_targets(["left-lung", "heart", "right-lung"])
        [2, 1, 0]
    """
    words = [name.replace("-", " ").replace("_", " ") for name in names]
    twins = [swap_sides(name) for name in words]
    lonely = [name for name, twin in zip(names, twins, strict=True) if twin not in words]
    if lonely:
        raise ConfigError(
            f"data.targets: '{lonely[0]}' is of one side and its counterpart is no target, so mirrored films would teach the wrong side: "
            "set augmentation.flip=0, or add the counterpart."
        )
    return [words.index(twin) for twin in twins]


def augment(
    images: Tensor,
    masks: Tensor,
    texts: Sequence[str],
    settings: AugmentationSettings,
    rng: torch.Generator,
    *,
    mirrored: Sequence[int] = (),
) -> tuple[Tensor, Tensor, list[str]]:
    """Flip, rotate, zoom and shift image and mask together; then change contrast, brightness and gamma and add noise.

    Rotation, zoom and shift are one bilinear resampling of image and mask; pixels from outside repeat the edge in both, so the
    label of a repeated pixel is still its own. A mask pixel is 1 where at least half of it is covered. Only a flip moves
    anything to the other side, and it swaps the sides in the report. At last some cases lose their report.

    Args:
        images: (B, C, H, W) float32 in [0, 1], any device.
        masks: (B, M, H, W) float32 of 0 and 1, same device.
        texts: B reports in patient sides.
        settings: the largest changes; with all at 0 the result is the input.
        rng: CPU generator, the only source of randomness; the same state gives the same result.
        mirrored: `mirrored_targets`; (): no target is named after a side.

    Returns:
        images (B, C, H, W) in [0, 1], masks (B, M, H, W) of 0 and 1, texts; inputs are left as they are.

    Example:
        >>> images, masks = torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
        >>> x, y, t = augment(images, masks, ["Left lung.", ""], AugmentationSettings(), torch.Generator().manual_seed(0))
        >>> x.shape, y.shape, t
        (torch.Size([2, 1, 64, 64]), torch.Size([2, 1, 64, 64]), ['Left lung.', ''])
    """
    if not any((settings.flip, settings.rotate, settings.scale, settings.shift, settings.gain, settings.noise, settings.no_report)):
        return images, masks, list(texts)
    draws = torch.rand(len(images), 8, generator=rng)
    signed = (2 * draws - 1).to(images.device)  # (B, 8) in [-1, 1)
    if settings.flip > 0:
        images, masks, texts = flip_cases(images, masks, texts, draws[:, 0] < settings.flip, mirrored)
    if settings.rotate > 0 or settings.scale > 0 or settings.shift > 0:
        images, masks = _move(images, masks, signed[:, 1:5], settings)
    if settings.gain > 0:
        images = _expose(images, settings.gain * signed[:, 5:8])
    if settings.noise > 0:
        noise = torch.randn(images.shape, generator=rng).to(images.device)
        images = (images + settings.noise * noise).clamp_(0, 1)
    if settings.no_report > 0:
        kept = torch.rand(len(images), generator=rng) >= settings.no_report
        texts = [text if keep else "" for text, keep in zip(texts, kept.tolist(), strict=True)]
    return images, masks, list(texts)


def flip_cases(
    images: Tensor, masks: Tensor, texts: Sequence[str], which: Tensor, mirrored: Sequence[int] = ()
) -> tuple[Tensor, Tensor, list[str]]:
    """Mirror the chosen cases left to right and swap left and right in their reports; twice is the original.

    Args:
        images: (B, C, H, W).
        masks: (B, M, H, W).
        texts: B reports.
        which: (B,) bool.
        mirrored: as `augment` takes it.
    """
    chosen = which.to(images.device).view(-1, 1, 1, 1)
    images = torch.where(chosen, images.flip(-1), images)
    masks = torch.where(chosen, (masks[:, list(mirrored)] if mirrored else masks).flip(-1), masks)
    return images, masks, [swap_sides(text) if flip else text for text, flip in zip(texts, which.tolist(), strict=True)]


def _move(images: Tensor, masks: Tensor, signed: Tensor, settings: AugmentationSettings) -> tuple[Tensor, Tensor]:
    """Rotate, zoom and shift by `signed` (B, 4) shares of the largest angle, zoom, and shift along x and y."""
    angle = signed[:, 0] * math.radians(settings.rotate)
    zoom = 1 + signed[:, 1] * settings.scale
    shift_B2 = 2 * settings.shift * signed[:, 2:4]  # the sampling grid runs from -1 to 1
    height, width = images.shape[-2:]
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Rows map output to input places; the ratio keeps a rotation a rotation where the image is not square.
    theta = torch.stack(
        [torch.stack([cos, -sin * height / width, shift_B2[:, 0]], 1), torch.stack([sin * width / height, cos, shift_B2[:, 1]], 1)], 1
    )  # (B, 2, 3)
    both = torch.cat([images, masks], dim=1)
    grid = functional.affine_grid(theta, list(both.shape), align_corners=False)
    both = functional.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return both[:, : images.shape[1]].clamp_(0, 1), (both[:, images.shape[1] :] >= 0.5).to(masks.dtype)


def _expose(images: Tensor, change: Tensor) -> Tensor:
    """Contrast about the mean × (1 + c), brightness + b × mean, then gamma e^g; `change` (B, 3) holds c, b and g."""
    contrast, brightness, gamma = (change[:, k].view(-1, 1, 1, 1) for k in range(3))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * (1 + contrast) + mean * (1 + brightness)).clamp_(0, 1).pow_(torch.exp(gamma))
