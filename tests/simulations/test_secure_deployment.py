"""Secure aggregation through a SuperLink and three SuperNodes, each with its own signing key and a roster of all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from simulations.engine import simulate
from simulations.processes import Processes
from tmca_core.cases.phantom import write
from tmca_core.config import Config
from tmca_core.run import Run

pytestmark = pytest.mark.slow

HOSPITALS = ("ghent", "hannover", "iowa")
SETTINGS = {
    "data.image_size": 32, "network.width": 16, "network.heads": 2, "training.steps": 2, "training.batch_size": 4, "federation.rounds": 1,
    "federation.min_sites": 3, "federation.wait": 180.0, "federation.max_norm_ratio": 0.0, "evaluation.bootstrap": 0,
    "data.val_fraction": 0.0, "data.test_fraction": 0.0,
}  # fmt: skip


def test_three_hospitals_and_a_sum(processes: Processes, tmp_path: Path) -> None:
    manifests = {name: _hospital(tmp_path / f"data-{name}", name, seed) for seed, name in enumerate(HOSPITALS)}
    keys = {name: tmp_path / f"{name}.key" for name in HOSPITALS}
    for key in keys.values():
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)], check=True)
    known = "\n".join(f'{name} = "{key.with_suffix(".key.pub").read_text().strip()}"' for name, key in keys.items())
    (tmp_path / "roster.toml").write_text(f"min_sites = 3\n[sites]\n{known}\n")
    port = processes.superlink()
    for name, manifest in manifests.items():
        folders = {"state": tmp_path / f"state-{name}", "cache": tmp_path / f"cache-{name}"}
        own = {"manifest": manifest, "site": name, "signing-key": keys[name], "roster": tmp_path / "roster.toml", **folders}
        processes.supernode(name, port, own)
    code, output = processes.submit(port, {**SETTINGS, "federation.secure": True, "simulation.out": str(tmp_path / "run")})
    assert code == 0, output
    run = Run(tmp_path / "run")
    summary = run.read_json("run.json")
    assert summary and summary["engine"] == "deployment" and summary["faults"] == [], output
    (record,) = run.events("round")
    assert record["completed"] == list(HOSPITALS)
    for name in HOSPITALS:
        (signed,) = (tmp_path / f"state-{name}").glob("*/secure-signed/*.json")
        assert json.loads(signed.read_text()) == {"1": list(HOSPITALS)}
        (session,) = (tmp_path / f"state-{name}").rglob("secure.json")
        assert json.loads(session.read_text()).keys() == {"stage", "round", "session"}  # its secrets are destroyed
    # The same hospitals without masks, in one process: what the masks hide adds up to the same model.
    plain = simulate(_together(manifests, tmp_path), tmp_path / "plain")
    assert plain["faults"] == []
    found, expected = run.checkpoint(1).weights, Run(tmp_path / "plain").checkpoint(1).weights
    start = run.checkpoint(0).weights
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.equal(start[name], tensor) for name, tensor in expected.items())


def _hospital(folder: Path, name: str, seed: int) -> Path:
    """A phantom site under its own name, which splits and draws go by."""
    path = write(folder, sites=1, cases=12, seed=seed, size=32)
    table = pd.read_csv(path)
    for column in ("case_id", "patient_id", "site"):
        table[column] = table[column].str.replace("phantom-00", name)
    table.to_csv(path, index=False)
    return path


def _together(manifests: dict[str, Path], folder: Path) -> Config:
    """One manifest of all three."""
    tables = []
    for path in manifests.values():
        table = pd.read_csv(path)
        for column in ("image", "mask"):
            table[column] = [f"{path.parent.name}/{file}" for file in table[column]]
        tables.append(table)
    pd.concat(tables).to_csv(folder / "all.csv", index=False)
    return Config().with_values({**SETTINGS, "data.manifest": str(folder / "all.csv"), "data.cache_dir": str(folder / "cache-of-all")})
