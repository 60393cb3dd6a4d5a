"""`tmca report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tmca_core.cli import emit


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, as --out of the command that made it.")],
    picture: Annotated[Path | None, typer.Option(help="Also write one PNG of films: truth, true report, swapped report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Write a run's report.html anew, from its folder alone."""
    from tmca_core.report.html import write_report
    from tmca_core.run import Run

    run = Run(folder.expanduser().resolve())
    page = write_report(run)
    result: dict[str, Any] = {"report": str(page), "bytes": page.stat().st_size, "picture": None}
    text = f"report: {page}"
    if picture is not None:
        from tmca_core.report.picture import write_picture

        result["picture"] = str(write_picture(run, picture.expanduser().resolve()))
        text += f"\npicture: {result['picture']}"
    emit(as_json, result, text)
