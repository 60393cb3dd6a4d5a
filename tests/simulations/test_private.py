"""A private federation from the command: what is charged, what is not sent, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from simulations.experiment import run_experiment
from tests.support.tiny_runs import tiny
from tmca_core.cli import main
from tmca_core.config import Config
from tmca_core.errors import FederationError, PolicyRefusal
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Ledger
from tmca_core.run import Run

PRIVATE = {"privacy.enabled": True, "privacy.noise_multiplier": 1.5, "training.steps": 2, "federation.rounds": 2}


def private(cache: Path, **more: object) -> Config:
    return tiny(cache, **{**PRIVATE, **more})


def test_every_round_of_every_site_is_charged_and_the_loss_stays_at_home(tmp_path: Path) -> None:
    config = private(tmp_path / "cache").with_values({"simulation.out": str(tmp_path / "run")})
    summary = run_experiment(config, tmp_path / "run", lambda event: None)
    stated = summary["privacy"]
    assert stated["unit"] == "patient" and stated["relation"] == "add/remove" and stated["accountant"] == "PLD"
    for site in summary["sites"]:
        ledger = Ledger.open(tmp_path / "run" / "ledger" / site["name"])
        charges = ledger.read().charges
        assert [entry["round"] for entry in charges] == [1, 2]
        rate = stated["sites"][site["name"]]["sample_rate"]
        expected = epsilon([NoisySteps(1.5, rate, 4)], config.privacy.delta)
        assert stated["epsilon"][site["name"]] == pytest.approx(expected)
        assert ledger.read().epsilon(config.privacy.delta) == pytest.approx(expected, rel=1e-6)
    turns = [turn for turn in Run(tmp_path / "run").events("site_train") if turn["arm"] == "federated"]
    assert turns and all(turn["loss"] is None and turn["seconds"] is None for turn in turns)


def test_a_round_that_is_done_again_is_charged_again(tmp_path: Path) -> None:
    config = private(tmp_path / "cache").with_values({"simulation.out": str(tmp_path / "run")})

    def stop(event: object) -> None:
        if isinstance(event, dict) and event["event"] == "site_train" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path / "run", stop)
    summary = run_experiment(config, tmp_path / "run", lambda event: None)
    rounds = {
        site["name"]: [entry["round"] for entry in Ledger.open(tmp_path / "run" / "ledger" / site["name"]).read().charges]
        for site in summary["sites"]
    }
    assert all(charged in ([1, 2], [1, 2, 2]) for charged in rounds.values()) and [1, 2, 2] in rounds.values()


def test_a_ledger_is_made_once(tmp_path: Path) -> None:
    config = private(tmp_path / "cache", **{"simulation.baselines": False})

    def stop_at(kind: str, round: int) -> None:
        def stop(event: Mapping[str, Any]) -> None:
            if event["event"] == kind and event["round"] == round:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, tmp_path / "run", stop)

    stop_at("asked", 1)  # the request is noted, and no site has a ledger yet
    assert (tmp_path / "run" / "asked.json").exists() and not (tmp_path / "run" / "ledger").exists()
    stop_at("site_train", 2)
    kept = (tmp_path / "run" / "asked.json").read_bytes()
    shutil.rmtree(tmp_path / "run" / "ledger")
    with pytest.raises(PolicyRefusal, match=r"LedgerError: the ledger of site .* is missing after it existed"):
        run_experiment(config, tmp_path / "run", lambda event: None)
    assert not (tmp_path / "run" / "ledger").exists() and (tmp_path / "run" / "asked.json").read_bytes() == kept


def test_settings_without_a_finite_epsilon_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    config = private(tmp_path / "cache", **{"privacy.noise_multiplier": 1e-300, "simulation.baselines": False})
    with pytest.raises(FederationError, match=r"no finite ε goes with .* take a larger privacy\.delta .* or more noise"):
        run_experiment(config, tmp_path / "run", lambda event: None)
    assert not (tmp_path / "run" / "asked.json").exists() and not (tmp_path / "run" / "ledger").exists()


def test_a_site_trains_no_further_than_its_target(tmp_path: Path) -> None:
    more = {"privacy.noise_multiplier": 0.0, "privacy.target_epsilon": 2.0}
    config = private(tmp_path / "cache", **more).with_values({"simulation.out": str(tmp_path / "run")})
    summary = run_experiment(config, tmp_path / "run", lambda event: None)
    assert all(1.9 < value <= 2.0 for value in summary["privacy"]["epsilon"].values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"federation.algorithm": "scaffold"}, "plain local training"), ({"network.name": "tmca", "tmca.alignment": "batch"}, "bank")],
)
def test_what_no_noise_would_cover_is_refused_before_training(settings: dict[str, str], says: str, tmp_path: Path) -> None:
    config = private(tmp_path / "cache", **settings).with_values({"simulation.out": str(tmp_path / "run")})
    with pytest.raises(PolicyRefusal, match=says):
        run_experiment(config, tmp_path / "run", lambda event: None)
    assert not (tmp_path / "run" / "ledger").exists()


def test_private_training_without_a_ledger_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--out", str(tmp_path / "run"), "--set", "privacy.enabled=true", "--set", "privacy.noise_multiplier=1", "--json"])
    assert stopped.value.code == 3
    assert "--policy site.toml" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_run_json_is_json(tmp_path: Path) -> None:
    config = private(tmp_path / "cache", **{"federation.rounds": 1}).with_values({"simulation.out": str(tmp_path / "run")})
    run_experiment(config, tmp_path / "run", lambda event: None)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["privacy"]["delta"] == 1e-5
