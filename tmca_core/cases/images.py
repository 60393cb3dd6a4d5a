"""Read one image of any supported kind as 8-bit pixels in display convention (patient's left on the image's right)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tmca_core.cases.pixels import check_finite, check_size, decoding, kind_of, percentile_window, to_bytes
from tmca_core.errors import ImageError


def read_image(path: Path, channels: Literal[1, 3] = 1) -> NDArray[np.uint8]:
    """Read PNG, JPEG, BMP, TIFF, DICOM or a NIfTI slice.

    8-bit images keep their values. Deeper ones are windowed: by the window that a DICOM file states, else by the 0.5th
    and 99.5th percentile. EXIF orientation is applied, a constant alpha channel ignored, any other laid on black.

    Args:
        path: the file; its kind is told from its content.
        channels: 1 for grey (colour becomes luminance, ITU-R 601), 3 for colour (grey is repeated).

    Returns:
        (H, W) or (H, W, 3) uint8.

    Raises:
        ImageError: the file is missing, damaged, too large (before it is decoded), not a single plane, or not finite.
    """
    kind = kind_of(path)
    if kind == "dicom":
        from tmca_core.cases.dicom import read_dicom

        pixels = read_dicom(path)
    elif kind == "nifti":
        from tmca_core.cases.nifti import read_plane

        values = read_plane(path)
        pixels = values if values.dtype == np.uint8 else to_bytes(values, *percentile_window(values))
    else:
        pixels = _grey_or_colour(open_raster(path), path)
    return in_channels(pixels, channels)


def in_channels(pixels: NDArray[np.uint8], channels: Literal[1, 3]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) as asked for: luminance, or grey three times."""
    if channels == 1 and pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def open_raster(path: Path) -> Image.Image:
    """Decode a PNG, JPEG, BMP or TIFF file upright, after its header has passed the size guard.

    Raises:
        ImageError: damaged, truncated, too large, or several pages.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of bombs above our own limit; errors are caught below
        with decoding(path, "an image"):
            try:
                image = Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF"))
            except UnidentifiedImageError:  # its text is the path alone
                raise ImageError(
                    path, f"{path.name} begins as a PNG, JPEG, BMP or TIFF file, but its header cannot be read: it is truncated or damaged."
                ) from None
            except Image.DecompressionBombError as error:
                raise ImageError(path, f"{path.name} is far too large to be a film or slice ({error}); it was not decoded.") from None
            with image:
                check_size(path, *image.size)
                if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
                    raise ImageError(path, f"{path.name} has {image.n_frames} pages. Save the wanted one as its own file.")  # type: ignore[attr-defined]
                image.load()
                return ImageOps.exif_transpose(image)


def _grey_or_colour(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit, 32-bit and float greys
        values: NDArray[Any] = np.asarray(image)
        check_finite(path, values)
        return to_bytes(values, *percentile_window(values))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        image = without_alpha(image)
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def without_alpha(image: Image.Image) -> Image.Image:
    """Grey or RGB: a constant alpha channel says nothing and is dropped, another one is laid on black."""
    plain = "L" if image.mode in ("LA", "La") else "RGB"
    full = image.convert("RGBA")
    low, high = full.getchannel("A").getextrema()
    if low == high:
        return full.convert("RGB").convert(plain)
    black = Image.new("RGBA", full.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, full).convert(plain)
