"""What each module is worth: the base network, each module added, each left out, and controls, trained for equal time."""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from simulations.bench.ablation_variants import VARIANTS, Variant
from simulations.bench.interface import BENCHMARKS, Measurement
from simulations.bench.step import expected_seconds
from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import load_sites
from tmca_core.config import Config, load
from tmca_core.errors import ConfigError
from tmca_core.networks import Network, build_network
from tmca_core.run import Run, write_atomically
from tmca_core.training.batches import training_batches
from tmca_core.training.centralised import build_pipeline, concatenate, keep_data, test_scores, train_arm
from tmca_core.training.device import resolve_device, set_threads
from tmca_core.training.loop import build_optimizer, train_step
from tmca_core.training.scores import summarise

# Fixed: figures of different versions are to be comparable. Half of the cases are held out, so that seeds differ and not test sets' luck.
PHANTOM = {
    "phantom.sites": 4, "phantom.cases": 80, "phantom.seed": 0, "data.image_size": 96, "data.val_fraction": 0.0, "data.test_fraction": 0.5,
}  # fmt: skip
ROUNDS = 8
MEASURES = {
    "dice_image": "Dice per image", "dice_pooled": "Dice pooled", "laterality_error": "wrong side", "swapped": "swapped",
    "shuffled": "shuffled", "empty": "empty",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training of the table: a variant on a data set with a seed."""

    data: str
    variant: Variant
    seed: int
    config: Config

    @property
    def folder(self) -> str:
        """Name of its folder below the table's `runs`."""
        return f"{self.data}-{self.variant.name}-{self.seed}".replace(" ", "_").replace("/", "_")


@BENCHMARKS.register("ablation")
def ablation(
    manifest: Annotated[Path | None, typer.Option(help="Also on this table of cases.")] = None,
    phantom: Annotated[bool, typer.Option(help="On the phantom benchmark.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the table; the same folder resumes.")] = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N-1.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Optimiser steps of the base network; the others get the same time.", min=8)] = 640,
    variants: Annotated[str, typer.Option(help="Names, comma-separated; empty: all.")] = "",
    workers: Annotated[int, typer.Option(help="Trainings side by side, one thread each.", min=1)] = 2,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A setting of every training, e.g. network.width=32.")] = None,
) -> Measurement:
    """Dice, laterality error and counterfactuals by variant, mean and deviation over seeds; ablation.md and ablation.json in --out."""
    chosen = _chosen(variants)
    given = assignments or []
    data: dict[str, Config] = {}
    if phantom:
        data["phantom"] = load(None, [*(f"{key}={value}" for key, value in PHANTOM.items()), *given])
    if manifest:
        data[manifest.resolve().parent.name] = load(None, given).with_values({"data.manifest": str(manifest.resolve())})
    if not data:
        raise ConfigError("nothing to train on: give --manifest, or leave --phantom on.")
    out.mkdir(parents=True, exist_ok=True)
    trials, costs = [], {}
    for name, config in data.items():
        costs[name] = _costs(out / f"costs-{name}.json", config, chosen)
        for variant in chosen:
            each = max(1, round(steps / costs[name][variant.name] / ROUNDS))
            training = {"federation.rounds": ROUNDS, "training.steps": each, "evaluation.every": ROUNDS, "training.threads": 1}
            for seed in range(seeds):
                trials.append(Trial(name, variant, seed, config.with_values({**variant.settings, **training, "seed": seed})))
    results = _run_all(trials, out, workers)
    rows = [_row(name, variant, costs[name][variant.name], results) for name in data for variant in chosen]
    table = _table(rows, seeds, steps)
    write_atomically(out / "ablation.md", table)
    write_atomically(out / "ablation.json", json.dumps({"rows": rows, "seeds": seeds, "steps": steps}, indent=1) + "\n")
    figures = {f"{row['data']}.{row['variant']}.{key}": row[key]["mean"] for row in rows for key in MEASURES if row[key]}
    return Measurement({}, figures, seeds, f"{table}\n{out / 'ablation.md'}")


def _chosen(names: str) -> list[Variant]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"unknown variants {', '.join(unknown)}; known: {', '.join(known)}.")
    return [known[name] for name in wanted] or list(VARIANTS)


def _costs(file: Path, config: Config, variants: Sequence[Variant]) -> dict[str, float]:
    """Mean time of a training step over the base network's, by variant; measured once a table, interleaved."""
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"settings": config.digest(), "costs": {}}
    if kept["settings"] != config.digest():
        raise ConfigError(f"{file.parent} holds a table of other settings. Give another --out.")
    costs: dict[str, float] = kept["costs"]
    if missing := {variant.name: variant.settings for variant in variants if variant.name not in costs}:
        costs |= _step_ratios(config, missing)
        write_atomically(file, json.dumps(kept, indent=1) + "\n")
    return costs


def _step_ratios(config: Config, settings: Mapping[str, Mapping[str, Any]], repeats: int = 40) -> dict[str, float]:
    set_threads(config.training)
    train = concatenate([site.train for site in load_sites(config).values()])
    working = {
        name: _working(config.with_values({**values, "training.steps": 1}), train)
        for name, values in {"": {"network.name": "guide"}, **settings}.items()
    }
    seconds = dict.fromkeys(working, 0.0)
    for repeat in range(repeats + 2):  # the first two warm up
        for name, (network, work) in working.items():  # interleaved, which shares out the machine's moods
            spent = expected_seconds(work, network)
            if repeat >= 2:
                seconds[name] += spent
    return {name: seconds[name] / seconds[""] for name in settings}


def _working(config: Config, train: CaseTensors) -> tuple[Network, Callable[[], object]]:
    """A network, and a training step of it."""
    device = resolve_device(config.training)
    network = build_network(config).to(device).train()
    batch = next(training_batches(train, build_pipeline(network, config), config, round=1, site="all", device=device))
    optimizer = build_optimizer(network, config.training)
    return network, lambda: float(train_step(network, batch, optimizer, config.training))


def _run_all(trials: Sequence[Trial], out: Path, workers: int) -> dict[tuple[str, str, int], dict[str, float | None]]:
    results = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_trial, trial, out / "runs" / trial.folder): trial for trial in trials}
        for done, (future, trial) in enumerate(futures.items(), 1):
            results[trial.data, trial.variant.name, trial.seed] = found = future.result()
            typer.echo(
                f"{done}/{len(trials)} {trial.data}, {trial.variant.name}, seed {trial.seed}: Dice {found['dice_image']:.3f}", err=True
            )
    return results


def run_trial(trial: Trial, folder: Path) -> dict[str, float | None]:
    """Train and test one trial in `folder`, or read what an earlier call left there."""
    sites = load_sites(trial.config)
    run = Run.create(folder, trial.config)  # refuses a folder of another configuration
    keep_data(run, sites)  # and of other data
    if known := run.read_json("result.json"):
        return known
    torch.set_num_threads(1)
    network, pipeline = train_arm(trial.config, sites, run, arm="pooled")
    summary = summarise(test_scores(network, pipeline, sites, trial.config), bootstrap=0, seed=0)
    result = {key: {**summary["final"], **summary["counterfactual"]}.get(key) for key in MEASURES}
    run.write_json("result.json", result)
    return result


def _row(data: str, variant: Variant, cost: float, results: Mapping[tuple[str, str, int], Mapping[str, float | None]]) -> dict[str, Any]:
    mine = [result for (where, name, _), result in results.items() if (where, name) == (data, variant.name)]
    row: dict[str, Any] = {"data": data, "variant": variant.name, "asks": variant.asks, "step_cost": cost}
    for key in MEASURES:
        values = [value for result in mine if (value := result[key]) is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        row[key] = {"mean": statistics.fmean(values), "sd": spread, "values": values} if values else None
    return row


def _table(rows: Sequence[Mapping[str, Any]], seeds: int, steps: int) -> str:
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += [
            f"### {data}: {seeds} seeds, the time of {steps} steps of `guide`",
            "",
            "| variant | " + " | ".join(MEASURES.values()) + " | step, × guide |",
            "|---|" + "---|" * (len(MEASURES) + 1),
        ]
        for row in rows:
            if row["data"] == data:
                cells = [_cell(row[key], percent=key == "laterality_error") for key in MEASURES]
                lines.append(f"| {row['asks']} | " + " | ".join(cells) + f" | {row['step_cost']:.2f} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Mapping[str, Any] | None, percent: bool) -> str:
    if value is None:
        return "–"
    scale, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    spread = "" if value["sd"] is None else f" ± {scale * value['sd']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}{unit}"
