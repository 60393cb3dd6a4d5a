"""Films from a DICOMweb server: QIDO-RS says what there is, WADO-RS gives it, one object at a time (PS3.18)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tmca_core.cases.hospital.films import Source
from tmca_core.cases.hospital.objects import Unusable, Wanted, of_modality
from tmca_core.cases.hospital.service import Service, ServiceError
from tmca_core.errors import ConfigError

PAGE = 200
MOST_OBJECT = 512 << 20  # bytes; the largest image that is decoded has 64 million pixels
JSON = "application/dicom+json"
OBJECT = 'multipart/related; type="application/dicom"'  # without a transfer syntax: uncompressed, which can be read everywhere
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def sources_of(service: Service, wanted: Wanted, query: Mapping[str, str], folder: Path, limit: int = 0) -> list[Source]:
    """Every object of the studies that a query finds, not yet fetched; a series of another modality is one that is not fetched.

    Args:
        service: whose base address ends where `/studies` begins.
        wanted: modalities that are fetched; segmentations always are.
        query: QIDO attributes of studies, e.g. {"StudyDate": "20240101-20240131"}.
        folder: an object is there while it is looked at.
        limit: most studies; 0: all.

    Raises:
        ServiceError: the server does not answer, refuses, or answers with what is no DICOM JSON.
        ConfigError: an attribute is none.
    """
    for name in query:
        if not re.fullmatch(r"[A-Za-z]{2,64}|[0-9A-Fa-f]{8}", name):
            raise ConfigError(f"--query {name}: give attributes of studies by keyword or tag, e.g. StudyDate=20240101-20240131.")
    found: list[Source] = []
    for number, study in enumerate(_answers(service, "studies", _STUDY, query), start=1):
        if limit and number > limit:
            break
        uid = _uid(study, _STUDY)
        for series in _answers(service, f"studies/{uid}/series", _SERIES, {}):
            path = f"studies/{uid}/series/{_uid(series, _SERIES)}"
            modality = str(_value(series, _MODALITY) or "")
            if modality not in (*wanted.modalities, "SEG"):
                found.append(Source(path, partial(_refused, f"{of_modality(modality)}: a whole series that was not fetched.")))
                continue
            for instance in _answers(service, f"{path}/instances", _INSTANCE, {}):
                place = f"{path}/instances/{_uid(instance, _INSTANCE)}"
                found.append(Source(place, partial(_fetched, service, place, folder)))
    return found


def _answers(service: Service, path: str, key: str, query: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Page by page until nothing new comes, whatever the server makes of `limit` and `offset`."""
    seen: set[str] = set()
    while True:
        page = service.json(path, {**query, "limit": PAGE, "offset": len(seen)}, JSON) or []
        if not isinstance(page, list) or not all(isinstance(one, Mapping) for one in page):
            raise ServiceError(f"{service.base.host} answers a search with what is no DICOM JSON: is the address that of DICOMweb?")
        fresh = [one for one in page if _uid(one, key) not in seen]
        if not fresh:
            return
        for one in fresh:
            seen.add(_uid(one, key))
            yield one


def _refused(reason: str) -> NoReturn:
    raise Unusable(reason)


@contextmanager
def _fetched(service: Service, place: str, folder: Path) -> Iterator[Path]:
    """An object in a file of its own, as long as it is looked at."""
    try:
        content_type, body = service.get(place, OBJECT, most=MOST_OBJECT)
        data = only_part(content_type, body)
    except ServiceError as error:
        raise Unusable(f"could not be fetched: {error}") from None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".incoming-", suffix=".dcm") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def only_part(content_type: str, body: bytes) -> bytes:
    """The one object in a WADO-RS answer; some servers send it bare.

    Raises:
        ServiceError: there is none, or more than one, or the answer is cut off.
    """
    about = Message()
    about["content-type"] = content_type
    if about.get_content_type() == "application/dicom":
        return body
    boundary = about.get_boundary()
    if about.get_content_type() != "multipart/related" or not boundary:
        raise ServiceError("the answer is neither multipart/related nor application/dicom.")
    mark = b"--" + boundary.encode()
    begin = body.find(b"\r\n\r\n", max(0, body.find(mark))) + 4
    end = body.find(b"\r\n" + mark, begin)
    if begin < 4 or end < 0 or not body[end + 2 + len(mark) :].startswith(b"--"):
        raise ServiceError("the answer is cut off, or holds more than one object.")
    return body[begin:end]


def _value(answer: Mapping[str, Any], tag: str) -> Any:
    """First value of an attribute in DICOM JSON; None where there is none."""
    attribute = answer.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return values[0] if isinstance(values, list) and values else None


def _uid(answer: Mapping[str, Any], tag: str) -> str:
    """A UID; it becomes part of an address."""
    text = str(_value(answer, tag))
    if len(text) > 64 or not _UID.fullmatch(text):
        raise ServiceError(f"the server answers a search without a UID in {tag}.")
    return text
