"""The utility table at its smallest: what is compared with what, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.bench.commands import bench
from simulations.bench.utility import utility
from simulations.bench.utility_table import Trial, rows_of, table_of
from tmca_core.config import parse
from tmca_core.errors import ConfigError
from tmca_core.privacy.ledger import Ledger
from tmca_core.privacy.planning import trained_numbers
from tmca_core.run import Run

TINY = ("phantom.cases=16", "data.image_size=32", "network.width=16", "network.heads=2")
SMALL = [
    *(part for setting in (*TINY, "phantom.sites=2", "federation.rounds=1", "training.steps=1") for part in ("--set", setting)),
    *(part for setting in (*TINY, "training.epochs=1") for part in ("--start-set", setting)),
]

CHOSEN = ("--set", "federation.server_learning_rate=0.2", "--private-set", "privacy.views=2")


def run(out: Path, *more: str) -> dict[str, dict[str, float]]:
    done = CliRunner().invoke(bench, ["utility", "--out", str(out), "--seeds", "1", "--workers", "1", *SMALL, *more, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, dict[str, float]] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


@pytest.mark.slow
def test_a_table_of_shares_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "table"
    run(out, "--epsilons", "8", "--no-scratch", *CHOSEN)
    assert {path.name for path in (out / "runs").iterdir()} == {"start-plain-0", "tuned-plain-0", "tuned-8-0"}
    plain, private = (Run(out / "runs" / name).config() for name in ("tuned-plain-0", "tuned-8-0"))
    assert private.privacy.target_epsilon == 8.0 and private.privacy.delta == 1e-5 and not plain.privacy.enabled
    same = {key for key, value in plain.flat().items() if private.flat()[key] == value}
    changed = {"privacy.enabled", "privacy.target_epsilon", "training.batch_size", "privacy.views", "federation.server_learning_rate"}
    assert set(plain.flat()) - same == changed
    assert plain.federation.server_learning_rate == 0.2 and private.federation.server_learning_rate == pytest.approx(0.04 * 8**0.5)
    assert plain.network.start == private.network.start == str(out / "start")
    start = Run(out / "start").config()
    assert start.phantom.shift == 0 and start.phantom.seed != plain.phantom.seed and start.network.trainable == "all"
    rows = {row["name"]: row for row in json.loads((out / "utility.json").read_text())["rows"]}
    assert rows["tuned.8"]["trained"] == trained_numbers(private) < rows["start.plain"]["trained"] + 1
    assert 7.9 < rows["tuned.8"]["spent"] <= 8 and rows["tuned.plain"]["spent"] is None
    assert Ledger.open(out / "runs" / "tuned-8-0" / "ledger" / "phantom-00").read().charges

    trained = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    run(out, "--epsilons", "4,8", *CHOSEN)
    assert all(path.stat().st_mtime_ns == when for path, when in trained.items())
    rows = {row["name"]: row for row in json.loads((out / "utility.json").read_text())["rows"]}
    assert set(rows) == {"start.plain", "tuned.plain", "tuned.4", "tuned.8", "scratch.plain", "scratch.8"}
    scratch = Run(out / "runs" / "scratch-8-0").config()
    assert scratch.network.trainable == "all" and not scratch.network.start and scratch.privacy.target_epsilon == 8.0
    with pytest.raises(ConfigError, match="another configuration"):
        utility(out, epsilons="8", seeds=1, workers=1, assignments=[*SMALL[1:14:2], "training.learning_rate=0.5"])


def results(**dice: float) -> dict[str, dict[str, object]]:
    patients = {"a": {"patients": 800, "noise_multiplier": 1.0, "length": 0.5, "epsilon": 7.5}, "b": {"patients": 790}}
    both = {site: {**values, "noise_multiplier": 2.0, "length": 1.5} if site == "b" else values for site, values in patients.items()}
    return {name.replace("_", "-"): {"dice": value, "sites": both} for name, value in dice.items()}


def test_gain_and_share_are_those_of_each_seed() -> None:
    config = parse({"network.start": "/x", "network.trainable": "head"})
    trials = [Trial(arm, epsilon, seed, config) for seed in (0, 1) for arm, epsilon in (("start", 0.0), ("tuned", 0.0), ("tuned", 8.0))]
    found = results(start_plain_0=0.80, tuned_plain_0=0.90, tuned_8_0=0.89, start_plain_1=0.82, tuned_plain_1=0.87, tuned_8_1=0.855)
    rows = {row["name"]: row for row in rows_of(trials, found)}
    assert rows["tuned.8"]["gain"]["values"] == pytest.approx([0.09, 0.035])
    assert rows["tuned.8"]["kept"]["values"] == pytest.approx([0.9, 0.7]) and rows["tuned.8"]["kept"]["mean"] == pytest.approx(0.8)
    assert rows["tuned.8"]["spent"] == 7.5 and rows["tuned.8"]["patients"] == [790, 800]
    assert rows["tuned.8"]["noise_multiplier"] == 1.5 and rows["tuned.8"]["length"] == 1.0
    assert rows["tuned.plain"]["kept"]["mean"] == 1.0 and rows["start.plain"]["gain"]["mean"] == 0
    table = table_of(list(rows.values()), config, 2)
    assert "| fine-tuned | 8 | 1.50 |" in table and "80 ± 14 %" in table


def test_without_a_gain_there_is_no_share() -> None:
    config = parse({"network.start": "/x", "network.trainable": "head"})
    trials = [Trial(arm, epsilon, 0, config) for arm, epsilon in (("start", 0.0), ("tuned", 0.0), ("tuned", 1.0))]
    rows = rows_of(trials, results(start_plain_0=0.9, tuned_plain_0=0.9, tuned_1_0=0.85))
    assert all(row["kept"] is None for row in rows)


@pytest.mark.parametrize("wrong", ["", "8,x", "0", "inf"])
def test_targets_are_numbers(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--epsilons"):
        utility(tmp_path, epsilons=wrong)
