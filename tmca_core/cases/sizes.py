"""How large an image is in its file, from its header alone."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from tmca_core.cases.pixels import decoding, kind_of

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: values that lay the image on its side


def stored_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels as `read_image` would give them.

    Raises:
        ImageError: the file is missing, damaged or of no known kind.
    """
    kind = kind_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags; what matters is read when the image is
        if kind == "nifti":
            from tmca_core.cases.nifti import read_plane

            return read_plane(path).shape[:2]  # which of its axes is a plane's, its reader knows
        with decoding(path, "an image"):
            if kind == "dicom":
                import pydicom

                head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
                return int(head.Rows), int(head.Columns)
            with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF")) as image:
                width, height = image.size
                return (width, height) if image.getexif().get(_ORIENTATION) in _TURNED else (height, width)
