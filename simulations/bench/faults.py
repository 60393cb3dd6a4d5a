"""What was broken, where and when, and how the run took it: recovered, refused with a clear message, or lost."""

from __future__ import annotations

import collections
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simulations.bench.faults_damage import rows
from simulations.bench.faults_rows import Bench, Row, dice
from simulations.bench.interface import BENCHMARKS, Measurement
from tmca_core.run import write_atomically

log = logging.getLogger(__name__)


@BENCHMARKS.register("faults")
def faults(
    out: Annotated[Path, typer.Option(help="Folder of faults.md.")] = Path("runs/faults"),
    only: Annotated[str, typer.Option(help="Rows whose first column contains this; empty: all.")] = "",
) -> Measurement:
    """A matrix of faults on a small phantom federation, each for real: what broke, where, when, and the Dice in the end.

    recovered: the run ended without help; where the fault should leave no trace, its weights are those of a run without it, bit for
    bit. refused: it stopped with a message, and ended with the fault-free weights once that was put right. lost: anything else.
    """
    out.mkdir(parents=True, exist_ok=True)
    played: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for play in rows(bench, only):
            start = time.perf_counter()
            row = play()
            played.append(row)
            log.info("%d %s, %s: %s (%s) %.0f s", len(played), row.what, row.when, row.outcome, row.told, time.perf_counter() - start)
        sound = dice(bench.sound())
    table = _table(played, sound).replace(f"{folder}/", "")
    write_atomically(out / "faults.md", table)
    counts = collections.Counter(row.outcome for row in played)
    figures = {"rows": float(len(played)), **{name: float(counts[name]) for name in ("recovered", "refused", "lost")}}
    return Measurement({}, figures, 1, f"{table}\n{out / 'faults.md'}")


def _table(rows: Sequence[Row], sound: float | None) -> str:
    counts = collections.Counter(row.outcome for row in rows)
    lines = [
        f"{len(rows)} faults: {counts['recovered']} recovered, {counts['refused']} refused, {counts['lost']} lost. "
        f"Dice without a fault: {_figure(sound)}.",
        "",
        "| broken | where | when | outcome | Dice | weights | what happened |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        weights = {True: "bit-equal", False: "differ", None: "–"}[row.equal]
        told = row.told.replace("|", "/").replace("\n", " ")
        lines.append(f"| {row.what} | {row.where} | {row.when} | {row.outcome} | {_figure(row.dice)} | {weights} | {told} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
