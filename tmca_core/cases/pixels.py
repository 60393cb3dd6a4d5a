"""What all image readers share: the kind of a file, guards that act before anything is decoded, and intensity windows."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmca_core.errors import ImageError

MAX_PIXELS = 64_000_000  # a 12-bit mammogram has 13 million; what is larger is a slide, or a bomb
MAX_BYTES = 2 << 30

Kind = Literal["raster", "dicom", "nifti"]
_RASTER = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")  # PNG, JPEG, BMP, TIFF


def kind_of(path: Path) -> Kind:
    """Kind of an image file, from its first bytes and never from its name.

    Raises:
        ImageError: it is missing, unreadable, too large or of no known kind.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(352)
    except OSError as error:
        raise ImageError(path, f"{path.name} cannot be opened ({error.strerror or error}).") from None
    if size == 0:
        raise ImageError(path, f"{path.name} is an empty file.")
    if size > MAX_BYTES:
        raise ImageError(path, f"{path.name} has {size:,} bytes; a single film or slice has at most {MAX_BYTES:,}.")
    # First: the 128 bytes before the prefix are free (PS3.10 7.1), and some writers make them a TIFF header.
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_RASTER):
        return "raster"
    if head.startswith(b"\x1f\x8b"):
        head = _unpacked_head(path)
    if is_nifti_header(head):
        return "nifti"
    raise ImageError(path, f"{path.name} is no PNG, JPEG, BMP, TIFF, DICOM or NIfTI file, or its beginning is damaged.")


def is_nifti_header(head: bytes) -> bool:
    """Whether the bytes begin a NIfTI-1 or NIfTI-2 header of either byte order."""
    return any(head[:4] == length.to_bytes(4, order) for length in (348, 540) for order in ("little", "big"))


def _unpacked_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(352)  # reads no further: a bomb stays packed
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(path, f"{path.name} cannot be unpacked ({error}): it is truncated or damaged.") from None


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse a size that no film or slice has, before memory is asked for it.

    Raises:
        ImageError: a side below 1 or more than `MAX_PIXELS` pixels.
    """
    if width < 1 or height < 1:
        raise ImageError(path, f"{path.name} says it is {width} × {height} pixels.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            path,
            f"{path.name} says it is {width} × {height} pixels, more than the {MAX_PIXELS // 10**6} million allowed; it was not decoded.",
        )


@contextmanager
def decoding(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into one ImageError.

    Third-party decoders raise nearly every built-in exception on malformed input (ValueError, struct.error, KeyError,
    RuntimeError, SyntaxError …), so the net is wide here, around the decoder alone. Of what they say only the kind is kept: their
    words may be the header's, and a header names a person.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(path, f"{path.name} cannot be decoded as {what} ({type(error).__name__}): it is truncated or damaged.") from None


def to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map [low, high] linearly to 0..255, clipping outside; all 0 where low = high."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    clipped: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return clipped


def percentile_window(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """0.5th and 99.5th percentile, so that a few hot pixels or a burnt-in marker do not set the contrast.

    Args:
        values: intensities of any shape.
        valid: which pixels count (padding does not); all where None.

    Returns:
        (low, high); the full range where the two percentiles meet.
    """
    counted = values if valid is None else values[valid]
    if counted.size == 0:
        return 0.0, 0.0
    low, high = (float(p) for p in np.percentile(counted, (0.5, 99.5)))
    return (low, high) if high > low else (float(counted.min()), float(counted.max()))


def check_finite(path: Path, values: NDArray[Any]) -> None:
    """Refuse NaN and infinity.

    Raises:
        ImageError: with their number.
    """
    if values.dtype.kind == "f":
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise ImageError(path, f"{path.name} has {bad:,} pixels that are not finite numbers. Replace them with the background's value.")
