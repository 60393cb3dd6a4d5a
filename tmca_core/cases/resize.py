"""Images and masks to the square size that networks take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W[, 3]) → (S, S[, 3]), bilinear with the filter widened when shrinking, so that nothing aliases."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W) → (S, S): a pixel is lesion where lesion covers at least half of its exact area."""
    height, width = mask.shape
    if (height, width) == (size, size):
        return mask
    covered = _overlap(height, size) @ mask.astype(np.float32) @ _overlap(width, size).T
    return (covered >= 0.5 - 1e-5).astype(np.uint8)  # an exact half may come out a rounding error below


def _overlap(length: int, size: int) -> NDArray[np.float32]:
    """(size, length): share of each new pixel's extent that each old pixel covers; rows sum to 1."""
    edges = np.arange(size + 1) * (length / size)
    old = np.arange(length)
    shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.asarray(np.clip(shared, 0, None) * (size / length), np.float32)
