"""The screen on a manifest: which rows and columns may identify a person. What was found is kept apart from where it was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmca_core.cases.manifest import scan_manifest
from tmca_core.cases.table import read_table
from tmca_core.errors import ManifestError
from tmca_core.text.screen import LANGUAGES, Finding
from tmca_core.text.screen.headers import Header, read_header
from tmca_core.text.screen.reports import find

REPORT = "report"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a manifest with findings. `text` is the whole cell: never print it unasked."""

    row: int
    column: str
    findings: Sequence[Finding]
    text: str

    def to_json(self, show: bool) -> dict[str, Any]:
        """Row, column and kinds; the identifiers themselves only where the user asks to be shown them."""
        kinds = [finding.kind for finding in self.findings]
        found = {"found": [self.text[finding.start : finding.end] for finding in self.findings]} if show else {}
        return {"row": self.row, "column": self.column, "kinds": kinds, **found}


@dataclass(frozen=True)
class Screened:
    """Result of `screen_manifest`.

    Attributes:
        rows: in the table.
        cells: those with findings, in the table's order.
        headers: DICOM images whose header names somebody or says that something is burned into the pixels.
        images: DICOM images whose header was read.
        unsaid: those of them that do not say whether anything is burned in.
    """

    rows: int
    cells: Sequence[Cell]
    headers: Sequence[Header] = ()
    images: int = 0
    unsaid: int = 0

    @property
    def kinds(self) -> dict[str, int]:
        """Kind → findings."""
        return dict(Counter(finding.kind for cell in self.cells for finding in cell.findings).most_common())

    @property
    def flagged(self) -> int:
        """Rows with a finding in a cell."""
        return len({cell.row for cell in self.cells})

    def to_json(self, show: bool = False) -> dict[str, Any]:
        """One JSON object."""
        return {
            "rows": self.rows,
            "flagged": self.flagged,
            "kinds": self.kinds,
            "cells": [cell.to_json(show) for cell in self.cells],
            "headers": [{"row": header.row, "tags": list(header.tags), "burned_in": header.burned_in} for header in self.headers],
            "dicom_images": self.images,
            "burned_in_unsaid": self.unsaid,
        }

    def summary(self) -> str:
        """Counts in a line, without any identifier."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.items())
        return f"{self.flagged} of {self.rows} rows hold what may identify a person" + (f" ({kinds})" if kinds else "")


def screen_manifest(
    path: Path,
    *,
    languages: Sequence[str] = ("en",),
    columns: Sequence[str] = (REPORT,),
    allowed: Iterable[str] = (),
    presidio: bool = False,
    headers: bool = True,
) -> Screened:
    """Screen the cells of a manifest, of rows that training would skip too, and the headers of its DICOM images.

    Args:
        path: the manifest.
        languages: of the reports.
        columns: that are screened; "*" stands for all.
        allowed: words that identify nobody here.
        presidio: its findings are added (extra `deid`).
        headers: of DICOM images are read.

    Raises:
        ManifestError: the table cannot be read, or lacks a column.
        ConfigError: a language is unknown, or Presidio is not installed.
    """
    for language in languages:
        LANGUAGES[language]
    table = read_table(path)
    wanted = list(table.columns) if "*" in columns else list(columns)
    if missing := [name for name in wanted if name not in table.columns]:
        raise ManifestError(f"{path}, row 1: column '{missing[0]}' is missing. Found: {', '.join(table.columns)}.")
    known: dict[str, Sequence[Finding]] = {}
    words = tuple(allowed)
    cells = []
    for row in table.rows:
        for column in wanted:
            text = row.values.get(column, "")
            if text not in known:
                known[text] = find(text, languages, words, presidio)
            if known[text]:
                cells.append(Cell(row.number, column, known[text], text))
    read = [read_header(case.image, case.row) for case in scan_manifest(path, missing_reports="use").cases] if headers else []
    images = [header for header in read if header is not None]
    return Screened(
        len(table.rows),
        cells,
        [header for header in images if header.tags or header.burned_in == "YES"],
        len(images),
        sum(header.burned_in is None for header in images),
    )
