"""`tmca deploy rehearse`: what befalls a federation sooner or later, on one machine and before it does."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmca_core.cli import emit
from tmca_core.errors import ConfigError, TmcaError

if TYPE_CHECKING:
    from simulations.rehearsal.interface import Result, Row
    from simulations.rehearsal.stage import Stage

log = logging.getLogger(__name__)
UNEXPECTED = 1
"""Exit code where a row saw something else than it expects."""


def rehearse(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to keep: rehearsal.json, rehearsal.md, all logs and runs.")
    ] = None,
    sites: Annotated[int, typer.Option(min=3, max=20, help="Number of hospitals.")] = 3,
    rows: Annotated[str, typer.Option(metavar="NAME,…", help="Only these rows.  [default: all]")] = "",
    listed: Annotated[bool, typer.Option("--list", help="Say which rows there are, and try none.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Start a federation of real processes here, let faults and intrusions befall it, and say what was expected and what was seen."""
    from simulations.rehearsal.registry import chosen

    wanted = chosen(rows)
    if listed:
        value = {"rows": [{"name": row.name, "kind": row.kind, "what": row.what, "expected": row.expected} for row in wanted]}
        emit(as_json, value, "\n".join(f"{row.name:<28} {row.kind:<10} {row.what}: {row.expected}" for row in wanted))
        return
    with ExitStack() as around:
        folder = around.enter_context(tempfile.TemporaryDirectory(prefix="tmca-rehearsal-")) if out is None else _empty(out)
        _all(Path(folder), sites, wanted, as_json, kept=out is not None)


def _all(folder: Path, sites: int, wanted: Sequence[Row], as_json: bool, *, kept: bool) -> None:
    import json

    from simulations.processes import Processes
    from simulations.rehearsal import table
    from simulations.rehearsal.stage import build
    from tmca_core.run import write_atomically

    begin = time.monotonic()
    stage = build(folder, sites, Processes(folder).app())
    try:
        log.info(
            "%d sites are online after %.0f s, %s.", sites, time.monotonic() - begin, "behind nginx" if stage.ingress else "without nginx"
        )
        results = play(stage, wanted)
    finally:
        stage.close()
    stage.figures["seconds"] = time.monotonic() - begin
    value, text = table.as_json(results, stage.figures, sites, stage.ingress), table.table(results, stage.figures)
    if kept:
        write_atomically(folder / "rehearsal.json", json.dumps(value, indent=1, allow_nan=False) + "\n")
        write_atomically(folder / "rehearsal.md", text)
    emit(as_json, value, text)
    if not value["as_expected"]:
        raise typer.Exit(UNEXPECTED)


def play(stage: Stage, wanted: Sequence[Row], clock: Callable[[], float] = time.monotonic) -> list[Result]:
    """Play rows one after the other; one that goes wrong does not keep the others from being played."""
    from simulations.rehearsal.interface import NotHere, Result, Unexpected

    results: list[Result] = []
    for number, row in enumerate(wanted, 1):
        begin, holds = clock(), None
        try:
            if row.nginx and not stage.ingress:
                raise NotHere("nginx is not installed")
            seen, holds = row.play(stage), True
        except NotHere as reason:
            seen = f"not rehearsed: {reason}"
        except Unexpected as other:
            seen, holds = str(other), False
        except (TmcaError, OSError, ValueError, LookupError, TimeoutError) as error:
            seen, holds = f"{type(error).__name__}: {error}", False
        result = Result(row.name, row.kind, row.what, row.expected, seen, holds, round(clock() - begin, 1))
        results.append(result)
        mark = {True: "as expected", False: "NOT AS EXPECTED", None: "skipped"}[result.as_expected]
        log.info("%d/%d %s: %s (%.0f s): %s", number, len(wanted), row.name, mark, result.seconds, seen)
    return results


def _empty(out: Path) -> Path:
    folder = out.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder: a rehearsal overwrites nothing. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
