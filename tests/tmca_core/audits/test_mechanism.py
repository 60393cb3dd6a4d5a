"""The gate of this project's own step: it must pass as shipped, and fail with every fault put into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tiny_runs import tiny
from tests.tmca_core.audits.test_sensitivity import finished
from tmca_core.audits.claims import of_one_step
from tmca_core.audits.conduct import conduct
from tmca_core.audits.foreign import of_step
from tmca_core.audits.interface import Evidence
from tmca_core.audits.mechanism import QUICK, _noise_of, mechanism, of_configuration
from tmca_core.cli import main
from tmca_core.config import load
from tmca_core.errors import AuditInvalid, ConfigError, NotApplicable
from tmca_core.losses import LOSSES
from tmca_core.losses.interface import Loss
from tmca_core.losses.segmentation import dice_cross_entropy
from tmca_core.privacy import gradients, randomness, training
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.planning import mechanism_of, training_patients
from tmca_core.privacy.randomness import SecureStream
from tmca_core.run import Run

noised, clipped_sum = randomness.noised, gradients.clipped_sum


def half_the_noise(total: Any, std: float, stream: Any) -> Any:
    return noised(total, std / 2, stream)


def without_clipping(tensor: str) -> Callable[..., Any]:
    def leaky(network: Any, drawn: Any, losses: Any, clip: float, **rest: Any) -> Any:
        sums, norms = clipped_sum(network, drawn, losses, clip, **rest)
        raw, _ = clipped_sum(network, drawn, losses, 1e30, **rest)
        return sums | {name: raw[name] for name in sums if name == tensor}, norms

    return leaky


class Seeded:
    """A new generator with one seed in every round."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)

    def read(self, size: int) -> bytes:
        return self.generator.bytes(size)


GOING_ON = np.random.default_rng(4)


class OfTheProcess:
    """One generator for the whole process."""

    def read(self, size: int) -> bytes:
        return GOING_ON.bytes(size)


@pytest.fixture(scope="module", autouse=True)
def coupled_loss() -> Iterator[str]:
    """A loss that multiplies every case's value with the batch's, and declares itself decomposable."""

    def per_case(logits: Tensor, masks: Tensor) -> Tensor:
        values = dice_cross_entropy(logits, masks)
        return values * values.sum()

    with mock.patch.dict(LOSSES._factories, coupled=lambda: Loss(per_case, decomposable=True)):
        yield "coupled"


def audited(runs: int, sigma: float = 1.0, loss: str = "dice-ce", **faults: Any) -> Evidence:
    config = load(None, [*QUICK, f"training.loss={loss}"])
    with ExitStack() as stack:
        for name, fault in faults.items():
            stack.enter_context(mock.patch.object(training, name, fault))
        if loss == "dice-ce":  # what is declared is tested once below: it takes a real network
            stack.enter_context(mock.patch("tmca_core.audits.sensitivity.declared", return_value=()))
        return of_configuration(config, sigma, delta=1e-5, runs=runs, beta=0.05).measure("target")


def test_the_shipped_step_passes_with_both_controls_as_they_must_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "mechanism", "--noise", "1", "--runs", "40", "--out", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and found["verdict"] == "PASS", found["sentence"]
    assert found["claim"]["epsilon"] == pytest.approx(4.377, abs=1e-3) and found["claim"]["mu"] == 1.0
    assert all(control["as_it_must"] for control in found["controls"].values())
    assert found["bounds"][0]["attainable"] > 2 and found["figures"]["the canary's trace before noise, clips"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fault", "says"),
    (
        ({"noised": half_the_noise}, "times the one that is claimed"),
        ({"clipped_sum": without_clipping("norm.weight")}, "moves the sum before noise by"),
        ({"clipped_sum": without_clipping("down.weight")}, "moves the sum before noise by"),
        ({"SecureStream": Seeded}, "equal number for number"),
        ({"SecureStream": OfTheProcess}, "two draws under one seed cancel"),
        ({"loss": "coupled"}, "changes with the other cases"),
    ),
)
def test_a_faulty_step_fails(fault: dict[str, Any], says: str) -> None:
    found = audited(10, **fault)
    assert found.flagged and says in "; ".join(found.alarms)


def test_noise_left_out_where_only_the_configured_network_has_tensors_is_found() -> None:
    def all_but_the_text(sums: Any, mechanism: Mechanism, stream: Any) -> Any:
        released = noisy_mean(sums, mechanism, stream)
        return released | {name: sums[name] / mechanism.expected for name in released if "text" in name}

    def found(named: bool) -> Evidence:
        config = load(None, [*QUICK])
        with (  # what is tested elsewhere
            mock.patch("tmca_core.audits.sensitivity.declared", return_value=()),
            mock.patch("tmca_core.audits.repeats.repeated", return_value=None),
        ):
            return of_configuration(config, 1.0, delta=1e-5, runs=4, beta=0.05, named=named).measure("target")

    noisy_mean, what = training.noisy_mean, "noise of the network 'guide'"
    with mock.patch.object(training, "noisy_mean", all_but_the_text):
        assert not found(named=False).alarms
        assert "in the network 'guide' the noise of all tensors is 0.6" in "; ".join(found(named=True).alarms)
        with mock.patch("tmca_core.audits.mechanism.MOST_NUMBERS", 1000):
            assert "NOT TESTED" in found(named=True).figures[what]
    honest = found(named=True)
    assert not honest.alarms and "tested in 8 releases" in honest.figures[what]


def test_a_run_is_audited_at_its_own_noise_and_a_configuration_at_one_that_somebody_states(tmp_path: Path) -> None:
    private, plain = finished(tmp_path / "a"), finished(tmp_path / "b", private=False)
    assert mechanism(run=private).registered["noise_multiplier"] == mechanism(run=private, noise=1.5).registered["noise_multiplier"] == 1.5
    assert "made again" in mechanism(run=private).scope and mechanism(run=private).registered["configuration_sha256"]
    assert mechanism(run=private, noise=1.5004).registered["noise_multiplier"] == 1.5  # as copied from a printed line
    with pytest.raises(ConfigError, match=r"trained with σ = 1\.5"):
        mechanism(run=private, noise=3.0)
    for given in ({"run": plain}, {"run": plain, "noise": 1.0}, {"config": plain / "config.toml"}):
        with pytest.raises(NotApplicable, match="trains without privacy"):
            mechanism(**given)
    stated = mechanism(config=plain / "config.toml", noise=2.0)
    assert stated.claim.exact_mu == 0.5 and not stated.scope
    with pytest.raises(ConfigError, match="another training than the run's"):
        mechanism(run=private, assignments=["training.loss=dice"])


def test_a_centralised_run_has_the_noise_of_the_place_where_it_trained(tmp_path: Path) -> None:
    config = tiny(tmp_path / "c", privacy__enabled=True, privacy__target_epsilon=4.0)
    patients, run = training_patients(config), Run.create(tmp_path / "run", config)
    everybody = len(set().union(*patients.values()))
    own = {name: mechanism_of(config, len(ids)).noise_multiplier for name, ids in patients.items()}
    pooled, last = mechanism_of(config, everybody).noise_multiplier, max(own)
    assert pooled != min(own.values())
    assert _noise_of(config, None) == min(own.values())
    for engine, arm, expected in (
        ("inprocess", "", min(own.values())),
        ("centralised", "pooled", pooled),
        ("centralised", f"local:{last}", own[last]),
    ):
        run.write_json("run.json", {"schema": 1, "engine": engine, "arm": arm})
        assert _noise_of(config, run.folder) == expected
    run.write_json("run.json", {"schema": 1, "engine": "centralised", "arm": "local:nowhere"})
    with pytest.raises(AuditInvalid, match="no site of the run's arm 'local:nowhere'"):
        _noise_of(config, run.folder)


def test_noise_left_out_of_one_small_tensor_is_found() -> None:
    def all_but_the_last(sums: Any, mechanism: Mechanism, stream: Any) -> Any:
        released = noisy_mean(sums, mechanism, stream)
        last = list(released)[-1]
        return released | {last: sums[last] / mechanism.expected}

    noisy_mean = training.noisy_mean
    found = audited(4, noisy_mean=all_but_the_last)
    assert any("head.bias" in alarm for alarm in found.alarms)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", (0.5, 1.0, 2.0))
def test_the_bound_alone_tells_honest_noise_from_half_of_it(sigma: float) -> None:
    # σ = 2 takes the most runs: half the noise is μ = 1 where ½ is claimed.
    runs = 500 if sigma == 2 else 150
    honest, halved = audited(runs, sigma), audited(runs, sigma, noised=half_the_noise)
    assert not honest.flagged and not honest.invalid
    assert halved.bounds[0].exceeds and halved.bounds[0].value < 2 / sigma


def false_alarms(sigma: float, runs: int, repetitions: int) -> tuple[int, int]:
    """How often the honest shipped step is flagged, and how often its negative control."""
    audit = of_configuration(load(None, [*QUICK]), sigma, delta=1e-5, runs=runs, beta=0.05)
    with mock.patch("tmca_core.audits.sensitivity.declared", return_value=()):  # a fact without chance, tested elsewhere
        found = [(audit.measure("target"), audit.measure("negative")) for _ in range(repetitions)]
    assert all(target.bounds[0].powerful for target, _ in found)
    return sum(target.flagged for target, _ in found), sum(negative.flagged for _, negative in found)


def test_the_honest_step_is_not_flagged_when_repeated() -> None:
    assert false_alarms(1.0, 20, 3) == (0, 0)


@pytest.mark.slow
def test_false_alarms_over_a_hundred_repetitions_of_the_shipped_step() -> None:
    found = [false_alarms(sigma, runs, 34) for sigma, runs in ((0.5, 40), (1.0, 20), (2.0, 20))]
    assert sum(target for target, _ in found) <= 5 and sum(negative for _, negative in found) <= 5


@pytest.mark.slow
def test_false_alarms_over_a_hundred_audits_of_the_shipped_noise_as_anothers_step(tmp_path: Path) -> None:
    sums = {False: {"w": torch.zeros(12)}, True: {"w": torch.eye(12)[0]}}
    verdicts = []
    for k in range(100):
        sigma = (0.5, 1.0, 2.0)[k % 3]

        def step(member: bool, noise: float = sigma) -> Tensor:
            return training.noisy_mean(sums[member], Mechanism(noise, 1.0, 1.0, 1.0, 1), SecureStream())["w"]

        audit = of_step(step, of_one_step(sigma, 1e-5), runs=150, beta=0.05, quiet=lambda member: sums[member]["w"])
        verdicts.append(conduct(audit, tmp_path / str(k)).verdict)
    assert verdicts.count("PASS") >= 95 and verdicts.count("FAIL") <= 5
