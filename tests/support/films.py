"""Invented radiographs as a hospital has them: DICOM files whose headers name a person who does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

SECRETS = ("Krawczyk", "Zbigniew", "MRN-77120", "ACC-4411", "19510304", "St. Brendan", "20240229")
"""What must be in nothing that an import writes; a UID besides."""


def pixels(seed: int = 0, shape: tuple[int, int] = (40, 56)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, shape).astype(np.uint16)


def film(path: Path, picture: np.ndarray | None = None, **attributes: Any) -> Dataset:
    """Write a film; an attribute of None is left out. Returns what was written."""
    picture = pixels() if picture is None else picture
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = attributes.pop("syntax", ExplicitVRLittleEndian)
    values = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "PatientID": "MRN-77120",
        "PatientName": "Krawczyk^Zbigniew",
        "PatientBirthDate": "19510304",
        "PatientSex": "M",
        "AccessionNumber": "ACC-4411",
        "InstitutionName": "St. Brendan",
        "StudyDate": "20240229",
        "StudyTime": "101500",
        "StudyID": "1",
        "ReferringPhysicianName": None,
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "Modality": "DX",
        "ViewPosition": "PA",
        "BurnedInAnnotation": "NO",
        "Rows": picture.shape[-2],
        "Columns": picture.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
        "PixelData": picture.tobytes(),
    } | attributes
    for name, value in values.items():
        if value is not None:
            setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", ComputedRadiographyImageStorage)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return ds


def everything_in(folder: Path) -> bytes:
    """Names and contents of all files below a folder."""
    return b"\n".join(str(path).encode() + b"\n" + (path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))
