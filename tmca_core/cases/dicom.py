"""Read one DICOM frame: grey levels as the scanner meant them to be seen, or the raw values of a mask."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tmca_core.cases.pixels import check_finite, check_size, decoding, percentile_window, to_bytes
from tmca_core.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

DEFLATED = "1.2.840.10008.1.2.1.99"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def read_dicom(path: Path) -> NDArray[np.uint8]:
    """One frame as a reader would see it.

    Stored values pass the modality transform (rescale or LUT), then the VOI LUT or window the file states (PS3.3
    C.11.2), else the 0.5–99.5 percentile window; unsigned 8-bit grey without any of these keeps its values. MONOCHROME1 is
    inverted, so that more is brighter; padding pixels are black. Colour comes out as RGB.

    Returns:
        (H, W) or (H, W, 3) uint8.

    Raises:
        ImageError: no pixels, several frames, a segmentation, mirrored, too large, or damaged.
    """
    ds = _dataset(path)
    if ds.get("SOPClassUID") == SEGMENTATION:
        raise ImageError(path, f"{path.name} is a DICOM segmentation, not an image; it belongs in the column 'mask'.")
    colour = str(ds.get("PhotometricInterpretation", ""))
    with decoding(path, "DICOM"):
        _refuse_mirrored(path, ds)
    stored = _stored(path, ds)
    with decoding(path, "DICOM"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd attribute; what matters is checked here
        if colour == "PALETTE COLOR":
            from pydicom.pixels.processing import apply_color_lut

            table = np.asarray(apply_color_lut(stored, ds))
            return to_bytes(table, 0, 255 if table.dtype == np.uint8 else 65535)
        if stored.ndim == 3:
            top = (1 << int(ds.get("BitsStored", 8))) - 1
            return stored if stored.dtype == np.uint8 and top == 255 else to_bytes(stored, 0, top)
        if colour not in ("MONOCHROME1", "MONOCHROME2"):
            raise ImageError(path, f"{path.name} has a photometric interpretation that is not read. Export it as MONOCHROME2 or RGB.")
        pixels = _windowed(path, ds, stored)
        if colour == "MONOCHROME1":
            pixels = np.uint8(255) - pixels
        padding = _padding(ds, stored)
        return pixels if padding is None else np.where(padding, np.uint8(0), pixels)


def read_dicom_values(path: Path) -> NDArray[Any]:
    """Stored values (H, W) or (H, W, 3) of a mask: a one-segment binary SEG, or any single-frame image, without windowing.

    Raises:
        ImageError: several frames or segments, a fractional segmentation, or damaged; or a SEG while highdicom is absent.
    """
    ds = _dataset(path)
    with decoding(path, "DICOM"):
        _refuse_mirrored(path, ds)
    return _segment(path) if ds.get("SOPClassUID") == SEGMENTATION else _stored(path, ds)


def _segment(path: Path) -> NDArray[Any]:
    try:
        import highdicom
    except ImportError:
        raise ImageError(path, f"{path.name} is a DICOM segmentation; install its reader: pip install 'tmca-fl[dicom]'.") from None
    with decoding(path, "DICOM SEG"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg = highdicom.seg.segread(path)
        if seg.segmentation_type.value != "BINARY":
            raise ImageError(path, f"{path.name} is a {seg.segmentation_type.value} segmentation; masks are binary. Threshold it first.")
        if seg.number_of_segments != 1:
            raise ImageError(path, f"{path.name} has {seg.number_of_segments} segments; a case has one. Write the one its report means.")
        values: NDArray[Any] = seg.pixel_array
        return values.reshape(int(seg.Rows), int(seg.Columns))


def _dataset(path: Path) -> Dataset:
    """The data set, after its header alone has passed the guards."""
    import pydicom

    with decoding(path, "DICOM"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A deflated file is unpacked whole by the reader, however large it becomes.
        if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
            raise ImageError(
                path, f"{path.name} is deflated as a whole. Save it in another transfer syntax, e.g. Explicit VR Little Endian."
            )
        head = pydicom.dcmread(path, stop_before_pixels=True)
        rows, columns, frames = (int(head.get(name) or 0) for name in ("Rows", "Columns", "NumberOfFrames"))
        if not rows or not columns:
            raise ImageError(path, f"{path.name} is a DICOM object without an image.")
        if frames > 1:
            raise ImageError(path, f"{path.name} has {frames} frames; a case is one. Write the wanted frame as its own file.")
        check_size(path, columns, rows)
        ds = pydicom.dcmread(path)
        if "PixelData" not in ds:
            raise ImageError(path, f"{path.name} has no pixel data: it is truncated, or float pixels, which are not read.")
        return ds


def _stored(path: Path, ds: Dataset) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pixel_array(ds)  # YBR becomes RGB
        except Exception as error:  # codecs raise anything on damaged frames, and RuntimeError where a codec is missing
            text = " ".join(str(error).split())  # kept only where it is of a codec that is not installed: else it may be the header's
            text = text[:240] if "missing dependencies" in text else type(error).__name__
            raise ImageError(path, f"{path.name}: its pixels cannot be decoded ({text}).") from None


def _refuse_mirrored(path: Path, ds: Dataset) -> None:
    """A plane stored with the patient's right on the image's right would make every side of its report wrong."""
    cosines = ds.get("ImageOrientationPatient")
    if cosines is None and ds.get("SharedFunctionalGroupsSequence"):  # segmentations and enhanced objects
        planes = ds.SharedFunctionalGroupsSequence[0].get("PlaneOrientationSequence")
        cosines = planes[0].get("ImageOrientationPatient") if planes else None
    # DICOM's x axis runs to the patient's left (PS3.3 C.7.6.2.1.1): a row running against it is mirrored.
    across = np.asarray([float(v) for v in cosines[:3]]) if cosines and len(cosines) == 6 else None
    by_cosines = across is not None and across[0] < 0 and abs(across[0]) == np.abs(across).max()
    words = ds.get("PatientOrientation")
    by_words = across is None and words and not isinstance(words, str) and str(words[0]).upper().startswith("R")
    if by_cosines or by_words:
        raise ImageError(
            path,
            f"{path.name} is stored mirrored (the patient's right is on the image's right). Flip it, and its mask, to the usual display.",
        )


def _padding(ds: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    value = ds.get("PixelPaddingValue")
    if value is None:
        return None
    ends = sorted((int(value), int(ds.get("PixelPaddingRangeLimit", value))))
    padding: NDArray[np.bool_] = (stored >= ends[0]) & (stored <= ends[1])
    return None if padding.all() else padding


def _windowed(path: Path, ds: Dataset, stored: NDArray[Any]) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(stored, ds))
    check_finite(path, values)
    if ds.get("VOILUTSequence"):
        table = ds.VOILUTSequence[0]
        return to_bytes(np.asarray(apply_voi(values, ds)), 0, (1 << int(table.LUTDescriptor[2])) - 1)
    width, centre = _first(ds.get("WindowWidth")), _first(ds.get("WindowCenter"))
    if width is not None and centre is not None and np.isfinite((width, centre)).all() and width >= 1:
        return _linear_or_sigmoid(values, centre, width, str(ds.get("VOILUTFunction") or "LINEAR"))
    if stored.dtype == np.uint8 and int(ds.get("BitsStored", 8)) == 8 and values.dtype == np.uint8:
        return values
    padding = _padding(ds, stored)
    return to_bytes(values, *percentile_window(values, None if padding is None else ~padding))


def _first(value: Any) -> float | None:
    """First of one or several windows."""
    if value is None or value == "":
        return None
    return float(value[0]) if hasattr(value, "__getitem__") and not isinstance(value, str) else float(value)


def _linear_or_sigmoid(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, mapped to 0..255."""
    if function == "SIGMOID":
        return to_bytes(1 / (1 + np.exp(np.clip(-4 * (values.astype(np.float64) - centre) / width, -500, 500))), 0, 1)
    if function == "LINEAR_EXACT":
        return to_bytes(values, centre - width / 2, centre + width / 2)
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return to_bytes(values, low, high) if high > low else np.where(values > high, np.uint8(255), np.uint8(0)).astype(np.uint8)
