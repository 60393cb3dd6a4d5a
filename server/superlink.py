"""`tmca deploy superlink`: Flower's SuperLink, whose database waits longer for its turn.

Flower's SQLite gives up after 5 s, and the SuperLink answers 500: a SuperNode drops its message then, and the SuperExec ends with its
run. Three sites that send some 200 tensors each at the same time, on a busy machine, were enough for that.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

PATIENCE = 25
"""Seconds that a statement waits for the database: just less than clients wait for their answer (30 s)."""


def superlink(
    arguments: Annotated[list[str], typer.Argument(metavar="-- ARGUMENTS", help="Arguments of flower-superlink, after two dashes.")],
) -> None:
    """Run flower-superlink with a database that waits for its turn, and, where keys are asked for, with calls that are signed whole."""
    from flwr.superlink.cli.flower_superlink import flower_superlink

    from server.signatures import hold_to_signatures

    wait_longer()
    hold_to_signatures()
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def wait_longer() -> None:
    """Let databases that are opened from now on wait for `PATIENCE`; Flower 1.41 has no setting for it."""
    from flwr.supercore import sql_mixin
    from flwr.supercore.constant import SQLITE_PRAGMAS

    pragmas = {**dict(SQLITE_PRAGMAS), "busy_timeout": str(1000 * PATIENCE)}
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple(pragmas.items())
