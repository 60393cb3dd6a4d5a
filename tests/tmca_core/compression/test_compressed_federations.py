"""Real sites that compress: bytes, the residual on the site's disk, and the algorithms it is combined with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny
from torch import Tensor

from simulations.engine import simulate
from tmca_core.run import Run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def weights(out: Path) -> dict[str, Tensor]:
    last = Run(out).last_checkpoint()
    assert last is not None
    return last.weights


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


@pytest.fixture(scope="module")
def plain(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, simulate(tiny(cache, data__val_fraction=0.3), out)


@pytest.mark.parametrize(
    ("name", "limit", "apart"),
    [
        pytest.param("bf16", 0.5, 0.01, marks=pytest.mark.slow),
        ("int8", 0.27, 0.05),
        pytest.param("int4", 0.15, 0.5, marks=pytest.mark.slow),
    ],
)
def test_bytes_go_down_and_the_weights_stay_near(
    cache: Path, plain: tuple[Path, dict[str, Any]], tmp_path: Path, name: str, limit: float, apart: float
) -> None:
    summary = simulate(tiny(cache, data__val_fraction=0.3, federation__compression=name), tmp_path / "run")
    assert summary["faults"] == []
    # Sites of several validation patients give the interval of every round's Dice.
    assert all(0 <= event["ci95"][0] <= event["ci95"][1] <= 1 for event in Run(tmp_path / "run").events("site_eval"))
    assert summary["bytes"]["up_per_site_round"] <= limit * plain[1]["bytes"]["up_per_site_round"]
    assert summary["bytes"]["down_per_site_round"] == plain[1]["bytes"]["down_per_site_round"]
    final, start = weights(plain[0]), Run(plain[0]).checkpoints()[0]
    moved = distance(final, load_file(str(start / "model.safetensors")))
    assert 0 < distance(weights(tmp_path / "run"), final) < apart * moved
    residuals = [load_file(str(path)) for path in sorted((tmp_path / "run" / "sites").rglob("round-003.safetensors"))]
    assert len(residuals) == 3
    assert all(any(key.startswith("residual/") and tensor.any() for key, tensor in found.items()) for found in residuals)


class Stop(Exception):
    """The test's own."""


@pytest.mark.parametrize(("name", "algorithm"), [("int4", "fedavg"), pytest.param("topk", "scaffold", marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_the_same_bits(cache: Path, tmp_path: Path, name: str, algorithm: str) -> None:
    config = tiny(cache, federation__compression=name, federation__compression_share=0.1, federation__algorithm=algorithm)
    simulate(config, tmp_path / "whole")

    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "site_train" and event["round"] == 2 and event["site"] == "phantom-01":
            raise Stop

    with pytest.raises(Stop):
        simulate(config, tmp_path / "run", stop)
    assert simulate(config, tmp_path / "run")["resumed_from"] == 1
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["scaffold", "fedadam", "median", "trimmed-mean", "krum", "geometric-median", "norm-bound", "ditto"])
def test_algorithms_take_compressed_updates(cache: Path, tmp_path: Path, algorithm: str) -> None:
    values = {"federation__algorithm": algorithm, "federation__rounds": 2, "federation__byzantine": 0, "phantom__sites": 3}
    summary = simulate(tiny(cache, federation__compression="int8", **values), tmp_path / "run")
    other = simulate(tiny(cache, **values), tmp_path / "plain")
    assert summary["faults"] == []
    assert summary["bytes"]["up_per_site_round"] <= 0.27 * other["bytes"]["up_per_site_round"]
    moved = distance(weights(tmp_path / "plain"), load_file(str(Run(tmp_path / "plain").checkpoints()[0] / "model.safetensors")))
    assert distance(weights(tmp_path / "run"), weights(tmp_path / "plain")) < 0.5 * moved
