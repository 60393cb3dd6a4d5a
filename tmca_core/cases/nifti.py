"""Read one plane of a NIfTI file and turn it to display convention, whatever its orientation on disk."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmca_core.cases.pixels import check_finite, check_size, decoding
from tmca_core.errors import ImageError

MAX_OFFSET = 1 << 20  # bytes before the pixels; more would only make a reader unpack a bomb


def read_plane(path: Path) -> NDArray[Any]:
    """The plane of a single-slice NIfTI file, in display convention.

    Display convention: the patient's left on the image's right, and superior (coronal, sagittal) or anterior (axial) on top;
    a sagittal plane looks to the image's left. The file's affine is followed to the closest of these; a plane that no
    affine orients is refused, for its left and right could not be told.

    Returns:
        (H, W) values with the file's scaling applied; finite; integer where the file's are.

    Raises:
        ImageError: a true volume, too large, without orientation, with colours, not finite, or damaged.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ImageError(path, f"{path.name} is NIfTI by content; name it .nii or .nii.gz.")
    _guard(path)
    import nibabel

    with decoding(path, "NIfTI"):
        image: Any = nibabel.load(path)
        turn: Any = nibabel.orientations
        header = image.header
        if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
            raise ImageError(
                path,
                f"{path.name} states no orientation (qform and sform codes are 0), so its sides are unknown. Write its affine into it.",
            )
        affine = np.asarray(image.affine, np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ImageError(path, f"{path.name} has an affine that maps no space (singular or not finite), so left and right are unknown.")
        values: NDArray[Any] = np.asanyarray(image.dataobj)
        if values.dtype.fields is not None or values.dtype.kind == "c":
            raise ImageError(path, f"{path.name} holds colours or complex numbers. Export grey values, or a PNG.")
        volume = values.reshape((*values.shape, 1, 1, 1)[:3])  # trailing axes are 1: the guard has seen to it
        canonical = turn.apply_orientation(volume, turn.io_orientation(affine))
    check_finite(path, canonical)
    # Canonical axes run to the patient's right, anterior, superior. The slice axis is the last one of length 1.
    through = max(axis for axis in range(3) if canonical.shape[axis] == 1)
    plane = np.take(canonical, 0, axis=through)
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def _guard(path: Path) -> None:
    """Refuse volumes and absurd headers from the header alone."""
    import nibabel

    with decoding(path, "NIfTI"):
        raw = _first_bytes(path, 540)
        nifti2 = 540 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
        kind: Any
        kind, length = (nibabel.Nifti2Header, 540) if nifti2 else (nibabel.Nifti1Header, 348)
        header = kind(raw[:length], check=False)
        shape = tuple(int(n) for n in header.get_data_shape())
        offset = float(header["vox_offset"])
    if not 0 <= offset <= MAX_OFFSET:
        raise ImageError(path, f"{path.name} says its pixels begin at byte {offset:.0f}; its header is damaged.")
    if not shape or min(shape) < 1:
        raise ImageError(path, f"{path.name} says its shape is {shape}; its header is damaged.")
    if sum(n > 1 for n in shape) > 2 or (len(shape) > 3 and max(shape[3:]) > 1):
        text = " × ".join(map(str, shape))
        raise ImageError(
            path,
            f"{path.name} is a volume of {text}; a case is one slice. Write the wanted slices, e.g. along the third axis: "
            "nibabel.load(path).slicer[:, :, k:k+1].to_filename(name), the mask alike.",
        )
    wide, high = sorted(shape)[-2:] if len(shape) > 1 else (shape[0], 1)
    check_size(path, wide, high)


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        opened = gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # noqa: SIM115
        with opened as file:
            return bytes(file.read(count))
    except (EOFError, zlib.error) as error:
        raise ImageError(path, f"{path.name} cannot be unpacked ({error}): it is truncated or damaged.") from None
