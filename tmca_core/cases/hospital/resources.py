"""FHIR resources (R4): from bundles and NDJSON in a folder, or page by page from a server; and what references point to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmca_core.cases.hospital.objects import Unusable
from tmca_core.cases.hospital.service import MOST_JSON, Service, ServiceError
from tmca_core.errors import ManifestError

REPORT = "DiagnosticReport"
JSON = "application/fhir+json"
PAGE = 100

Resource = Mapping[str, Any]


@dataclass
class Resources:
    """What a source holds.

    Attributes:
        reports: (where it was found, which may name a person; the report, or why it could not be read).
        known: resources by every name that a reference may use for them.
        service: asked for what is not `known`; None: there is nobody to ask.
    """

    reports: list[tuple[str, Resource | Unusable]] = field(default_factory=list)
    known: dict[str, Resource] = field(default_factory=dict)
    service: Service | None = None

    @classmethod
    def of_folder(cls, source: Path) -> Resources:
        """Every .json and .ndjson file below a folder, or one such file: bundles, single resources, or one resource a line.

        Raises:
            ManifestError: there is nothing there.
        """
        if not source.exists():
            raise ManifestError(f"{source} does not exist. Give a folder or file of FHIR JSON, or the https address of a FHIR server.")
        found = cls()
        root = source.resolve()
        files = [root] if root.is_file() else sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
        for path in files:
            where = path.name if root.is_file() else str(path.relative_to(root))
            try:
                if not path.resolve().is_relative_to(root):
                    raise Unusable("is a link that leads out of the folder.")
                for place, value in _values(path):
                    found.add(f"{where}{place}", value)
            except Unusable as fault:
                found.reports.append((where, fault))
        return found

    @classmethod
    def of_server(cls, service: Service, query: Mapping[str, str]) -> Resources:
        """Every report that a query finds, whatever its status.

        Raises:
            ServiceError: the server does not answer, refuses, or answers with what is no bundle.
        """
        found = cls(service=service)
        page, seen = str(service.address(REPORT).copy_merge_params({"_count": str(PAGE), **query})), set[str]()
        while page and page not in seen:
            seen.add(page)
            bundle = service.json(page, accept=JSON)
            if not isinstance(bundle, Mapping) or bundle.get("resourceType") != "Bundle":
                raise ServiceError(f"{service.base.host} answers a search with what is no bundle: is the address that of FHIR?")
            found.add(f"page {len(seen)}", bundle)
            page = next((str(link.get("url")) for link in listed(bundle, "link") if link.get("relation") == "next"), "")
        return found

    def add(self, where: str, value: Any, address: str = "") -> None:
        """Take in a bundle or a resource."""
        if not isinstance(value, Mapping) or not isinstance(value.get("resourceType"), str):
            self.reports.append((where, Unusable("is JSON, but no FHIR resource.")))
            return
        if value["resourceType"] == "Bundle":
            for number, entry in enumerate(listed(value, "entry"), start=1):
                if isinstance(entry.get("resource"), Mapping):
                    self.add(f"{where}, entry {number}", entry["resource"], str(entry.get("fullUrl") or ""))
            return
        names = [address, f"{value['resourceType']}/{value['id']}" if value.get("id") else ""]
        self.known |= {name: value for name in names if name}
        if value["resourceType"] == REPORT:
            self.reports.append((where, value))

    def resolve(self, reference: Resource, inside: Resource) -> Resource | None:
        """What a reference points to; None where that is not to be had.

        Args:
            reference: a FHIR Reference.
            inside: the resource that it stands in, which may contain its target.

        Raises:
            ServiceError: the server was asked for it, and did not give it.
        """
        name = str(reference.get("reference") or "").partition("/_history/")[0]
        if name.startswith("#"):
            return next((one for one in listed(inside, "contained") if f"#{one.get('id')}" == name), None)
        if name and name not in self.known and self.service is not None:
            value = self.service.json(name, accept=JSON)
            self.known[name] = value if isinstance(value, Mapping) else {}
        return self.known.get(name)


def listed(value: Resource, key: str) -> list[Resource]:
    """The objects below a key: of a list those that are objects, one object as a list of it, [] where there is nothing."""
    found = value.get(key)
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, Mapping)]


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place in the file, JSON value) of everything in a file.

    Raises:
        Unusable: it is no JSON, or too large.
    """
    kind = path.suffix.lower()
    if kind not in (".json", ".ndjson", ".jsonl"):
        raise Unusable("is no .json or .ndjson file.")
    try:
        if kind == ".json" and path.stat().st_size > MOST_JSON:
            raise Unusable(f"has more than {MOST_JSON >> 20} MB; export it as NDJSON.")
        if kind == ".json":
            yield "", json.loads(path.read_bytes())
            return
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_JSON), b""), start=1):
                if line.strip():
                    yield f", line {number}", json.loads(line)
    except OSError as error:
        raise Unusable(f"cannot be opened ({error.strerror or type(error).__name__}).") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"is no well-formed JSON ({type(error).__name__}); nothing after the fault is read.") from None
