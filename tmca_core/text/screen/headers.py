"""What the header of a DICOM image says of the person, and whether it says that text is burned into the pixels."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from tmca_core.cases.dicom import DEFLATED

# Of the basic application-level confidentiality profile (PS3.15 E.1), the attributes that name or number a person.
PERSONAL = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientBirthName",
    "PatientMotherBirthName",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "MilitaryRank",
    "ResponsiblePerson",
    "AccessionNumber",
    "AdmissionID",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "OperatorsName",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
    "DeviceSerialNumber",
)
_SAID = ("PatientIdentityRemoved", "BurnedInAnnotation", "RecognizableVisualFeatures")
_EMPTY = re.compile(
    r"[\s^]*|(?:anon\w*|de-?identified|removed|redacted|none|unknown|pseudo\w*|subject|case|phantom|test)[\s^_-]*\w{0,64}", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Header:
    """What one DICOM image says; the values themselves are not kept.

    Attributes:
        row: of the manifest.
        tags: keywords of personal attributes that hold something.
        burned_in: BurnedInAnnotation: "YES", "NO", or None where the file does not say.
    """

    row: int
    tags: tuple[str, ...]
    burned_in: str | None


def read_header(path: Path, row: int) -> Header | None:
    """The header of a DICOM image; None for a file of another kind, or one that cannot be read (`tmca data check` names these).

    PatientID is no finding where the file says that the identity was removed: it is a pseudonym then.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A deflated file is unpacked whole by the reader, however large it becomes.
            if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
                return None
            ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*PERSONAL, *_SAID])
            removed = str(ds.get("PatientIdentityRemoved", "")).upper() == "YES"
            held = [name for name in PERSONAL if not _EMPTY.fullmatch(str(ds.get(name) or ""))]
            burned = str(ds.get("BurnedInAnnotation", "")).upper() or None
    except (OSError, InvalidDicomError, ValueError, KeyError, AttributeError, NotImplementedError, EOFError, TypeError):
        return None
    return Header(row, tuple(name for name in held if not (removed and name == "PatientID")), burned)
