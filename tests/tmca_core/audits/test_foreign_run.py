"""The one-run audit of any training: of a mechanism whose ε is known, and of Opacus's logistic regression on random films."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tmca_core.audits.bounds import epsilon_of_mu
from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.conduct import Report, conduct
from tmca_core.audits.foreign_run import Training, of_step
from tmca_core.audits.onerun import one_run
from tmca_core.cli import main
from tmca_core.errors import AuditInvalid, ConfigError

Coins = NDArray[np.bool_]
ONE_GDP = epsilon_of_mu(1.0, 1e-5)  # 4.38


def with_noise(sigma: float) -> Training:
    """Every canary in a number of its own, clipped to 1: exactly 1/σ-GDP."""
    return lambda inside: inside + sigma * np.random.default_rng().normal(size=inside.size)


def report(training: Training, folder: Path, epsilon: float, quiet: Training | None = None, canaries: int = 1000) -> Report:
    return conduct(of_step(training, of_epsilon(epsilon, 1e-5), canaries=canaries, guesses=0, beta=0.01, quiet=quiet), folder)


def test_a_training_passes_its_own_claim_and_fails_a_smaller_one(tmp_path: Path) -> None:
    honest = report(with_noise(1.0), tmp_path / "a", ONE_GDP, quiet=with_noise(0.1))
    told = honest.to_json()
    assert honest.verdict == "PASS" and told["bounds"][0]["value"] <= ONE_GDP < told["bounds"][0]["attainable"]
    assert told["registered"]["membership"] == "independent fair coins of the operating system"
    eighth = report(with_noise(0.125), tmp_path / "b", ONE_GDP, quiet=with_noise(0.1))
    assert eighth.verdict == "FAIL" and eighth.exit_code == 4
    alone = report(with_noise(1.0), tmp_path / "c", ONE_GDP)
    assert alone.verdict == "NO POWER" and "--quiet" in alone.sentence
    deaf = report(with_noise(1.0), tmp_path / "d", ONE_GDP, quiet=with_noise(50.0))
    assert deaf.verdict == "INVALID" and "control" in deaf.sentence


def test_one_training_is_made_and_it_cannot_touch_the_coins(tmp_path: Path) -> None:
    calls: list[int] = []

    def training(inside: Coins) -> NDArray[np.float64]:
        calls.append(inside.size)
        inside[:] = True
        return np.random.default_rng().normal(size=inside.size)

    assert report(training, tmp_path / "a", 1.0, canaries=200).verdict == "NO POWER"  # not INVALID: about half count as outside
    assert calls == [200]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (lambda inside: np.zeros(3), "3 scores for 200 canaries"),
        (lambda inside: np.full(inside.size, np.nan), "not finite"),
        (lambda inside: np.zeros(inside.size), "tied"),
        (lambda inside: "well", "not numbers"),
    ],
)
def test_scores_from_which_nothing_follows_are_invalid(tmp_path: Path, scores: Training, said: str) -> None:
    found = report(scores, tmp_path / "a", 1.0, canaries=200)
    assert found.verdict == "INVALID" and found.exit_code == 5 and said in found.sentence


def test_wrong_orders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditInvalid, match="too few"):
        one_run(step="numpy:asarray", canaries=10)
    with pytest.raises(ConfigError, match="more than the 200 canaries"):
        one_run(step="numpy:asarray", canaries=200, guesses=201, epsilon=1.0)
    with pytest.raises(ConfigError, match="give one of"):
        one_run(step="numpy:asarray", scores=tmp_path)
    with pytest.raises(ConfigError, match="--quiet"):
        one_run(quiet="numpy:asarray")
    with pytest.raises(ConfigError, match="no callable"):
        one_run(step="numpy:nothing")


def test_the_command_trains_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "their_pipeline.py").write_text("def train(inside):\n    return inside + [i / 1e6 for i in range(len(inside))]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["audit", "one-run", "--step", "their_pipeline:train", "--canaries", "300", "--epsilon", "2", "--out", "audit", "--json"])
    assert stop.value.code == 4
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "FAIL" and found["registered"]["step"] == "their_pipeline:train"
    assert found["figures"]["right guesses"].startswith("90 of 90")


@pytest.mark.parametrize("audit", ["one-run", "mechanism"])
def test_a_training_that_breaks_is_invalid_and_named(
    audit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_pipeline.py").write_text("def train(inside):\n    raise ValueError('no films')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["audit", audit, "--step", "broken_pipeline:train", "--epsilon", "2", "--out", "audit", "--json"])
    assert stop.value.code == 5
    assert "broken_pipeline:train raised ValueError: no films" in json.loads(capsys.readouterr().out)["sentence"]


def opacus(noise: float) -> Training:
    """Logistic regression on static with random labels, a canary's score its margin: one step of all, Opacus's hooks."""

    def training(inside: Coins) -> NDArray[np.float32]:
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer

        films = torch.from_numpy(np.random.default_rng(0).normal(size=(inside.size, 16384))).float()
        labels = torch.from_numpy(np.random.default_rng(1).integers(0, 2, inside.size)).float()
        network = nn.Linear(16384, 1)
        nn.init.zeros_(network.weight)
        nn.init.zeros_(network.bias)
        module, plain = GradSampleModule(network, loss_reduction="sum"), torch.optim.SGD(network.parameters(), lr=1.0)
        optimizer = DPOptimizer(plain, noise_multiplier=noise, max_grad_norm=1.0, expected_batch_size=1, loss_reduction="sum")

        chosen = torch.from_numpy(inside)
        losses = nn.functional.binary_cross_entropy_with_logits(module(films[chosen]).squeeze(1), labels[chosen], reduction="none")
        torch.autograd.backward(losses.sum())
        optimizer.step()
        module.remove_hooks()
        with torch.no_grad():
            margins: NDArray[np.float32] = (network(films).squeeze(1) * (2 * labels - 1)).numpy()
        return margins

    return training


def test_opacus_passes_with_its_noise_and_fails_without(tmp_path: Path) -> None:
    claimed = epsilon_of_mu(0.5, 1e-5)  # 1.99
    assert report(opacus(2.0), tmp_path / "a", claimed, quiet=opacus(0.0), canaries=600).verdict == "PASS"
    assert report(opacus(0.0), tmp_path / "b", claimed, quiet=opacus(0.0), canaries=600).verdict == "FAIL"
