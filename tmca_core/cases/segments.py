"""Masks as DICOM SEG: written over the film that they were drawn on, and read back with the film they belong to."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from tmca_core.cases.dicom import SEGMENTATION
from tmca_core.cases.pixels import MAX_PIXELS, decoding, kind_of
from tmca_core.config import Section
from tmca_core.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from types import ModuleType

    from pydicom import Dataset

MOST_SEGMENTS = 255  # with more, nobody drew them; what a film's size bounds is a single one
SERIES_NUMBER = 8000  # out of the way of the scanner's own series

Code = Annotated[tuple[str, str, str], Field(description="Coding scheme, value and meaning.")]

_FINDING: Code = ("SCT", "49755003", "Morphologically Abnormal Structure")
_ANATOMY: Code = ("SCT", "123037004", "Anatomical Structure")


class SegmentRules(Section):
    """How one target is written: what viewers show, and what it is in a terminology."""

    label: str = Field("", max_length=64, description="What viewers show; empty: the target's name.")
    category: Code = Field(_FINDING, description="Segmented property category (DICOM CID 7150).")
    type: Code = Field(("SCT", "52988006", "Lesion"), description="Segmented property type (DICOM CID 7151 and others).")


IMPERSONAL = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)
"""Attributes of a film that a SEG without a person takes over. The UIDs lead back to the film, for whoever has it."""

DEFAULTS: Mapping[str, SegmentRules] = {
    "lung": SegmentRules(category=_ANATOMY, type=("SCT", "39607008", "Lung")),
    "lungs": SegmentRules(category=_ANATOMY, type=("SCT", "39607008", "Lung")),
    "left-lung": SegmentRules(category=_ANATOMY, type=("SCT", "44029006", "Left lung")),
    "right-lung": SegmentRules(category=_ANATOMY, type=("SCT", "3341006", "Right lung")),
    "heart": SegmentRules(category=_ANATOMY, type=("SCT", "80891009", "Heart")),
    "liver": SegmentRules(category=_ANATOMY, type=("SCT", "10200004", "Liver")),
    "nodule": SegmentRules(type=("SCT", "27925004", "Nodule")),
    "mass": SegmentRules(type=("SCT", "4147007", "Mass")),
    "tumour": SegmentRules(type=("SCT", "108369006", "Neoplasm")),
    "tumor": SegmentRules(type=("SCT", "108369006", "Neoplasm")),
    "effusion": SegmentRules(type=("SCT", "60046008", "Pleural effusion")),
    "pneumothorax": SegmentRules(type=("SCT", "36118008", "Pneumothorax")),
}
"""Names of targets that say what they are; any other is a lesion unless the hospital's file says otherwise."""


@dataclass(frozen=True)
class Drawn:
    """A segmentation of one film, as it was read.

    Attributes:
        film: SOPInstanceUID of the film.
        masks: segment label → (H, W) uint8 of 0 and 1.
    """

    film: str
    masks: Mapping[str, NDArray[np.uint8]]


def load_codes(path: Path | None) -> dict[str, SegmentRules]:
    """The hospital's own labels and codes, a table a target; `DEFAULTS` where there is no file.

    Raises:
        ConfigError: the file cannot be read, or a key or code is wrong.
    """
    if path is None:
        return dict(DEFAULTS)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        own = {name: SegmentRules.model_validate(value) for name, value in values.items()}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the segment codes {path}: {error}.") from None
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in error.errors())
        raise ConfigError(f'segment codes {path}: {faults}. A code is ["SCT", "52988006", "Lesion"].') from None
    return {**DEFAULTS, **own}


def write_segments(
    film: Path,
    masks: Mapping[str, NDArray[np.bool_]],
    out: Path,
    *,
    codes: Mapping[str, SegmentRules],
    algorithm: str,
    version: str,
    person: bool = True,
) -> None:
    """Write masks as one binary DICOM SEG over their film, a segment each, also where a mask is empty; for its owner to read alone.

    Patient, study and frame of reference are the film's own, so the file says as much of the person as the film does.

    Args:
        film: single-frame DICOM image.
        masks: target → (H, W) on the film's own pixel grid; they may overlap.
        out: file to write.
        codes: as `load_codes` gives them.
        algorithm, version: who drew, as viewers show it.
        person: without it nothing of the film's header is taken but its UIDs and its geometry.

    Raises:
        ConfigError: highdicom is not installed.
        ImageError: the film is no single-frame DICOM image, is of another size, or lacks what a SEG must refer to.
    """
    highdicom = _highdicom("DICOM SEG is written by highdicom")
    source = _film(film, next(iter(masks.values())).shape, person)
    who = highdicom.AlgorithmIdentificationSequence(name=algorithm[:64], family=_code(highdicom, _AI), version=version[:64])
    described = []
    for number, name in enumerate(masks, start=1):
        rules = codes.get(name, SegmentRules())
        described.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=rules.label or name[:64],
                segmented_property_category=_code(highdicom, rules.category),
                segmented_property_type=_code(highdicom, rules.type),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=who,
                tracking_id=name[:64],
                tracking_uid=highdicom.UID(),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the film itself has odd, which is copied
        try:
            made = highdicom.seg.Segmentation(
                source_images=[source],
                pixel_array=np.stack(list(masks.values()), axis=-1)[None],
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=described,
                series_instance_uid=highdicom.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="tmca-fl",
                manufacturer_model_name=algorithm[:64],
                software_versions=version[:64],
                device_serial_number="none",
                content_label="SEGMENTATION",
                omit_empty_frames=False,  # a reader must be able to tell "nothing there" from "not looked for"
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom finds missing or wrong in the film's header
            # An AttributeError says which attribute is missing; others may say what stands in one.
            what = (
                " ".join(str(error).split())[:240] if isinstance(error, AttributeError) else f"its header is odd ({type(error).__name__})"
            )
            raise ImageError(film, f"no DICOM SEG can refer to {film.name}: {what}.") from None
    _save(made, out)


def read_segments(path: Path) -> Drawn:
    """The masks of a binary SEG over one single-frame film.

    Raises:
        ConfigError: highdicom is not installed.
        ImageError: fractional, over several films, too large, without a reference to its film, or damaged.
    """
    highdicom = _highdicom(f"{path.name} is a DICOM segmentation, which highdicom reads")
    import pydicom

    with decoding(path, "DICOM SEG"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = pydicom.dcmread(path, stop_before_pixels=True)
        if head.get("SOPClassUID") != SEGMENTATION:
            raise ImageError(path, f"{path.name} is no DICOM segmentation.")
        frames = int(head.get("NumberOfFrames") or 0)
        if not 0 < frames <= MOST_SEGMENTS or int(head.Rows) * int(head.Columns) * frames > 4 * MAX_PIXELS:
            raise ImageError(path, f"{path.name} has {frames} frames of {head.Columns} × {head.Rows} pixels: it is not drawn on one film.")
        seg = highdicom.seg.segread(path)
        if seg.segmentation_type.value != "BINARY":
            raise ImageError(path, f"{path.name} is a {seg.segmentation_type.value} segmentation; masks are binary. Threshold it first.")
        films = seg.get_source_image_uids()
        if len(films) != 1:
            raise ImageError(path, f"{path.name} refers to {len(films)} images; a mask belongs to one film.")
        labels = [str(segment.SegmentLabel) for segment in seg.SegmentSequence]
        if len(set(labels)) < len(labels):
            raise ImageError(path, f"{path.name} has two segments of one label.")
        pixels = seg.get_pixels_by_source_instance([films[0][2]], combine_segments=False, assert_missing_frames_are_empty=True)
        return Drawn(str(films[0][2]), {label: np.ascontiguousarray(pixels[0, :, :, k]) for k, label in enumerate(labels)})


_AI: Code = ("DCM", "123110", "Artificial Intelligence")


def _highdicom(what: str) -> ModuleType:
    try:
        import highdicom
    except ImportError:
        raise ConfigError(f"{what}, and it is not installed: pip install 'tmca-fl[dicom]'.") from None
    module: ModuleType = highdicom
    return module


def _film(path: Path, shape: Sequence[int], person: bool) -> Dataset:
    """The header that a SEG refers to, or of it only what names nobody; pixels are not needed."""
    if kind_of(path) != "dicom":
        raise ImageError(path, f"{path.name} is no DICOM image, so no DICOM SEG can refer to it. Write a PNG.")
    import pydicom

    with decoding(path, "DICOM"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source: Dataset = pydicom.dcmread(path, stop_before_pixels=True)
        size = (int(source.Rows), int(source.Columns))
    if size != tuple(shape):
        raise ImageError(path, f"{path.name} is {size[1]} × {size[0]} pixels, its mask {shape[1]} × {shape[0]}.")
    if not person:
        about, whole = source.file_meta, source
        source = pydicom.Dataset()
        for name in IMPERSONAL:
            if name in whole:
                source.add(whole[name])
        source.file_meta = about
    if "PixelSpacing" in source and "SliceThickness" not in source:  # a radiograph has none, and readers want both or neither
        del source.PixelSpacing
    # Type 2 attributes may be empty and must be there; some exports leave them out.
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
        if name not in source:
            setattr(source, name, None)
    if "ReferringPhysicianName" not in source:
        source.ReferringPhysicianName = None
    return source


def _code(highdicom: ModuleType, code: Code) -> Any:
    return highdicom.sr.CodedConcept(value=code[1], scheme_designator=code[0], meaning=code[2])


def _save(made: Dataset, out: Path) -> None:
    """Whole or not at all, for a PACS may be watching the folder; and for its owner alone, for it may name a person."""
    import io

    from tmca_core.run import write_atomically

    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    write_atomically(out, buffer.getvalue(), private=True)
