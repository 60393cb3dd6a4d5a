"""`tmca deploy compare`: hold the coordinator's record of a run against the sites'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tmca_core.cli import emit


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The coordinator's run folder; its record is in `record`.")],
    sites: Annotated[list[str], typer.Argument(metavar="NAME=FOLDER", help="A site's name, and its record's folder or a copy of it.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Do both ends of a run tell the same: what was asked, on which weights, which code ran, what left and what came? Refuses if not."""
    from tmca_core.errors import ConfigError, LedgerError
    from tmca_core.record import Record, astray
    from tmca_core.record import compare as held_against

    here = Record.open(run / "record").entries()
    own = astray(here)
    found = {}
    for pair in sites:
        name, _, folder = pair.partition("=")
        if not folder:
            raise ConfigError(f"'{pair}' is not NAME=FOLDER.")
        found[name] = held_against(here, Record.open(Path(folder)).entries(), name)
    lines = [
        f"{name}: {one.agreed} answers agree, {one.lost} left the site and did not count" + "".join(f"\n  {line}" for line in one.wrong)
        for name, one in found.items()
    ]
    if own or any(one.wrong for one in found.values()):
        raise LedgerError("\n".join(["the records differ.", *(f"coordinator: {line}" for line in own), *lines]))
    values = {name: {"agreed": one.agreed, "lost": one.lost} for name, one in found.items()}
    emit(as_json, {"run": str(run), "sites": values}, "\n".join(lines))
