"""The bare loop that simulations are timed against does the same work: the same cases, the same steps, the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from simulations.bench import aggregation, simulation
from tmca_core.cli import main
from tmca_core.networks import build_network, shared_state
from tmca_core.run import Run


def test_the_bare_loop_ends_with_the_federations_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulation.WORK, "W1", simulation.WORK["W1"] | {"phantom.sites": 6, "federation.cohort": 3, "federation.rounds": 2})
    # AdamW would make whole steps of the rounding errors of gradients that are 0 (a bias before a norm).
    config = simulation._config("W1", str(tmp_path)).with_values({"training.optimizer": "sgd"})
    simulation.federated(config)
    last = Run(Path(config.simulation.out)).last_checkpoint()
    assert last is not None
    start = shared_state(build_network(config))
    bare = simulation._bare(config)
    bare()
    found = dict(zip(start, bare(), strict=True))  # a second call begins anew
    assert len(found) > 10 and sum(not torch.equal(found[name], start[name]) for name in found) > 10
    for name, tensor in found.items():  # a float32 running mean against a float64 sum
        torch.testing.assert_close(tensor, last.weights[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_command_gives_the_ratios_that_checks_rely_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "FEW", 2)
    monkeypatch.setattr(aggregation, "MANY", 12)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "aggregation", "--megabytes", "20", "--repeats", "1", "--json"])
    value = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    ours, stock = value["ratios"]["memory_12_over_2"], value["ratios"]["flower_memory_12_over_2"]
    assert ours < 1.3 < stock
    assert value["figures"]["2.peak_above_imports_mb"] > 20
    with pytest.raises(SystemExit) as stop:
        main(["bench", "simulation", "--repeats", "1", "--json"])
    value = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0
    assert value["ratios"].keys() >= {"W1", "W2", "memory_W2"}
    assert min(value["ratios"].values()) > 0
