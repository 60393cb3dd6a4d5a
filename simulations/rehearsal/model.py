"""Rows: the model that comes out of the deployment is the simulation's, and what a round costs beside its training."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.played import Played
from simulations.rehearsal.stage import SMALL, TOGETHER, Stage
from tmca_core.run import Run

ROUNDS = 12
CLOSE = 1e-5
"""Largest difference of a weight. The floating-point sums of the two are taken in another order."""
TRAINED: dict[str, Any] = SMALL | {
    "network.unet_channels": "25,50,100,200", "federation.rounds": ROUNDS, "evaluation.every": ROUNDS,
}  # fmt: skip
"""An update of some 2 MB."""


def undisturbed(stage: Stage) -> str:
    """A run that nothing befalls."""
    run = stage.submit("undisturbed", TRAINED | {"federation.min_sites": len(stage.names)})
    stage.end(run)
    told = _as_simulated(stage, run)
    overheads, sent = _overheads(run.run), run.run.read_json("run.json")["bytes"]["up_per_site_round"]
    stage.figures["round_overhead_seconds"] = statistics.median(overheads)
    stage.figures["round_overhead_seconds_worst"] = max(overheads)
    stage.figures["update_bytes"] = float(sent)
    return f"{told}; a round takes {statistics.median(overheads):.1f} s beside its training, with updates of {sent / 1e6:.1f} MB"


def survived(stage: Stage) -> str:
    """The run that everything befell, at its end."""
    from simulations.rehearsal.coordinator import surviving

    run = stage.runs.get("surviving") or surviving(stage)
    stage.end(run)
    if run.why() or run.round < ROUNDS:
        stage.submit(run.name, run.values)
        stage.end(run)
    told = _as_simulated(stage, run)
    return f"submitted {run.starts} times; {told}"


def _as_simulated(stage: Stage, run: Played) -> str:
    """Hold a run that has ended against the simulation of its configuration."""
    summary = run.run.read_json("run.json")
    expect(not run.why() and summary and run.round == ROUNDS, f"the run ended in round {run.round} of {ROUNDS}: {run.why()[:300]}")
    here, there = run.run.checkpoint(ROUNDS).weights, Run(_simulated(stage, run)).checkpoint(ROUNDS).weights
    expect(here.keys() == there.keys(), "the two have other tensors")
    difference = max(float((here[name].double() - there[name].double()).abs().max()) for name in there if there[name].numel())
    stage.figures[f"{run.name}_difference"] = difference
    expect(difference <= CLOSE, f"the weights differ by {difference:g} from the simulation's")
    return f"{ROUNDS} rounds of {len(stage.names)} sites; the weights differ by at most {difference:.1e} from the simulation's"


def _simulated(stage: Stage, run: Played) -> Path:
    from simulations.engine import simulate
    from tmca_core.config import parse

    out = stage.folder / "runs" / "simulated"
    if not (out / "run.json").exists():
        manifest = stage.folder / "data" / f"{TOGETHER}.csv"
        own = {"data.manifest": str(manifest), "data.cache_dir": str(stage.folder / "cache"), "simulation.out": str(out)}
        simulate(parse({**run.values, **own}), out)
    return out


def _overheads(run: Run) -> list[float]:
    """Seconds of each round after the first that are not its slowest site's training."""
    trained: dict[int, float] = {}
    for event in run.events("site_train"):
        trained[event["round"]] = max(trained.get(event["round"], 0.0), event["seconds"] or 0.0)
    return [float(event["seconds"]) - trained[event["round"]] for event in run.events("round") if event["round"] > 1]


UNDISTURBED = (
    Row("undisturbed", "model", "nothing, for comparison", f"the simulation's weights within {CLOSE:g}", undisturbed),
)  # fmt: skip
SURVIVED = (
    Row("survived", "model", "all of these in one run that lost no site", f"the simulation's weights within {CLOSE:g}", survived),
)  # fmt: skip
