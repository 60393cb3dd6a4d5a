"""What differential privacy costs: fine-tuning on shifted sites from a start on unshifted ones, with and without noise."""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.bench.interface import BENCHMARKS, Measurement
from simulations.bench.utility_table import Trial, rows_of, table_of
from tmca_core.cases.sites import load_sites
from tmca_core.config import Config, load
from tmca_core.dotted import scalar
from tmca_core.errors import ConfigError
from tmca_core.networks import build_network
from tmca_core.privacy.accounting import NoisySteps
from tmca_core.privacy.planning import mechanism_of, signal_of, trained_numbers
from tmca_core.run import Run, write_atomically
from tmca_core.training.centralised import build_pipeline, concatenate, keep_data, train_arm
from tmca_core.training.device import resolve_device, set_threads
from tmca_core.training.evaluation import evaluate

DATA = {
    "data.image_size": 64, "data.val_fraction": 0.0, "data.test_fraction": 0.2, "data.split": "independent", "phantom.cases": 1950,
    "evaluation.bootstrap": 0,
}  # fmt: skip
START = {
    **DATA, "phantom.sites": 1, "phantom.seed": 1, "phantom.shift": 0.0, "phantom.cases": 1560, "training.batch_size": 8,
    "training.epochs": 1, "federation.rounds": 1, "training.ema": 0.99, "augmentation.gain": 0.0, "augmentation.noise": 0.0,
}  # fmt: skip
"""The start: unshifted films of other patients, of one scanner as it is, so that the sites' scanners are new to the network. After
six epochs in place of one it is as good on the sites' films as fine-tuning of its norms makes it, and no gain is left to be kept."""
SITES = {
    **DATA, "phantom.sites": 5, "phantom.seed": 0, "phantom.shift": 2.0, "federation.weighting": "uniform", "simulation.baselines": False,
}  # fmt: skip
"""1950 films are of some 1,250 patients, of whom some 1,000 train."""
RATE = "federation.server_learning_rate"
TUNING = {
    "network.trainable": "norms", "federation.rounds": 15, "training.steps": 1, "training.batch_size": 320, "evaluation.every": 15,
    "training.optimizer": "sgd", "training.learning_rate": 1.0, "training.warmup": 0.0, "federation.keep_optimizer": False,
    "federation.algorithm": "fedadam", "federation.server_momentum": 0.7, "federation.beta2": 0.9, "federation.tau": 2e-5, RATE: 0.08,
    "training.schedule": "constant", "training.ema": 0.8, "training.weight_decay": 0.0,
    "augmentation.flip": 0.0, "augmentation.rotate": 0.0, "augmentation.scale": 0.0, "augmentation.shift": 0.0,
    "augmentation.gain": 0.0, "augmentation.noise": 0.0, "augmentation.no_report": 0.0,
    "privacy.clip": 0.1, "privacy.delta": 1e-5, "privacy.chunk": 64,
}  # fmt: skip
"""A site sends one step's gradient and the server's Adam follows the mean: it divides by what is left of the noise of all sites, where a
site's own Adam divides by its noise. The first moment starts at 0 and is not corrected: at 0.9 a third of the rounds would hardly move.
The average of the last rounds takes noise off again. Nothing is augmented: in so few steps no film is learnt by heart, and patients'
gradients agree more."""
SCRATCH = {"network.trainable": "all", "network.start": "", RATE: 2e-3}


@BENCHMARKS.register("utility")
def utility(
    out: Annotated[Path, typer.Option(help="Folder of the table; the same folder resumes.")] = Path("runs/utility"),
    epsilons: Annotated[str, typer.Option(help="ε of each patient, comma-separated.")] = "1,2,4,8",
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N-1.", min=1)] = 3,
    workers: Annotated[int, typer.Option(help="Federations side by side, one thread each.", min=1)] = 2,
    scratch: Annotated[bool, typer.Option(help="Also from scratch, at the largest ε and without DP.")] = True,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A setting of every fine-tuning.")] = None,
    private_assignments: Annotated[list[str] | None, typer.Option("--private-set", help="A setting of those with DP only.")] = None,
    start_assignments: Annotated[list[str] | None, typer.Option("--start-set", help="A setting of the training of the start.")] = None,
) -> Measurement:
    """kept: share of the gain in Dice that fine-tuning without DP brings, by ε; utility.md and utility.json in --out."""
    targets = _targets(epsilons)
    out = out.resolve()
    start = _start(out / "start", _load(START, start_assignments))
    tuned = _load({**SITES, **TUNING, "network.start": str(start)}, assignments)
    own = {key: scalar(text) for key, _, text in (given.partition("=") for given in private_assignments or [])}
    trials = [trial for seed in range(seeds) for trial in _trials(tuned.with_values({"seed": seed}), targets, own, scratch)]
    results = _run_all(trials, out, workers)
    rows = rows_of(trials, results)
    text = table_of(rows, tuned, seeds)
    write_atomically(out / "utility.md", text)
    write_atomically(out / "utility.json", json.dumps({"rows": rows, "seeds": seeds}, indent=1) + "\n")
    kept = {f"kept_{row['epsilon']:g}": row["kept"]["mean"] for row in rows if row["arm"] == "tuned" and row["epsilon"] and row["kept"]}
    return Measurement(kept, {row["name"]: row["dice"]["mean"] for row in rows}, seeds, f"{text}\n{out / 'utility.md'}")


def _targets(epsilons: str) -> list[float]:
    try:
        found = sorted({float(part) for part in epsilons.split(",") if part.strip()})
    except ValueError:
        found = []
    if not found or not all(0 < value < float("inf") for value in found):
        raise ConfigError(f"--epsilons takes numbers above 0, separated by commas; got '{epsilons}'.")
    return found


def _load(values: Mapping[str, Any], assignments: Sequence[str] | None) -> Config:
    return load(None, [*(f"{key}={value}" for key, value in values.items()), "training.threads=1", *(assignments or [])])


def _start(folder: Path, config: Config) -> Path:
    """The run of the network that fine-tuning starts from, trained unless it is there."""
    with Run(folder).held():
        run = Run.create(folder, config)
        last = run.last_checkpoint()
        if last is None or last.round < config.federation.rounds:
            set_threads(config.training)
            sites = load_sites(config)
            keep_data(run, sites)
            train_arm(config, sites, run, arm="pooled")
    return folder


def _trials(tuned: Config, targets: Sequence[float], own: Mapping[str, Any], scratch: bool) -> list[Trial]:
    """The federations of one seed; `own` are settings of the private ones.

    Their rate falls with ε, as Adam's steps are as long in any noise.
    """
    rates = {epsilon: min(tuned.federation.server_learning_rate, 0.04 * epsilon**0.5) for epsilon in targets}
    private = [(epsilon, {"privacy.enabled": True, "privacy.target_epsilon": epsilon, RATE: rates[epsilon], **own}) for epsilon in targets]
    plain = {"training.batch_size": _cases_of(tuned)}
    arms: list[tuple[str, float, Mapping[str, Any]]] = [("start", 0.0, {}), ("tuned", 0.0, plain)]
    arms += [("tuned", epsilon, values) for epsilon, values in private]
    if scratch:
        arms += [("scratch", 0.0, {**plain, **SCRATCH}), ("scratch", private[-1][0], {**private[-1][1], **SCRATCH})]
    return [Trial(arm, epsilon, tuned.seed, tuned.with_values(values)) for arm, epsilon, values in arms]


def _cases_of(config: Config) -> int:
    """Cases of as many patients as a private step expects: `training.batch_size` means patients there."""
    sites = [site.train for site in load_sites(config).values()]
    return round(config.training.batch_size * sum(map(len, sites)) / sum(site.patients for site in sites))


def _run_all(trials: Sequence[Trial], out: Path, workers: int) -> dict[str, dict[str, Any]]:
    results = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_trial, trial, out / "runs" / trial.folder): trial for trial in trials}
        for done, (future, trial) in enumerate(futures.items(), 1):
            results[trial.folder] = found = future.result()
            typer.echo(f"{done}/{len(trials)} {trial.folder}: Dice {found['dice']:.4f}", err=True)
    return results


def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """Run one federation in `folder`, go on with it, or read what an earlier call left there.

    Returns:
        {"dice": mean of all test images, "sites": {site: patients that train, ε, σ, q, length of the noise}}.
    """
    from simulations.engine import simulate

    run = Run.create(folder, trial.config)  # refuses a folder of another configuration
    if known := run.read_json("result.json"):
        return known
    set_threads(trial.config.training)
    if trial.arm == "start":
        dice, privacy = _dice_of_start(trial.config), None
    else:
        summary = simulate(trial.config, folder, None)
        dice, privacy = summary["final"]["dice_image"], summary["privacy"]
    sites = {name: _noise(trial, site.train.patients) for name, site in load_sites(trial.config).items()}
    for name, epsilon in privacy["epsilon"].items() if privacy else ():
        sites[name]["epsilon"] = epsilon
    result = {"dice": dice, "sites": sites}
    run.write_json("result.json", result)
    return result


def _dice_of_start(config: Config) -> float:
    device = resolve_device(config.training)
    network = build_network(config).to(device)
    test = concatenate([site.test for site in load_sites(config).values()])
    pipeline = build_pipeline(network, config)
    scores = evaluate(network, test, pipeline, settings=config.evaluation, device=device, counterfactual=False, hd95=False)
    return statistics.fmean(score.dice for score in scores)


def _noise(trial: Trial, patients: int) -> dict[str, float]:
    if not trial.epsilon:
        return {"patients": patients}
    config = trial.config
    mechanism = mechanism_of(config, patients)
    run = NoisySteps(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps * config.federation.rounds)
    length = signal_of(run, patients, trained_numbers(config), config.privacy.delta).length
    return {"patients": patients, "noise_multiplier": mechanism.noise_multiplier, "sample_rate": mechanism.sample_rate, "length": length}
