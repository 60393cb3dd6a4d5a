"""Masks as published, kept where the mask rules accept them; soft edges are cut where that is beyond doubt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmca_core.cases.images import open_raster
from tmca_core.cases.masks import read_mask
from tmca_core.errors import ImageError

# Share of pixels between a quarter and three quarters of the largest value: the edge of a resized outline has less.
MOST_BETWEEN = 0.05

KEPT = ""
CUT = "Masks with soft edges (resized or compressed), cut at half of their largest value"
REFUSED = "Masks copied although they or their images break the rules (`tmca data check` names row and reason)"


def copy_mask(source: Path, image: Path, folder: Path, name: str) -> tuple[str, str]:
    """Copy the mask of `image` to `folder`; its new file name, and KEPT, CUT or REFUSED."""
    treatment = KEPT
    try:
        width, height = open_raster(image).size
        read_mask(source, (height, width))
    except ImageError:
        soft = _soft_edged(source)
        if soft is not None:
            from PIL import Image

            Image.fromarray(soft, mode="L").save(folder / f"{name}.png")
            return f"{name}.png", CUT
        treatment = REFUSED
    target = folder / (name + source.suffix.lower())
    shutil.copyfile(source, target)
    return target.name, treatment


def _soft_edged(source: Path) -> NDArray[np.uint8] | None:
    """(H, W) of 0 and 255 cut at half, or None where the mask is anything but two values with soft edges."""
    try:
        image = open_raster(source)
    except ImageError:
        return None
    if image.mode not in ("L", "RGB"):
        return None
    values: NDArray[Any] = np.asarray(image)
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            return None
        values = values[..., 0]
    top = int(values.max())
    between = float(np.mean((values > 0.25 * top) & (values < 0.75 * top)))
    if top < 64 or int(values.min()) > 8 or between > MOST_BETWEEN:
        return None
    return np.where(values * 1.0 > top / 2, 255, 0).astype(np.uint8)
