"""The table that imports fill: new rows are added, what is there stays, and nothing but pseudonyms and codes gets in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmca_core.cases.manifest import MASK
from tmca_core.cases.table import read_table
from tmca_core.errors import ManifestError
from tmca_core.run import write_atomically

NAME = "manifest.csv"
COLUMNS = ("case_id", "patient_id", "site", "image", MASK, "report", "study", "accession", "modality", "view")


@dataclass(frozen=True)
class Skipped:
    """Something that was looked at and not used.

    Attributes:
        number: place among all that was looked at, from 1.
        id: its pseudonym; "" where it has not said who it is.
        reason: why, and what to do, without anything that a hospital's system said.
        where: file or address. It may name a person: printed only where the user asks for it.
    """

    number: int
    id: str
    reason: str
    where: str = ""

    def to_json(self, show: bool) -> dict[str, Any]:
        """Its place and pseudonym; where it is only if the user asks to be shown that."""
        found = {"number": self.number, "id": self.id, "reason": self.reason}
        return {**found, "where": self.where} if show else found


@dataclass
class Rows:
    """A manifest as text, row by row.

    Attributes:
        columns: in order.
        rows: case_id → column → text.
    """

    columns: list[str]
    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, masks: Sequence[str] = (MASK,)) -> Rows:
        """The manifest at `path`, or an empty one.

        Args:
            path: need not be there.
            masks: columns of masks that it is to have.

        Raises:
            ManifestError: it is damaged, or was not made by an import.
        """
        wanted = [name for column in COLUMNS for name in (masks if column == MASK else (column,))]
        if not path.exists():
            return cls(wanted)
        table = read_table(path)
        if missing := [name for name in ("case_id", "study", "accession") if name not in table.columns]:
            raise ManifestError(f"{path} has no column '{missing[0]}', so no import made it. Name a new folder.")
        if faulty := next((row for row in table.rows if row.fault), None):
            raise ManifestError(f"{path}, row {faulty.number}: {faulty.fault}")
        columns = [*table.columns, *(name for name in wanted if name not in table.columns)]
        return cls(columns, {row.values["case_id"]: dict(row.values) for row in table.rows})

    def write(self, path: Path) -> None:
        """Write the table whole; readable by its owner only, for it holds reports.

        Raises:
            ManifestError: it cannot be written.
        """
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        try:
            write_atomically(path, text.getvalue(), private=True)
        except OSError as error:
            raise ManifestError(f"cannot write {path}: {error.strerror or error}.") from None

    def by(self, column: str) -> dict[str, list[dict[str, str]]]:
        """Cell → rows, of the rows that have one."""
        found: dict[str, list[dict[str, str]]] = {}
        for row in self.rows.values():
            if row.get(column):
                found.setdefault(row[column], []).append(row)
        return found


def reasons(skipped: Iterable[Skipped]) -> Mapping[str, int]:
    """Reason → how often, most often first."""
    counts: dict[str, int] = {}
    for one in skipped:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))
