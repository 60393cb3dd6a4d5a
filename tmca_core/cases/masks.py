"""Read a mask, strictly: two values with background 0, at the image's own size. What could be guessed is refused instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmca_core.cases.images import open_raster
from tmca_core.cases.pixels import check_finite, kind_of
from tmca_core.errors import ImageError

NEAR = 8  # levels of 255 that compression may move a pixel from black or white
NEAR_SHARE = 0.99
LOWEST_WHITE = 64  # below it, `NEAR` could not tell black from white: 0, 1, 2 … are labels, not noise


def read_mask(path: Path, image_shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, BMP, TIFF, DICOM, DICOM SEG or NIfTI mask.

    Accepted: all 0 (a negative case; callers count it), or exactly two values of which one is 0 (0/1, 0/128, 0/255 …),
    or 8-bit values of which at least 99 % lie within 8 levels of 0 or of the maximum: the noise of JPEG compression;
    the threshold is then half of the maximum. Equal colour channels count as one, a constant alpha channel as none.

    Args:
        path: the file.
        image_shape: (H, W) of its image in pixels, as `read_image` gives it.

    Returns:
        (H, W) uint8 of 0 and 1.

    Raises:
        ImageError: soft, coloured, of several labels, without background, of another size, negative, not finite, or damaged.
    """
    values = _one_channel(path, _read(path))
    if values.shape != tuple(image_shape):
        (h, w), (ih, iw) = values.shape, image_shape
        raise ImageError(path, f"{path.name} is {w} × {h} pixels, its image {iw} × {ih}. A mask has the size of its image.")
    check_finite(path, values)
    return _binary(path, values)


def _read(path: Path) -> NDArray[Any]:
    kind = kind_of(path)
    if kind == "dicom":
        from tmca_core.cases.dicom import read_dicom_values

        return read_dicom_values(path)
    if kind == "nifti":
        from tmca_core.cases.nifti import read_plane

        return read_plane(path)
    image = open_raster(path)
    if image.mode == "P":  # what is seen counts, not the index
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "LA", "RGB", "RGBA") and not image.mode.startswith("I") and image.mode != "F":
        raise ImageError(path, f"{path.name} is a mask in colour mode {image.mode}. Save it as 8-bit grey, 0 and 255.")
    return np.asarray(image.convert("L") if image.mode == "1" else image)


def _one_channel(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 2:
        return values
    channels = values.shape[2]
    if channels in (2, 4):
        alpha = values[..., -1]
        if alpha.min() != alpha.max():
            raise ImageError(
                path, f"{path.name} has a varying alpha channel; whether lesion means opaque or white cannot be told. Save it as grey."
            )
        values = values[..., :-1]
    if not (values == values[..., :1]).all():
        raise ImageError(
            path, f"{path.name} is a coloured mask (its channels differ). Save the structure that the report means as 0 and 255."
        )
    return values[..., 0]


def _binary(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    levels = np.unique(values)
    low, high = levels[0], levels[-1]
    if low < 0:
        raise ImageError(path, f"{path.name} has values from {low:g} to {high:g}; background is 0 and the structure one positive value.")
    if high == 0:
        return np.zeros(values.shape, np.uint8)
    if len(levels) == 1:
        raise ImageError(path, f"{path.name} is {high:g} everywhere: a mask without background. Background is 0.")
    if len(levels) == 2 and low == 0:
        return np.asarray(values != 0, np.uint8)
    if len(levels) == 2:
        raise ImageError(path, f"{path.name} has the values {low:g} and {high:g}; background must be 0.")
    if values.dtype != np.uint8 or high < LOWEST_WHITE:
        raise ImageError(
            path, f"{path.name} has {len(levels)} levels up to {high:g}: soft, or several labels. A mask has two values, 0 and one other."
        )
    near = (values <= NEAR) | (values >= int(high) - NEAR)
    share = float(near.mean())
    if share < NEAR_SHARE:
        raise ImageError(
            path,
            f"{path.name} is soft: {len(levels)} levels, only {100 * share:.2f} % of pixels are within {NEAR} levels of 0 or {high}. "
            "Threshold it where its author meant, and save it without loss.",
        )
    return (values.astype(np.int16) * 2 > int(high)).astype(np.uint8)
