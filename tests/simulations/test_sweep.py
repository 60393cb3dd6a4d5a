"""`tmca sweep`: every combination once, baselines shared where they are the same, resumed, compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from simulations.sweep import plan, run_trial
from tmca_core.cli import main
from tmca_core.errors import ConfigError
from tmca_core.report.comparison import compare
from tmca_core.run import Run

SETTINGS = [
    "phantom.sites=2", "phantom.cases=10", "data.image_size=32", "network.width=16", "network.heads=2", "training.steps=1",
    "training.batch_size=2", "federation.rounds=1", "evaluation.bootstrap=0", "evaluation.examples=0",
]  # fmt: skip


def test_all_combinations_with_donors_of_baselines_first(tmp_path: Path) -> None:
    trials = plan(None, ["federation.algorithm=fedavg,fedprox", "seed=0,1", 'scenario.poison=nan,""'], SETTINGS, tmp_path)
    assert len({trial.folder for trial in trials}) == len(trials) == 8
    assert {tuple(trial.values.values()) for trial in trials} == {
        (algorithm, seed, poison) for algorithm in ("fedavg", "fedprox") for seed in (0, 1) for poison in ("nan", "")
    }
    # Baselines differ by the seed only: neither the federation nor the scenario is in them.
    assert [trial.donor is None for trial in trials] == [True] * 2 + [False] * 6
    for trial in trials[2:]:
        donor = next(other for other in trials[:2] if other.folder == trial.donor)
        assert donor.values["seed"] == trial.values["seed"]
    assert all(trial.config.federation.algorithm == trial.values["federation.algorithm"] for trial in trials)
    longer = plan(None, ["federation.rounds=1,2"], SETTINGS, tmp_path)
    assert [trial.donor for trial in longer] == [None, None]  # of another length


def test_wrong_axes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to sweep over"):
        plan(None, [], [], tmp_path)
    for axis in ("seed", "seed=", "=1"):
        with pytest.raises(ConfigError, match="--over takes key=value"):
            plan(None, [axis], [], tmp_path)
    with pytest.raises(ConfigError, match="unknown setting 'sead'"):
        plan(None, ["sead=1"], [], tmp_path)


def test_baselines_are_taken_over_and_an_ended_run_is_not_repeated(tmp_path: Path) -> None:
    first, second = plan(None, ["federation.algorithm=fedavg,fedprox"], [*SETTINGS, f"data.cache_dir={tmp_path / 'cache'}"], tmp_path)
    told = run_trial(first)
    assert told["error"] == "" and 0 <= told["dice"] <= 1
    kept = first.folder / "baselines" / "pooled.json"
    marked = {**json.loads(kept.read_text()), "dice_image": 0.25}
    kept.write_text(json.dumps(marked))
    run_trial(second)
    assert Run(second.folder).read_json("run.json")["baselines"]["pooled"] == 0.25  # copied, not trained again
    before = (first.folder / "run.json").stat().st_mtime_ns
    assert run_trial(first) == told
    assert (first.folder / "run.json").stat().st_mtime_ns == before
    assert [row.label for row in compare([Run(first.folder), Run(second.folder)])] == ["algorithm=fedavg", "algorithm=fedprox"]


def test_a_run_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    (trial,) = plan(None, ["scenario.poison_sites=ghent"], [*SETTINGS, "scenario.poison=nan", "simulation.baselines=false"], tmp_path)
    assert run_trial(trial)["error"].startswith("ConfigError: scenario.poison_sites: there is no site 'ghent'")


@pytest.mark.slow
def test_the_command_writes_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--over", "seed=0,1", "--out", str(tmp_path / "out"), *options, "--json"])
    value = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and value["failed"] == [] and value["rows"][0]["seeds"] == [0, 1]
    assert (tmp_path / "out" / "comparison.html").exists()


def test_baselines_that_a_full_disk_cut_off_are_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = plan(None, ["federation.algorithm=fedavg,fedprox"], [*SETTINGS, f"data.cache_dir={tmp_path / 'cache'}"], tmp_path)
    run_trial(first)
    written = 0

    def full(source: str, target: str) -> str:
        nonlocal written
        written += 1
        if written == 2:
            Path(target).touch()
            raise OSError(28, "No space left on device")
        return shutil.copy2(source, target)

    whole = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", lambda source, target: whole(source, target, copy_function=full))
    told = run_trial(second)
    assert "StorageError" in told["error"] and "No space left" in told["error"]
    assert "make room" in told["error"] and not (second.folder / "baselines").exists()
    monkeypatch.setattr(shutil, "copytree", whole)
    assert run_trial(second)["error"] == ""
    assert Run(second.folder).read_json("run.json")["baselines"] == Run(first.folder).read_json("run.json")["baselines"]
