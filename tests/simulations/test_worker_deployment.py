"""The site's worker between real processes: who has approved the app trains, who has revoked it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.commands import approve, revoke
from simulations.processes import Processes
from tmca_core.cases.phantom import write
from tmca_core.deploy.records import compare
from tmca_core.record import Record
from tmca_core.run import Run

pytestmark = pytest.mark.slow


def test_behind_a_supernode_only_the_approving_hospital_trains_and_both_records_agree(
    processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hospitals = ("ghent", "hannover")
    port, app = processes.superlink(), processes.app()
    for seed, name in enumerate(hospitals):
        manifest = write(tmp_path / f"data-{name}", sites=1, cases=24, seed=seed, size=64)
        node = {"manifest": manifest, "site": name, "state": tmp_path / f"state-{name}", "cache": tmp_path / f"cache-{name}"}
        home = tmp_path / f"home-{name}"
        approve(str(app), home)
        if name == "hannover":
            revoke(next(iter(Record.open(home / "record").approved())), home)
        processes.supernode(name, port, node, home)
    values = {
        "data.image_size": 64,
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 2,
        "training.batch_size": 4,
        "federation.rounds": 2,
        "federation.wait": 300.0,
        "evaluation.bootstrap": 20,
        "simulation.out": str(tmp_path / "run"),
    }
    code, output = processes.submit(port, values)
    assert code == 0, output
    summary = Run(tmp_path / "run").read_json("run.json")
    assert [site["name"] for site in summary["sites"]] == ["ghent"], output
    assert any("is not approved here" in fault["reason"] for fault in summary["faults"]), output
    capsys.readouterr()
    compare(tmp_path / "run", [f"ghent={tmp_path / 'home-ghent' / 'record'}"], as_json=True)
    # two rounds of training and validation, and the test; the hello has no run's name yet
    assert json.loads(capsys.readouterr().out)["sites"]["ghent"]["agreed"] >= 5
    assert {entry["kind"] for entry in Record.open(tmp_path / "home-hannover" / "record").entries()} == {
        "created",
        "approved",
        "revoked",
        "refused",
    }
