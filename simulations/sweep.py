"""`tmca sweep`: every combination of some settings, each a run as `tmca simulate` would make it, and one comparison."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from tmca_core.cli import emit
from tmca_core.config import Config, load
from tmca_core.dotted import Scalar
from tmca_core.errors import ConfigError, TmcaError

if TYPE_CHECKING:
    from tmca_core.run import Run


@dataclass(frozen=True)
class Trial:
    """One combination.

    Attributes:
        folder: the run's.
        donor: folder of an earlier trial with the same baselines; "" where this one trains them.
    """

    values: Mapping[str, Scalar]
    config: Config
    folder: Path
    donor: Path | None


def sweep(
    config_file: Annotated[Path | None, typer.Argument(help="Configuration (TOML), e.g. of simulations/scenarios.")] = None,
    over: Annotated[list[str] | None, typer.Option("--over", help="A setting and its values, e.g. seed=0,1,2; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the comparison; the same folder resumes.")] = Path("runs/sweep"),
    workers: Annotated[int, typer.Option(help="Runs side by side, one process each.", min=1)] = 2,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A setting of every run, e.g. federation.rounds=5.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Simulate every combination of some settings, and compare them in one report."""
    from tmca_core.report.comparison import as_json as values
    from tmca_core.report.comparison import as_markdown, write_comparison
    from tmca_core.run import Run

    out = out.expanduser().resolve()
    trials = plan(config_file, over or [], assignments or [], out)
    failed = run_all(trials, workers)
    if len(failed) == len(trials):
        raise ConfigError(f"none of the {len(trials)} runs ended; the first: {failed[0]}")
    page, rows = write_comparison([Run(trial.folder) for trial in trials if Run(trial.folder).config_path.is_file()], out)
    lines = [as_markdown(rows), *failed, f"comparison: {page}"]
    emit(as_json, {"comparison": str(page), "runs": len(trials), "failed": failed, **values(rows)}, "\n".join(lines))


def plan(config_file: Path | None, over: Sequence[str], assignments: Sequence[str], out: Path) -> list[Trial]:
    """All combinations, those first that train baselines.

    Baselines do not see the federation or the scenario: trials that differ in nothing else share them.

    Raises:
        ConfigError: a setting is wrong, or --over names none.
    """
    axes = [_axis(text) for text in over]
    if not axes:
        raise ConfigError(
            "nothing to sweep over: give --over a.b=1,2,3, e.g. --over federation.algorithm=fedavg,scaffold --over seed=0,1,2."
        )
    trials: list[Trial] = []
    donors: dict[str, Path] = {}
    for texts in itertools.product(*(values for _, values in axes)):
        chosen = [f"{key}={text}" for (key, _), text in zip(axes, texts, strict=True)]
        config = load(config_file, [*assignments, *chosen]).with_values({"simulation.workers": 1})
        folder = out / ",".join(quote(text, safe="=,.-_ ") for text in chosen)
        kin = _kin(config)
        trials.append(Trial({key: config.flat()[key] for key, _ in axes}, config, folder, donors.get(kin)))
        donors.setdefault(kin, folder)
    return sorted(trials, key=lambda trial: trial.donor is not None)


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    found = [value.strip() for value in values.split(",") if value.strip()]
    if not equals or not key.strip() or not found:
        raise ConfigError(f"--over takes key=value,value,…, got '{text}'.")
    return key.strip(), found


def _kin(config: Config) -> str:
    """Equal where the baselines are."""
    plain = Config().flat()
    aside = {k: plain[k] for k in plain if k.startswith(("federation.", "scenario.", "simulation.")) and k != "federation.rounds"}
    return config.with_values(aside).digest()


def run_all(trials: Sequence[Trial], workers: int) -> list[str]:
    """Run the trials that have not ended; returns what failed, "folder: reason"."""
    failed: list[str] = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        # Donors first, all of them: the others copy what they leave.
        for wave in ([t for t in trials if t.donor is None], [t for t in trials if t.donor is not None]):
            futures = {pool.submit(run_trial, trial): trial for trial in wave}
            for done, future in enumerate(as_completed(futures), 1):
                trial, told = futures[future], future.result()
                if told["error"]:
                    failed.append(f"{trial.folder.name}: {told['error']}")
                result = told["error"] or f"Dice {told['dice']:.3f}"
                typer.echo(f"{done}/{len(wave)} {trial.folder.name}: {result}", err=True)
    return failed


def run_trial(trial: Trial) -> dict[str, Any]:
    """Run or resume one trial; {"dice", "error"}."""
    from simulations.experiment import run_experiment
    from tmca_core.run import Run

    try:
        run = Run.create(trial.folder, trial.config)
        if trial.donor is not None:
            _share(trial.donor / "baselines", run)
        summary = run.read_json("run.json")
        if not summary.get("final") or "skipped_rows" not in summary:
            summary = run_experiment(trial.config, trial.folder, _ignore)
        return {"dice": summary["final"]["dice_image"], "error": ""}
    except TmcaError as error:
        return {"dice": None, "error": f"{type(error).__name__}: {error}"}


def _share(baselines: Path, run: Run) -> None:
    """Give a run the baselines of another, all or none.

    Raises:
        StorageError: they could not be written.
    """
    kept, tmp = run.folder / "baselines", run.folder / ".baselines.tmp"
    if kept.exists() or not baselines.exists():
        return
    shutil.rmtree(tmp, ignore_errors=True)
    with run.writing(kept):
        shutil.copytree(baselines, tmp)
        tmp.rename(kept)


def _ignore(event: Mapping[str, Any]) -> None:
    """Nobody watches."""
