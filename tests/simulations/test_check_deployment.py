"""The data check through SuperNodes: the same code and the same figures as in process, and no round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.processes import Processes
from tmca_core.cases.phantom import write
from tmca_core.run import Run

pytestmark = pytest.mark.slow


def test_two_hospitals_are_checked_before_any_training(processes: Processes, tmp_path: Path) -> None:
    hospitals = ("ghent", "hannover")
    port = processes.superlink()
    for seed, name in enumerate(hospitals):
        manifest = write(tmp_path / f"data-{name}", sites=1, cases=24, seed=seed, size=64)
        folders = {"state": tmp_path / f"state-{name}", "cache": tmp_path / f"cache-{name}"}
        processes.supernode(name, port, {"manifest": manifest, "site": name, **folders})
    values = {
        "data.image_size": 32,
        "network.width": 16,
        "network.heads": 2,
        "federation.check": "only",
        "federation.min_sites": 2,
        "federation.wait": 120.0,
        "simulation.out": str(tmp_path / "run"),
    }
    code, output = processes.submit(port, values)
    assert code == 0, output
    run = Run(tmp_path / "run")
    found = run.read_json("run.json")["data_check"]
    assert found == json.loads((tmp_path / "run" / "data_check.json").read_text())
    assert list(found["sites"]) == list(hospitals) and found["failed"] == {}, output
    for values_of_site in found["sites"].values():
        assert values_of_site["cases"] == 24 and values_of_site["sides_patient"] > 0.9
        assert 60 <= values_of_site["image_width"] <= 68  # of the files, not of the network's input
    assert "data check, before any training" in output and "ghent" in output
    assert [path.name for path in run.checkpoints()] == ["round-000"] and not list(run.events("round"))
