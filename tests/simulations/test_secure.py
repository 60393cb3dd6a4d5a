"""Secure aggregation and central privacy in whole simulated federations: the sum of real updates, beside the plain run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny
from torch import Tensor

from client.workspace import open_workspace
from simulations.engine import simulate
from tmca_core.privacy.ledger import Ledger
from tmca_core.run import Run

ONE = {"federation__rounds": 1, "federation__max_norm_ratio": 0.0, "training__steps": 1, "evaluation__bootstrap": 0, "phantom__sites": 3}


def weights_of(tmp_path: Path, name: str, **values: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    open_workspace.cache_clear()
    summary = simulate(tiny(tmp_path / "cache", **{**ONE, **values}), tmp_path / name)
    last = Run(tmp_path / name).last_checkpoint()
    assert last is not None and summary["faults"] == []
    return last.weights, summary


def assert_same(found: dict[str, Tensor], plain: dict[str, Tensor], within: float) -> None:
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, atol=within, rtol=1e-6, msg=name)


def test_a_round_ends_where_the_plain_one_ends(tmp_path: Path) -> None:
    plain, _ = weights_of(tmp_path, "plain")
    secure, summary = weights_of(tmp_path, "secure", federation__secure=True)
    # Three sites, half a step each: 8 · 3 / 2³² (the weights are cancelled), beside float32's own rounding.
    assert_same(secure, plain, 8 * 3 / 2**32)
    assert summary["bytes"]["up_per_site_round"] > 0.99 * summary["bytes"]["full_state"]
    start = Run(tmp_path / "plain").checkpoint(0).weights
    assert any(not torch.equal(start[name], plain[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"federation__algorithm": "scaffold", "federation__rounds": 2, "training__optimizer": "sgd"},
        {"federation__algorithm": "fedadam"},
        {"federation__algorithm": "fedbn", "federation__weighting": "patients"},
    ],
)
def test_algorithms_of_the_mean(values: dict[str, Any], tmp_path: Path) -> None:
    plain, _ = weights_of(tmp_path, "plain", **values)
    secure, _ = weights_of(tmp_path, "secure", federation__secure=True, **values)
    assert_same(secure, plain, 1e-5)


@pytest.mark.slow
def test_sixteen_bits_send_half_and_what_they_round_off_is_sent_later(tmp_path: Path) -> None:
    plain, _ = weights_of(tmp_path, "plain", federation__rounds=3)
    secure, summary = weights_of(
        tmp_path, "secure", federation__secure=True, federation__secure_bits=16, federation__secure_range=0.1, federation__rounds=3
    )
    assert summary["bytes"]["up_per_site_round"] < 0.52 * summary["bytes"]["full_state"]
    assert_same(secure, plain, 2e-3)
    files = list((tmp_path / "secure" / "sites").rglob("round-003.safetensors"))
    from safetensors.torch import load_file

    left = [tensor.abs().max() for path in files for name, tensor in load_file(path).items() if name.startswith("residual/")]
    assert len(files) == 3 and left and max(left) <= 0.1 * 2 / 32764 * 10


@pytest.mark.slow
def test_noise_at_the_sites_goes_under_the_masks(tmp_path: Path) -> None:
    private = {"privacy__enabled": True, "privacy__noise_multiplier": 100.0, "federation__secure": True, "phantom__cases": 24}
    plain_sgd = {"training__optimizer": "sgd", "federation__weighting": "uniform", "training__learning_rate": 1e-3, "training__warmup": 0.0}
    weights, summary = weights_of(tmp_path, "both", **private, **plain_sgd)
    start = Run(tmp_path / "both").checkpoint(0).weights
    moved = torch.cat([(weights[name] - start[name]).flatten() for name in start])
    moved = moved[moved != 0]
    # One step a site: noise of η · σ C / (q N) on every number, in which the gradients, C long a patient, are lost.
    sites = [summary["privacy"]["sites"][site["name"]] for site in summary["sites"]]
    noise = [1e-3 * 100.0 * 1.0 / (site["sample_rate"] * site["patients"]) for site in sites]
    assert float(moved.std()) == pytest.approx(sum(each**2 for each in noise) ** 0.5 / 3, rel=0.02)
    for site in summary["sites"]:
        assert len(Ledger.open(tmp_path / "both" / "ledger" / site["name"]).read().charges) == 1


@pytest.mark.slow
def test_central_privacy_in_a_simulation(tmp_path: Path) -> None:
    plain, _ = weights_of(tmp_path, "plain", federation__weighting="uniform")
    central = {"central__enabled": True, "central__clip": 1e4, "central__noise_multiplier": 0.05, "federation__weighting": "uniform"}
    noisy, summary = weights_of(tmp_path, "central", **central)
    assert summary["central"]["releases"] == 1 and summary["central"]["clip"] == 1e4
    moved = torch.cat([(noisy[name] - plain[name]).flatten() for name in plain])
    # σ · C / n on every shared number.
    shared = moved[moved != 0]
    assert float(shared.std()) == pytest.approx(0.05 * 1e4 / 3, rel=0.02)
