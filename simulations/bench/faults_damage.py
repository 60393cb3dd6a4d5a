"""Rows of the fault matrix that damage a run's folder or start it wrongly, and the list of all rows in order."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from simulations.bench.breaking import Ending, run_broken
from simulations.bench.faults_rows import (
    BAD,
    BOUNDED,
    LONGER,
    REFUSED_UPDATES,
    Bench,
    Row,
    bounded,
    dice,
    duplicate,
    faults,
    killed,
    no_worse,
    reason,
    refused_then_sound,
    refused_update,
    same,
    weather,
    weights,
)
from tmca_core.run import Run

KILLS = {
    "kill before the first checkpoint": ("the process, SIGKILL", "start"),
    "kill in a round": ("the process, SIGKILL", "round 3, one site's reply folded"),
    "kill in a validation": ("the process, SIGKILL", "round 3, validation"),
    "kill in a checkpoint": ("the process, SIGKILL", "round 3, half of a file written"),
    "kill before its rename": ("the process, SIGKILL", "round 3, checkpoint written, not yet in place"),
    "kill between rounds": ("the process, SIGKILL", "after round 3"),
    "kill in the final test": ("the process, SIGKILL", "final test"),
    "kill before run.json": ("the process, SIGKILL", "before the summary"),
    "kill in a site's memory": ("the process, SIGKILL", "half of a site's state written"),
    "SIGTERM": ("the process", "round 3"),
    "SIGINT": ("the process", "round 3"),
}


KINDS: dict[str, dict[str, Any]] = {
    "scaffold, int8": {"federation.algorithm": "scaffold", "federation.compression": "int8"},
    "replies kept": {"federation.keep_replies": "on"},
}
"""Of federations that remember more than plain FedAvg, at the server and at the sites; `KILLED_TOO` are the moments when that matters."""
KILLED_TOO = ("kill in a round", "kill in a checkpoint", "kill between rounds", "kill in a site's memory")


def rows(bench: Bench, only: str = "") -> list[Callable[[], Row]]:
    """Every row, to be played in this order, or those whose name contains `only`."""
    slow = {"scenario.stragglers": 0.2, "scenario.delay": 5000.0, "federation.deadline": 3600.0}
    named: list[tuple[str, Callable[[], Row]]] = [
        *((kind, partial(refused_update, bench, kind)) for kind in REFUSED_UPDATES),
        ("duplicate", partial(duplicate, bench)),
        *((name, partial(bounded, bench, name)) for name in BOUNDED),
        ("dropout", partial(weather, bench, "dropout", {"scenario.dropout": 0.3}, "sites do not answer")),
        ("stragglers", partial(weather, bench, "stragglers", slow, "replies come after the deadline")),
        *((trap, partial(killed, bench, trap, where, when)) for trap, (where, when) in KILLS.items()),
        *(
            (f"{trap}; {kind}", partial(killed, bench, trap, *KILLS[trap], values, kind))
            for kind, values in KINDS.items()
            for trap in KILLED_TOO
        ),
        *((damage.__name__, partial(damage, bench)) for damage in DAMAGES),
    ]
    return [play for name, play in named if only in name]


def _stopped(bench: Bench, out: Path) -> None:
    """A run that was killed after its third round."""
    run_broken(bench.base, out, "kill between rounds")


def killed_again_and_again(bench: Bench) -> Row:
    """Three deaths in one run."""
    out = bench.fresh("kills")
    deaths = sum(
        not run_broken(bench.base, out, trap).done for trap in ("kill in a round", "kill in a checkpoint", "kill in the final test")
    )
    again, equal = run_broken(bench.base, out), bench.as_sound(out)
    good = deaths == 3 and again.done and equal
    told = f"{deaths} deaths; went on each time" if again.done else again.told
    return Row(
        "killed again and again",
        "the process, SIGKILL",
        "round 3 twice, final test",
        "recovered" if good else "lost",
        told,
        dice(out),
        equal,
    )


def truncated_weights(bench: Bench) -> Row:
    """The newest checkpoint is cut short."""

    def cut(newest: Path) -> None:
        weights = newest / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])

    return _damaged_checkpoint(bench, "checkpoint cut short", cut)


def missing_state(bench: Bench) -> Row:
    """The newest checkpoint lacks its state."""
    return _damaged_checkpoint(bench, "checkpoint without its state", lambda newest: (newest / "state.json").unlink())


def _damaged_checkpoint(bench: Bench, what: str, damage: Callable[[Path], None]) -> Row:
    """Damage done to the newest checkpoint of a stopped run, which is deleted then, as the refusal advises."""

    def broken(out: Path) -> Ending:
        _stopped(bench, out)
        damage(Run(out).checkpoints()[-1])
        return run_broken(bench.base, out)

    def mend(out: Path) -> None:
        shutil.rmtree(Run(out).checkpoints()[-1])

    return refused_then_sound(bench, what, "the run's folder", "between two starts", broken, mend)


def torn_log(bench: Bench) -> Row:
    """metrics.jsonl ends in the middle of a line."""

    def broken(out: Path) -> Ending:
        _stopped(bench, out)
        with (out / "metrics.jsonl").open("ab") as file:
            file.write(b'{"event": "rou')
        return run_broken(bench.base, out)

    return refused_then_sound(bench, "log torn in a line", "the run's folder", "between two starts", broken, lambda out: None)


def disk_full(bench: Bench) -> Row:
    """No file may grow any more."""
    return refused_then_sound(
        bench, "disk full", "the run's folder", "after round 2", lambda out: run_broken(bench.base, out, "disk full"), lambda out: None
    )


def all_fail(bench: Bench) -> Row:
    """Not one usable reply."""
    return refused_then_sound(
        bench, "every site fails", "all sites", "round 3", lambda out: run_broken(bench.base, out, "all fail"), lambda out: None
    )


def other_settings(bench: Bench) -> Row:
    """Another configuration in the same folder."""

    def broken(out: Path) -> Ending:
        _stopped(bench, out)
        return run_broken(bench.base.with_values({"seed": 1}), out)

    return refused_then_sound(bench, "another configuration", "the run's folder", "between two starts", broken, lambda out: None)


def two_processes(bench: Bench) -> Row:
    """A second process in the same folder."""

    def broken(out: Path) -> Ending:
        with Run(out).held():
            return run_broken(bench.base, out, whole=True)

    return refused_then_sound(bench, "two processes at once", "the run's folder", "start", broken, lambda out: None)


def other_version(bench: Bench) -> Row:
    """The newest checkpoint was written by another version of the program."""

    def broken(out: Path) -> Ending:
        _stopped(bench, out)
        path = Run(out).checkpoints()[-1] / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "phase_of_the_moon": 3}))
        return run_broken(bench.base, out)

    def mend(out: Path) -> None:
        path = Run(out).checkpoints()[-1] / "state.json"
        path.write_text(re.sub(r', "phase_of_the_moon": 3', "", path.read_text()))

    return refused_then_sound(bench, "checkpoint of another version", "the run's folder", "between two starts", broken, mend)


def damaged_memory(bench: Bench) -> Row:
    """A site's own state is damaged: it loses its turns and is named, and the others go on."""
    out, config = bench.fresh("memory"), bench.base.with_values(LONGER)
    run_broken(config, out, "kill between rounds")
    for path in (out / "sites" / BAD).rglob("round-*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    ending = run_broken(config, out)
    good = ending.done and {fault["site"] for fault in faults(out)} == {BAD} and no_worse(out, bench.sound(LONGER))
    told = f"{len(faults(out))} turns lost: {reason(out)}" if ending.done else ending.told
    return Row("a site's memory is cut short", "one site's disk", "after round 3", "recovered" if good else "lost", told, dice(out))


def changed_data(bench: Bench) -> Row:
    """A report was edited between two starts."""
    import pandas as pd

    from tmca_core.cases.phantom import write

    folder = bench.fresh("changed")
    manifest = write(folder / "data", sites=3, cases=12, seed=0, size=32)
    config = bench.base.with_values({"data.manifest": str(manifest)})
    first = run_broken(config, folder / "run", "kill between rounds", whole=True)
    before = manifest.read_text(encoding="utf-8")
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table.loc[0, "report"] += " The heart is of normal size."
    table.to_csv(manifest, index=False)
    second = run_broken(config, folder / "run", whole=True)
    manifest.write_text(before, encoding="utf-8")
    third = run_broken(config, folder / "run", whole=True)
    whole = run_broken(config, folder / "whole", whole=True)
    equal = same(weights(folder / "run"), weights(folder / "whole"))
    good = not first.done and second.teaches and not second.done and third.done and whole.done and equal
    told = f"{second.error}: {second.told[:160]}" if good else f"{first}, {second}, {third}"[:300]
    return Row("data changed", "the manifest", "between two starts", "refused" if good else "lost", told, dice(folder / "run"), equal)


DAMAGES = [
    killed_again_and_again,
    truncated_weights,
    missing_state,
    other_version,
    torn_log,
    disk_full,
    all_fail,
    other_settings,
    two_processes,
    damaged_memory,
    changed_data,
]
