"""Reports into a manifest: every DiagnosticReport is matched to its films by pseudonym, or listed with the reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tmca_core.cases.hospital.objects import Unusable
from tmca_core.cases.hospital.pseudonyms import Kind, Pseudonyms
from tmca_core.cases.hospital.resources import Resource, Resources, listed
from tmca_core.cases.hospital.rows import Rows, Skipped, reasons
from tmca_core.cases.hospital.service import ServiceError
from tmca_core.cases.hospital.wording import Prefer, text_of

STATUSES = ("final", "amended", "corrected")
DICOM_UID = "urn:dicom:uid"
ACCESSION = "ACSN"  # of HL7's table of identifier types (v2-0203)


@dataclass
class Matched:
    """What an import of reports did.

    Attributes:
        reports: looked at. `films`: that got a report now. `without`: films that have none still.
        skipped: every report that was not used, in order.
    """

    manifest: Path
    reports: int = 0
    films: int = 0
    without: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def to_json(self, show: bool = False) -> dict[str, Any]:
        """One JSON object, without the hospital's own ids unless they are asked for."""
        numbers = {"reports": self.reports, "films": self.films, "without_report": self.without}
        skipped = {"skipped": [one.to_json(show) for one in self.skipped], "reasons": dict(reasons(self.skipped))}
        return {"manifest": str(self.manifest), **numbers, **skipped}


@dataclass(frozen=True)
class Candidate:
    """A report that could be a film's.

    Attributes:
        number, id, where: as in `Skipped`.
        rank: what is amended or corrected goes before what is final, then the newest first.
        films: case ids.
    """

    number: int
    id: str
    where: str
    rank: tuple[bool, datetime]
    text: str
    films: tuple[str, ...]


def import_reports(
    manifest: Path,
    resources: Resources,
    ids: Pseudonyms,
    *,
    accession_systems: Iterable[str] = (),
    prefer: Prefer = "conclusion",
    replace: bool = False,
) -> Matched:
    """Fill the column `report` of a manifest that `import_films` made.

    Of several reports of a study the newest amended or corrected one is taken, else the newest final one.

    Args:
        manifest: the table.
        resources: reports, and what they refer to.
        ids: of the site, the same as for the films.
        accession_systems: systems whose identifiers are accession numbers although their type does not say so.
        prefer: see `text_of`.
        replace: reports that are there are replaced; else they stay, for somebody may have mended them.

    Raises:
        ManifestError: the table is missing or damaged, was made with another key, or cannot be written.
    """
    ids.hold(manifest.parent)
    rows, done = Rows.read(manifest), Matched(manifest, len(resources.reports))
    tables = {column: rows.by(column) for column in ("study", "accession", "patient_id")}
    matcher = _Matcher(tables, resources, ids, frozenset(accession_systems))
    candidates: list[Candidate] = []
    for number, (where, report) in enumerate(resources.reports, start=1):
        try:
            if isinstance(report, Unusable):
                raise report
            candidates.append(_candidate(number, where, report, matcher, prefer))
        except Unusable as fault:
            done.skipped.append(Skipped(number, fault.id, fault.reason, where))
    chosen: dict[str, Candidate] = {}
    for one in sorted(candidates, key=lambda one: one.rank, reverse=True):
        try:
            _take(one, chosen, rows, replace)
        except Unusable as fault:
            done.skipped.append(Skipped(one.number, one.id, fault.reason, one.where))
    for film, one in chosen.items():
        rows.rows[film]["report"] = one.text
    rows.write(manifest)
    done.skipped.sort(key=lambda one: one.number)
    done.films, done.without = len(chosen), sum(not row.get("report") for row in rows.rows.values())
    return done


def _candidate(number: int, where: str, report: Resource, matcher: _Matcher, prefer: Prefer) -> Candidate:
    own = str(report.get("id") or "")
    id = matcher.ids.of("report", own) if own else ""
    try:
        status = str(report.get("status") or "")
        if status not in STATUSES:
            known = status if status.isascii() and status.replace("-", "").isalpha() and len(status) < 30 else "unknown"
            raise Unusable(f"has the status '{known}'; only {', '.join(STATUSES)} ones are used.")
        films = matcher.films(report)
        text = text_of(report, matcher.resources, prefer)
    except Unusable as fault:
        raise Unusable(fault.reason, id) from None
    return Candidate(number, id, where, (status != "final", _time(report)), text, films)


def _take(one: Candidate, chosen: dict[str, Candidate], rows: Rows, replace: bool) -> None:
    """Give a report to those of its films that have none yet; better ones were here before it."""
    free = [film for film in one.films if film not in chosen]
    if not free:
        better = chosen[one.films[0]]
        if better.rank == one.rank and better.text != one.text:
            raise Unusable("is as new as another report of its films and says something else; the first in the source is used.")
        raise Unusable("is superseded: another report of its films is newer, or amends it.")
    kept = [film for film in free if rows.rows[film].get("report") and not replace]
    if len(kept) == len(free):
        same = all(rows.rows[film]["report"] == one.text for film in kept)
        raise Unusable("is in the table already." if same else "is of films that have another report in the table; that stays (--replace).")
    chosen.update(dict.fromkeys((film for film in free if film not in kept), one))


@dataclass(frozen=True)
class _Matcher:
    """Finds the films of a report by the pseudonyms that its identifiers give.

    Attributes:
        tables: column → pseudonym → rows.
    """

    tables: Mapping[str, Mapping[str, list[dict[str, str]]]]
    resources: Resources
    ids: Pseudonyms
    systems: frozenset[str]

    def films(self, report: Resource) -> tuple[str, ...]:
        """Case ids of a report's films, never of more than one patient."""
        identifiers, lost = self._identifiers(report)
        studies = [self._of("study", _uid(one)) for one in identifiers if one.get("system") == DICOM_UID]
        accessions = [self._of("accession", str(one.get("value") or "")) for one in identifiers if self._accession(one)]
        found = self._rows("study", studies)
        by_accession = not found
        found = found or self._rows("accession", accessions)
        if not found:
            if lost:
                raise Unusable(f"belongs to no film that is known, and {lost}")
            said = "its study or order is not in the table" if studies or accessions else "it names neither a study nor an order"
            raise Unusable(f"belongs to no film: {said}.")
        patients = {row["patient_id"] for row in found}
        if len(patients) > 1:
            raise Unusable("belongs to films of several patients, which cannot be.")
        if by_accession and self._is_another(report, next(iter(patients))):
            raise Unusable("has the accession number of a film of another patient: numbers of two systems may coincide.")
        return tuple(row["case_id"] for row in found)

    def _identifiers(self, report: Resource) -> tuple[list[Resource], str]:
        """Of the report, of its studies and of its orders; and what could not be fetched."""
        found, lost = listed(report, "identifier"), ""
        for name in ("imagingStudy", "study", "basedOn"):  # R5 says `study`
            for reference in listed(report, name):
                found += listed(reference, "identifier")
                try:
                    found += listed(self.resources.resolve(reference, report) or {}, "identifier")
                except ServiceError as error:
                    lost = f"what it refers to could not be fetched: {error}"
        return found, lost

    def _is_another(self, report: Resource, patient: str) -> bool:
        """The report is about somebody who is in the table as another patient than the film's."""
        own: set[str] = set()
        for subject in listed(report, "subject"):
            held = listed(subject, "identifier")
            with suppress(ServiceError):  # then whose report it is stays open, as where it says nothing
                held += listed(self.resources.resolve(subject, report) or {}, "identifier")
            own |= {self._of("patient", str(one.get("value") or "")) for one in held}
        known = own & self.tables["patient_id"].keys()
        return bool(known) and patient not in known

    def _accession(self, identifier: Resource) -> bool:
        codes = [code.get("code") for kind in listed(identifier, "type") for code in listed(kind, "coding")]
        return ACCESSION in codes or identifier.get("system") in self.systems

    def _of(self, kind: Kind, value: str) -> str:
        return self.ids.of(kind, value) if value.strip() else ""

    def _rows(self, column: str, pseudonyms: Iterable[str]) -> list[dict[str, str]]:
        return [row for one in dict.fromkeys(pseudonyms) for row in self.tables[column].get(one, [])]


def _uid(identifier: Resource) -> str:
    return str(identifier.get("value") or "").removeprefix("urn:oid:")


def _time(report: Resource) -> datetime:
    """When it was issued, else made; the beginning of time where it does not say."""
    meta = report.get("meta")
    updated = meta.get("lastUpdated") if isinstance(meta, dict) else None
    for value in (report.get("issued"), report.get("effectiveDateTime"), updated):
        text = str(value or "")
        try:
            when = datetime.fromisoformat(text + "-01-01"[len(text) - 4 :] if 4 <= len(text) < 10 else text)
        except ValueError:
            continue
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)
