"""The one-run audit of any training: of a mechanism whose ε is known, and of Opacus's logistic regression on random films."""

from __future__ import annotations

import json
import sys
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
        (lambda inside: {}, "a mapping"),
        (lambda inside: inside * 1j, "complex"),
        (lambda inside: np.arange(inside.size) - 1e6 * inside, "turned round"),
        (lambda inside: (1 + 9 * inside) * (-1.0) ** np.arange(inside.size) + 1e-6 * np.arange(inside.size), "distance from the middle"),
        (lambda inside: [], "released nothing"),
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
    with pytest.raises(ConfigError, match="--step numpy:nothing: 'numpy' has no callable"):
        one_run(step="numpy:nothing")
    with pytest.raises(ConfigError, match="--quiet numpy:nothing: 'numpy' has no callable"):
        one_run(step="numpy:asarray", quiet="numpy:nothing")
    with pytest.raises(ConfigError, match="--quiet goes with --step"):
        one_run(scores=tmp_path, quiet="numpy:asarray")


THEIRS = """
import sys

import numpy as np


def train(inside):
    from their_noise import ORDER  # beside this file

    print("epoch 1")
    return np.array([inside + ORDER[: len(inside)]]).T


def broken(inside):
    raise ValueError("no films")


def left(inside):
    sys.exit(0)


def off(inside):
    import os
    import subprocess

    subprocess.run(["echo", "epoch 1"])
    os.write(1, b"epoch 2")
    os._exit(0)


class Skipped(BaseException):
    pass


def skipped(inside):
    raise Skipped("no GPU")


def half(inside):
    import torch

    return torch.tensor((inside - 0.5) * (1 + np.arange(len(inside)) / 1000)).bfloat16()
"""


@pytest.mark.parametrize(
    ("audit", "step", "quiet", "code", "said"),
    [
        ("one-run", "train", "train", 4, "is claimed"),
        ("one-run", "train", "left", 5, "raised SystemExit"),
        ("one-run", "left", "train", 5, "raised SystemExit"),
        ("one-run", "off", "train", 5, "raised SystemExit"),
        ("mechanism", "skipped", "skipped", 5, "their_pipeline:skipped raised Skipped: no GPU"),
        ("one-run", "broken", "train", 5, "their_pipeline:broken raised ValueError: no films"),
        ("one-run", "half", "train", 4, "is claimed"),  # of bfloat16, which numpy does not have
        ("mechanism", "broken", "broken", 5, "their_pipeline:broken raised ValueError: no films"),
    ],
)
def test_the_command_trains_what_it_is_given(
    audit: str,
    step: str,
    quiet: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "their_pipeline.py").write_text(THEIRS)
    (tmp_path / "their_noise.py").write_text("import numpy\n\nORDER = numpy.arange(1000) / 1e6\n")
    monkeypatch.chdir(tmp_path)
    for module in ("their_pipeline", "their_noise"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    more = ["--canaries", "300"] if audit == "one-run" else []
    theirs = ["--step", f"their_pipeline:{step}", "--quiet", f"their_pipeline:{quiet}"]
    with pytest.raises(SystemExit) as stop:
        main(["audit", audit, *theirs, *more, "--epsilon", "2", "--beta", "0.01", "--out", "audit", "--json"])
    assert stop.value.code == code
    found = json.loads(capfd.readouterr().out)
    assert said in found["sentence"]
    assert found["registered"]["step"] == f"their_pipeline:{step}" and quiet in str(found["registered"]["positive_control"])


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
