"""Rows of the fault matrix: sites that are hostile, broken, slow or away, and processes that die."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from simulations.bench.breaking import ROUNDS, Ending, run_broken
from tmca_core.cases.sites import site_names
from tmca_core.config import parse
from tmca_core.errors import WeightsError
from tmca_core.run import Run

Outcome = Literal["recovered", "refused", "lost"]

# Five sites; seconds a run, and long enough to learn something.
SETTINGS = {
    "phantom.sites": 5, "phantom.cases": 20, "data.image_size": 32, "network.width": 16, "network.heads": 2, "training.steps": 6,
    "training.batch_size": 4, "training.learning_rate": 0.004, "training.threads": 1, "training.device": "cpu", "federation.rounds": ROUNDS,
    "federation.poll": 0.01, "evaluation.bootstrap": 0, "evaluation.examples": 0, "simulation.baselines": False, "simulation.workers": 1,
}  # fmt: skip
BAD = "phantom-01"
WORSE = 0.1
"""Dice that a run under a bounded attack may be below the same fold's without it."""
LONGER = {"training.steps": 16}
"""So that what is judged by its Dice is near the end of learning, where that no longer depends on every step."""
NONE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Row:
    """One line of the matrix.

    Attributes:
        what, where, when: was broken.
        told: what happened, in words.
        dice: of the run in the end; None where it has none.
        equal: the final weights are those of the run that it is held against, bit for bit; None where they need not be.
    """

    what: str
    where: str
    when: str
    outcome: Outcome
    told: str
    dice: float | None = None
    equal: bool | None = None


class Bench:
    """A folder of runs that are broken, and of those that are not.

    Attributes:
        base: the configuration.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = parse(SETTINGS | {"data.cache_dir": str(folder / "cache")})
        self._sound: dict[frozenset[tuple[str, Any]], Path] = {}

    def sound(self, values: Mapping[str, Any] = NONE) -> Path:
        """The fault-free run with these changes to the configuration; trained when it is first asked for.

        Raises:
            RuntimeError: it failed.
        """
        key = frozenset(values.items())
        if key not in self._sound:
            out = self.fresh(f"sound-{len(self._sound)}")
            ending = run_broken(self.base.with_values(values), out)
            if not ending.done:
                raise RuntimeError(f"the fault-free run failed: {ending}")
            self._sound[key] = out
        return self._sound[key]

    def as_sound(self, out: Path, values: Mapping[str, Any] = NONE) -> bool:
        """Whether a run ended with the weights of the fault-free one, bit for bit."""
        return same(weights(out), weights(self.sound(values)))

    def fresh(self, name: str) -> Path:
        """An empty place for a run."""
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Final weights of a run; {} where it has none."""
    try:
        last = Run(out).last_checkpoint()
    except WeightsError:
        return {}
    return last.weights if last is not None and last.round == ROUNDS else {}


def dice(out: Path) -> float | None:
    """Final Dice of a run; None where it has none."""
    value: float | None = Run(out).read_json("run.json").get("final", {}).get("dice_image")
    return value


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit, and not empty."""
    return bool(first) and first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- hostile, broken and slow sites -----------------------------------------------------------------
REFUSED_UPDATES = {
    "raise": "site raises", "nan": "a NaN in its update", "inf": "an infinity in its update", "wrong-shape": "a tensor of another shape",
    "wrong-dtype": "a tensor of another dtype", "missing-tensor": "a tensor is missing", "extra-tensor": "a tensor too many",
}  # fmt: skip
"""Each must leave the weights that the federation has without that site's updates."""
BOUNDED = {
    "huge update": ("huge", "fedavg", "update × 10⁶"),
    "model replacement": ("model-replacement", "median", "trains on masks inside out, update × sites"),
    "sign flip, median": ("sign-flip", "median", "update × −1"),
    "sign flip, trimmed mean": ("sign-flip", "trimmed-mean", "update × −1"),
    "label flip": ("label-flip", "geometric-median", "trains on masks inside out"),
    "replay": ("replay", "fedavg", "the reply of the round before"),
}


def refused_update(bench: Bench, kind: str) -> Row:
    """The last site's updates cannot be used: held against a federation that never had that site."""
    out, names = bench.fresh(kind), site_names(bench.base)
    ending = run_broken(bench.base.with_values({"scenario.poison": kind, "scenario.poison_sites": names[-1]}), out)
    named = {fault["site"] for fault in faults(out)} == {names[-1]}
    equal = bench.as_sound(out, {"phantom.sites": len(names) - 1})
    good = ending.done and named and equal
    told = f"{len(faults(out))} turns refused: {reason(out)}" if ending.done else ending.told
    return Row(REFUSED_UPDATES[kind], "one site of five", "every round", "recovered" if good else "lost", told, dice(out), equal)


def bounded(bench: Bench, name: str) -> Row:
    """One site sends what may be folded but should not matter."""
    poison, algorithm, told = BOUNDED[name]
    out = bench.fresh(name.replace(", ", "-").replace(" ", "-"))
    values = {
        **LONGER,
        "federation.algorithm": algorithm,
        "scenario.poison": poison,
        "scenario.poison_sites": BAD,
        "scenario.poison_round": 2,
    }
    ending = run_broken(bench.base.with_values(values), out)
    unharmed = bench.sound({**LONGER, "federation.algorithm": algorithm})
    good = ending.done and no_worse(out, unharmed)
    told = f"{told}; without it {dice(unharmed):.3f}"
    said = f"{told}; {len(faults(out))} turns refused{': ' + reason(out) if faults(out) else ''}" if ending.done else ending.told
    return Row(name, f"one site of five; {algorithm}", "rounds 2 to 5", "recovered" if good else "lost", said, dice(out))


def weather(bench: Bench, name: str, values: Mapping[str, Any], told: str) -> Row:
    """Sites that are away or slow; the run goes on without them."""
    out = bench.fresh(name)
    ending = run_broken(bench.base.with_values({**LONGER, **values}), out)
    good = ending.done and no_worse(out, bench.sound(LONGER)) and bool(faults(out))
    return Row(
        told,
        "the sites drawn",
        "any round",
        "recovered" if good else "lost",
        f"{len(faults(out))} turns lost: {reason(out)}" if ending.done else ending.told,
        dice(out),
    )


def duplicate(bench: Bench) -> Row:
    """Every reply of a site arrives twice."""
    out = bench.fresh("duplicate")
    ending = run_broken(bench.base.with_values({"scenario.poison": "duplicate", "scenario.poison_sites": BAD}), out)
    equal = bench.as_sound(out)
    return Row(
        "reply arrives twice",
        "one site of five",
        "every round",
        "recovered" if ending.done and equal else "lost",
        "folded once" if equal else ending.told,
        dice(out),
        equal,
    )


def faults(out: Path) -> list[dict[str, Any]]:
    """Of a run that has ended."""
    found: list[dict[str, Any]] = Run(out).read_json("run.json").get("faults", [])
    return found


def reason(out: Path) -> str:
    """The first fault's."""
    return str(faults(out)[0]["reason"])[:110] if faults(out) else "none"


def no_worse(out: Path, unharmed: Path) -> bool:
    """The final weights are there and finite, and the Dice is at most `WORSE` below that of a run without the fault."""
    found, own, other = weights(out), dice(out), dice(unharmed)
    finite = bool(found) and all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    return finite and own is not None and other is not None and own > other - WORSE


# --- the process, the disk, the folder --------------------------------------------------------------
def killed(bench: Bench, trap: str, where: str, when: str, values: Mapping[str, Any] = NONE, kind: str = "") -> Row:
    """The process dies; the same command again.

    Args:
        values: changes to the configuration, `kind` in words.
    """
    out, config = bench.fresh(f"{trap} {kind}".strip().replace(" ", "-").replace("'", "")), bench.base.with_values(values)
    first = run_broken(config, out, trap)
    kept = Run(out).checkpoints()
    again = run_broken(config, out)
    equal = bench.as_sound(out, values)
    died = not first.done
    told = f"went on from {kept[-1].name if kept else 'the beginning'}" if again.done else again.told
    good = died and again.done and equal and dice(out) == dice(bench.sound(values))
    name = f"{trap}; {kind}" if kind else trap
    return Row(name, where, when, "recovered" if good else "lost", told if died else "the trap did not spring", dice(out), equal)


def refused_then_sound(
    bench: Bench, name: str, where: str, when: str, broken: Callable[[Path], Ending], mend: Callable[[Path], None]
) -> Row:
    """Something is wrong that only a person can put right: refused with a message, nothing lost, and sound once it is right.

    Args:
        broken: does the damage and runs; returns how that ended.
        mend: does what the message asks for.
    """
    out = bench.fresh(name.replace(" ", "-"))
    ending = broken(out)
    if ending.done:  # it went on by itself
        equal = bench.as_sound(out)
        return Row(name, where, when, "recovered" if equal else "lost", "went on by itself", dice(out), equal)
    mend(out)
    again = run_broken(bench.base, out)
    equal = bench.as_sound(out)
    good = ending.teaches and again.done and equal
    return Row(
        name,
        where,
        when,
        "refused" if good else "lost",
        f"{ending.error}: {ending.told[:160]}" if good else f"{ending}, then {again}"[:300],
        dice(out),
        equal,
    )
