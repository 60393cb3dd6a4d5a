"""`tmca report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tmca_core.cli import emit


def report(
    folders: Annotated[list[Path], typer.Argument(help="A run's folder; or several, or a folder of runs, to be compared.")],
    picture: Annotated[Path | None, typer.Option(help="Also write one PNG of films: truth, true report, swapped report.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of a comparison; without it, the folder that holds the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Write a run's report.html anew, from its folder alone; of several runs, comparison.html, .md and .json."""
    from tmca_core.run import Run

    given = [folder.expanduser().resolve() for folder in folders]
    if len(given) == 1 and (Run(given[0]).config_path.is_file() or not any(Run(p).config_path.is_file() for p in given[0].glob("*"))):
        _one(Run(given[0]), picture, as_json)
    else:
        _several(given, out, as_json)


def _one(run: Any, picture: Path | None, as_json: bool) -> None:
    from tmca_core.report.html import write_report

    page = write_report(run)
    result: dict[str, Any] = {"report": str(page), "bytes": page.stat().st_size, "picture": None}
    text = f"report: {page}"
    if picture is not None:
        from tmca_core.report.picture import write_picture

        result["picture"] = str(write_picture(run, picture.expanduser().resolve()))
        text += f"\npicture: {result['picture']}"
    emit(as_json, result, text)


def _several(folders: list[Path], out: Path | None, as_json: bool) -> None:
    import os

    from tmca_core.report.comparison import as_json as values
    from tmca_core.report.comparison import as_markdown, runs_below, write_comparison

    runs = runs_below(folders)
    parent = folders[0] if len(folders) == 1 else Path(os.path.commonpath([run.folder.parent for run in runs]))
    folder = parent if out is None else out.expanduser().resolve()
    page, rows = write_comparison(runs, folder)
    emit(as_json, {"comparison": str(page), "runs": len(runs), **values(rows)}, f"{as_markdown(rows)}\ncomparison: {page}")
