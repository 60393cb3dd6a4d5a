"""A real deployment: one SuperLink and two SuperNodes, each a process of its own with its own manifest on its own disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.processes import Processes
from tmca_core.cases.phantom import write
from tmca_core.run import Run

pytestmark = pytest.mark.slow

ROUNDS = 2


def test_two_hospitals_train_and_converge(processes: Processes, tmp_path: Path) -> None:
    hospitals = ("ghent", "hannover")
    manifests = {name: write(tmp_path / f"data-{name}", sites=1, cases=24, seed=seed, size=64) for seed, name in enumerate(hospitals)}
    port = processes.superlink()
    for name in hospitals:
        folders = {"state": tmp_path / f"state-{name}", "cache": tmp_path / f"cache-{name}"}
        processes.supernode(name, port, {"manifest": manifests[name], "site": name, **folders})
    values = {
        "data.image_size": 64,
        "data.cache_dir": str(tmp_path / "servers-cache"),
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 16,
        "training.batch_size": 6,
        "training.learning_rate": 0.003,
        "federation.rounds": ROUNDS,
        "federation.min_sites": 2,
        "federation.wait": 120.0,
        "evaluation.every": ROUNDS,
        "evaluation.bootstrap": 20,
        "simulation.out": str(tmp_path / "run"),
    }
    code, output = processes.submit(port, values)
    assert code == 0, output
    run = Run(tmp_path / "run")
    summary = run.read_json("run.json")
    assert summary, output
    assert summary["engine"] == "deployment"
    assert [site["name"] for site in summary["sites"]] == list(hospitals)
    assert summary["faults"] == [], output
    assert set(summary["final"]["per_site"]) == set(hospitals)
    # Each hospital's images and token features went where the hospital said, not where the run did.
    assert not (tmp_path / "servers-cache" / "decoded").exists()
    assert all(list((tmp_path / f"cache-{name}" / "decoded").iterdir()) for name in hospitals)
    losses = {(event["site"], event["round"]): event["loss"] for event in run.events("site_train")}
    for name in hospitals:
        assert losses[name, ROUNDS] < losses[name, 1], losses
        # Its optimiser state lies on its own disk and survived the end of each ClientApp process.
        assert [path.name for path in sorted((tmp_path / f"state-{name}").rglob("*.safetensors"))] == [
            f"round-{ROUNDS - 1:03d}.safetensors",
            f"round-{ROUNDS:03d}.safetensors",
        ]
