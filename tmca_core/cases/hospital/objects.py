"""One DICOM object of a hospital: a film that can be a case, a segmentation of one, or the reason why it is neither."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tmca_core.cases.dicom import DEFLATED, SEGMENTATION, read_dicom
from tmca_core.cases.hospital.pseudonyms import Pseudonyms
from tmca_core.cases.segments import read_segments
from tmca_core.errors import ImageError
from tmca_core.text.screen.headers import Header, read_header

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("CR", "DX", "RG", "PX", "IO", "MG", "ES", "GM", "XC", "OP")
"""Whose object is one picture that a report is about. Of CT, MR, US and others a report is about many: ask for them by name."""
LATERAL = ("LL", "RL", "LLD", "RLD", "LAT", "LATERAL", "ML", "LM")
_DIRECTORY = "1.2.840.10008.1.3.10"
VIEWS = ("AP", "PA", "CC", "MLO", "LMO", "XCCL", "XCCM", "FB", "SIO", "ISO", "RLO", "LLO", *LATERAL)
"""Views that a table may name: any other text of the header stays outside, for it may be anything."""

DAMAGED = (ValueError, KeyError, AttributeError, NotImplementedError, EOFError, TypeError, OverflowError)
"""What pydicom raises on a header that is damaged."""


@dataclass(frozen=True)
class Wanted:
    """Which films become cases.

    Attributes:
        modalities: of the header.
        lateral: also lateral views, on which left and right lie over each other.
        targets: segment labels that become masks; (): the one segment of a segmentation, whatever its name.
    """

    modalities: tuple[str, ...] = MODALITIES
    lateral: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Film:
    """A film as it goes into a manifest.

    Attributes:
        case_id, patient_id, study: pseudonyms; `accession` too, "" where the header has none.
        modality, view: codes of the header; `view` may be "".
        pixels: (H, W) or (H, W, 3) uint8, as `read_dicom` gives them.
        header: what it says of the person, for warnings.
    """

    case_id: str
    patient_id: str
    study: str
    accession: str
    modality: str
    view: str
    pixels: NDArray[np.uint8]
    header: Header | None


@dataclass(frozen=True)
class Masks:
    """A segmentation of a film.

    Attributes:
        case_id: of the film.
        masks: target → (H, W) uint8 of 0 and 1; the target "" where there is one without a name.
    """

    case_id: str
    masks: dict[str, NDArray[np.uint8]]


class Unusable(Exception):
    """Why an object is not used; `id` is its pseudonym, "" where it has not said who it is. Caught by the import."""

    def __init__(self, reason: str, id: str = "") -> None:
        super().__init__(reason)
        self.reason, self.id = reason, id


def read_object(path: Path, wanted: Wanted, ids: Pseudonyms, number: int) -> Film | Masks:
    """Judge an object by its header, and read what is usable.

    Args:
        path: a file. Its name may be that of a person: no reason holds it.
        wanted: what becomes a case.
        ids: of the site.
        number: of the object, for its `Header`.

    Raises:
        Unusable: what it is instead, or what is wrong with it.
        ConfigError: it is a segmentation, and highdicom is not installed.
    """
    from pydicom.config import disable_value_validation

    head, id = _header(path), ""
    try:
        with disable_value_validation(), warnings.catch_warnings():  # else pydicom warns and logs, in the header's own words
            warnings.simplefilter("ignore")
            uid = str(head.get("SOPInstanceUID") or "")
            id = ids.of("film", uid) if uid else ""
            if head.get("SOPClassUID") == SEGMENTATION:
                return _masks(path, wanted, ids)
            _judge(head, wanted)
            return _film(path, head, id, ids, number)
    except ImageError as error:
        raise Unusable(error.reason.replace(path.name, "the file"), id) from None
    except Unusable as fault:
        raise Unusable(fault.reason, id) from None
    except DAMAGED as error:  # pydicom reads an attribute when it is asked for, so that a damaged one shows only now
        raise Unusable(f"has a header that cannot be read ({type(error).__name__}): it is damaged.", id) from None


def _film(path: Path, head: Dataset, id: str, ids: Pseudonyms, number: int) -> Film:
    pixels = read_dicom(path)
    accession = str(head.get("AccessionNumber") or "").strip()
    return Film(
        id,
        ids.of("patient", str(head.PatientID)),
        ids.of("study", str(head.StudyInstanceUID)),
        ids.of("accession", accession) if accession else "",
        _text(head, "Modality"),
        view if (view := _text(head, "ViewPosition")) in VIEWS else "",
        pixels,
        read_header(path, number),
    )


def _header(path: Path) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                raise Unusable("is no DICOM file: the mark of one (PS3.10) is missing.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            about = pydicom.filereader.read_file_meta_info(path)
            # A deflated file is unpacked whole by the reader, however large it becomes.
            if about.get("TransferSyntaxUID") == DEFLATED:
                raise Unusable("is deflated as a whole: save it in another transfer syntax, e.g. Explicit VR Little Endian.")
            if about.get("MediaStorageSOPClassUID") == _DIRECTORY:
                raise Unusable("is the index of a medium (DICOMDIR), not an image.")
            head = pydicom.dcmread(path, stop_before_pixels=True)
            head.file_meta = about
            return head
    except OSError as error:
        raise Unusable(f"cannot be opened ({error.strerror or type(error).__name__}).") from None
    except (InvalidDicomError, *DAMAGED) as error:
        raise Unusable(f"cannot be read as DICOM ({type(error).__name__}): it is truncated or damaged.") from None


def _judge(head: Dataset, wanted: Wanted) -> None:
    """Refuse what is no film of a case, before its pixels are read."""
    if not int(head.get("Rows") or 0) or not int(head.get("Columns") or 0):
        raise Unusable("is a DICOM object without an image (a report, a presentation state, a plan or the like).")
    modality = _text(head, "Modality")
    if modality not in wanted.modalities:
        raise Unusable(f"{of_modality(modality)}: name it with --modality if its single images are cases.")
    if (frames := int(head.get("NumberOfFrames") or 1)) > 1:
        raise Unusable(f"has {frames} frames; a case is one. Write the wanted frame as its own object.")
    if str(head.get("PresentationIntentType") or "").upper() == "FOR PROCESSING":
        raise Unusable("holds the detector's raw values (FOR PROCESSING); its twin FOR PRESENTATION is what was read and reported.")
    if str(head.get("BurnedInAnnotation") or "").upper() == "YES":
        raise Unusable("says that text is burned into its pixels (BurnedInAnnotation = YES), which may be a name: blacken it first.")
    if not wanted.lateral and _text(head, "ViewPosition") in LATERAL:
        raise Unusable("is a lateral view: left and right lie over each other on it. It is taken with --lateral.")
    for name in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        if not str(head.get(name) or "").strip():
            raise Unusable(f"has no {name}: whose it is cannot be told, and a patient must be one patient everywhere.")
    _refuse_undecodable(head)


def _refuse_undecodable(head: Dataset) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = UID(str(head.file_meta.get("TransferSyntaxUID") or ""))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Unusable(f"is in the transfer syntax {_named(syntax)}, which is not supported: have it sent uncompressed.") from None
    if not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies)
        raise Unusable(
            f"is in the transfer syntax {_named(syntax)}, for which no decoder is here ({missing}): or have it sent uncompressed."
        )


def _named(syntax: str) -> str:
    """A transfer syntax of the standard by its name; another one is text of the file, and not repeated."""
    name = str(getattr(syntax, "name", ""))
    return name if name and name != str(syntax) else "of a maker"


def _masks(path: Path, wanted: Wanted, ids: Pseudonyms) -> Masks:
    drawn = read_segments(path)
    case_id = ids.of("film", drawn.film)
    if not wanted.targets:
        if len(drawn.masks) != 1:
            raise Unusable(f"is a segmentation with {len(drawn.masks)} segments: name those that become masks with --targets.")
        return Masks(case_id, {"": next(iter(drawn.masks.values()))})
    by_name = {_plain(label): mask for label, mask in drawn.masks.items()}
    if missing := [name for name in wanted.targets if _plain(name) not in by_name]:
        raise Unusable(f"is a segmentation without a segment '{missing[0]}'; where it is absent, its segment is there and empty.")
    return Masks(case_id, {name: by_name[_plain(name)] for name in wanted.targets})


def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def of_modality(code: str) -> str:
    """That a modality is not asked for; a code that is none of the standard's two letters is not repeated."""
    return f"has the modality '{code}', which is not asked for" if re.fullmatch(r"[A-Z]{2}", code) else "has no modality that is asked for"


def _text(head: Dataset, name: str) -> str:
    return str(head.get(name) or "").strip().upper()
