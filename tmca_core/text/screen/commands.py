"""`tmca data screen`: rows, columns and kinds of what may identify a person; never the identifier itself, unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmca_core.cli import emit
from tmca_core.errors import ManifestError

if TYPE_CHECKING:
    from tmca_core.text.screen.table import Screened

SHOWN = 50  # cells on the terminal; JSON has all


def screen(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The manifest: CSV or Parquet.")],
    languages: Annotated[str, typer.Option(help="Of the reports, comma-separated: en, de.")] = "en",
    column: Annotated[list[str] | None, typer.Option(help="A column to screen; may be repeated; '*': all. Default: report.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A word that identifies nobody here; may be repeated.")] = None,
    presidio: Annotated[bool, typer.Option("--presidio", help="Add Presidio's findings (extra 'deid').")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the identifiers themselves. Mind who reads the screen and the log.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Look for what may identify a person in the reports, and in the headers of DICOM images. Assistance, not a guarantee."""
    from tmca_core.text.screen.table import REPORT, screen_manifest

    chosen = tuple(name.strip() for name in languages.split(",") if name.strip())
    screened = screen_manifest(manifest, languages=chosen, columns=column or (REPORT,), allowed=allow or (), presidio=presidio)
    emit(as_json, screened.to_json(show), _text(screened, show))
    if screened.cells:
        raise ManifestError(
            f"{manifest}: {screened.summary()}. Mend the reports and screen again; --allow WORD for a harmless word; at a hospital "
            "reports.allowed and reports.waived of site.toml do the same."
        )


def _text(screened: Screened, show: bool) -> str:
    lines = []
    for cell in screened.cells[:SHOWN]:
        found = [
            f"{finding.kind} '{cell.text[finding.start : finding.end]}'" if show else f"{finding.kind} at character {finding.start + 1}"
            for finding in cell.findings
        ]
        lines.append(f"row {cell.row}, column '{cell.column}': {', '.join(found)}")
    if len(screened.cells) > SHOWN:
        lines.append(f"… and {len(screened.cells) - SHOWN} more cells (--json lists all)")
    for header in screened.headers[:SHOWN]:
        said = ["text is burned into the pixels"] if header.burned_in == "YES" else []
        said += [f"header holds {', '.join(header.tags)}"] if header.tags else []
        lines.append(f"warning: row {header.row}, DICOM image: {'; '.join(said)}")
    if screened.unsaid:
        lines.append(f"note: {screened.unsaid} of {screened.images} DICOM images do not say whether text is burned in: look at some.")
    lines.append(f"{screened.summary()}. This is assistance, not a guarantee: identifiers of forms that no rule knows pass.")
    return "\n".join(lines)
