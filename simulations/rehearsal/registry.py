"""All rows of the rehearsal, in the order in which they are played: those that need no run first, those that lose a site for good last."""

from __future__ import annotations

from simulations.rehearsal import asked, comings, coordinator, files, hospitals, model, outsiders, signed
from simulations.rehearsal.interface import Row
from tmca_core.errors import ConfigError

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        *outsiders.ROWS,
        *signed.ROWS,
        *files.ROWS,
        *asked.ROWS,
        *asked.LATER,
        *model.UNDISTURBED,
        *coordinator.ROWS,
        *model.SURVIVED,
        *asked.LIVE,
        *hospitals.ROWS,
        *comings.ROWS,
    )
}


def chosen(names: str) -> list[Row]:
    """The rows of these names, comma-separated; "": all. In the order in which they are played.

    Raises:
        ConfigError: one is unknown.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in ROWS]:
        raise ConfigError(f"unknown row '{unknown[0]}'; known: {', '.join(ROWS)}.")
    return [row for name, row in ROWS.items() if not wanted or name in wanted]
