"""Every algorithm between real processes: does it run through SuperLink and SuperNodes, end where the simulation ends, and what does a
round cost beside its training?
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from client.approvals import approve_app
from simulations.bench.interface import BENCHMARKS, Measurement
from simulations.engine import simulate
from simulations.processes import Processes
from tmca_core.algorithms import ALGORITHMS
from tmca_core.cases.phantom import write
from tmca_core.cases.sites import site_names
from tmca_core.config import parse
from tmca_core.errors import FederationError
from tmca_core.run import Run

SITES, ROUNDS = 3, 3
SMALL: dict[str, Any] = {
    "data.image_size": 32, "network.name": "guide", "network.width": 16, "network.heads": 2, "training.steps": 2, "training.batch_size": 4,
    "federation.rounds": ROUNDS, "federation.min_sites": SITES, "federation.wait": 180.0, "federation.byzantine": 0,
    "evaluation.every": 1, "evaluation.bootstrap": 0, "evaluation.bootstrap_rounds": 0,
}  # fmt: skip
log = logging.getLogger(__name__)


@BENCHMARKS.register("deployment")
def deployment(
    algorithms: Annotated[str, typer.Option(help="Names, comma-separated; empty: all.")] = "",
    stock: Annotated[bool, typer.Option("--stock", help="Flower's own SuperNode and SuperExec in place of ours.")] = False,
) -> Measurement:
    """One SuperLink and three SuperNodes as processes of their own; every algorithm is submitted with `flwr run` and trains some rounds.

    figures: seconds of each, submission to end; the largest difference of any weight from the in-process simulation of the same
    configuration and cases, which is 0 where both give the same numbers; and by how many seconds a round after the first (training and
    an evaluation) was longer than its longest site trained, median.

    Raises:
        FederationError: a run did not end well; with what was said.
    """
    chosen = [name.strip() for name in algorithms.split(",") if name.strip()] or ALGORITHMS.names()
    for name in chosen:
        ALGORITHMS[name]  # an unknown name is refused before anything is started
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = write(folder / "data", sites=SITES, cases=12, seed=0, size=32)
        processes = Processes(folder / "processes")
        processes.folder.mkdir()
        try:
            port = processes.superlink()
            for site in site_names(parse({"data.manifest": str(manifest)})):
                own = {"state": folder / f"state-{site}", "cache": folder / f"cache-{site}"}
                home = None if stock else folder / f"home-{site}"
                if home:
                    approve_app(str(processes.app()), home, "tmca bench deployment")
                processes.supernode(site, port, {"manifest": manifest, "site": site, **own}, home)
            for name in chosen:
                start = time.perf_counter()
                figures[f"{name}.difference"] = _difference(processes, port, name, manifest, folder)
                figures[f"{name}.seconds"] = time.perf_counter() - start
                figures[f"{name}.round_overhead"] = _overhead(Run(folder / f"run-{name}"))
                log.info("%s: %.0f s, weights differ by %g", name, figures[f"{name}.seconds"], figures[f"{name}.difference"])
        finally:
            processes.stop()
    lines = ["| algorithm | weights differ from the simulation's by | seconds | a round beside its training |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {figures[f'{name}.difference']:g} | {figures[f'{name}.seconds']:.0f} | {figures[f'{name}.round_overhead']:.1f} s |"
        for name in chosen
    ]
    return Measurement({}, {"algorithms": float(len(chosen)), **figures}, 1, "\n".join(lines))


def _difference(processes: Processes, port: int, name: str, manifest: Path, folder: Path) -> float:
    """Train one algorithm both ways; the largest difference of a weight."""
    values = SMALL | {"federation.algorithm": name, "data.cache_dir": str(folder / "cache"), "simulation.out": str(folder / f"run-{name}")}
    code, said = processes.submit(port, values)
    run = Run(folder / f"run-{name}")
    summary = run.read_json("run.json")
    if code != 0 or not summary or summary["faults"]:
        raise FederationError(
            f"{name} did not run through the deployment (exit code {code}, faults {summary and summary['faults']}).\n{said}"
        )
    there = folder / f"simulated-{name}"
    simulate(parse(values | {"data.manifest": str(manifest), "simulation.out": str(there)}), there)
    deployed, simulated = run.checkpoint(ROUNDS).weights, Run(there).checkpoint(ROUNDS).weights
    return max(float((deployed[key].double() - simulated[key].double()).abs().max()) for key in simulated if simulated[key].numel())


def _overhead(run: Run) -> float:
    """Seconds of a round that are not its slowest site's training, median over all rounds but the first."""
    trained: dict[int, float] = {}
    for event in run.events("site_train"):
        trained[event["round"]] = max(trained.get(event["round"], 0.0), event["seconds"])
    return statistics.median(float(event["seconds"]) - trained[event["round"]] for event in run.events("round") if event["round"] > 1)
