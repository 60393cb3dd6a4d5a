"""A federation that starts from an earlier run and trains a part: who needs the file, what travels, what comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from client.workspace import open_site, open_workspace
from simulations.experiment import run_experiment
from tests.support.tiny_runs import tiny
from tmca_core.cases.phantom import write
from tmca_core.cli import main
from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.networks import build_network, frozen_digest, roles
from tmca_core.run import Run
from tmca_core.training.commands import load_model


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_file(build_network(tiny(tmp_path / "cache", seed=7)).state_dict(), str(tmp_path / "start.safetensors"))
    return tmp_path / "start.safetensors"


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.fixture(autouse=True)
def fresh() -> None:
    open_workspace.cache_clear()


def federation(tmp_path: Path, start: Path, **more: object) -> Config:
    return tiny(tmp_path / "cache", **{"network.start": str(start), "federation.rounds": 2, "phantom.sites": 2, **more})


@pytest.mark.parametrize(("part", "private"), [("norms", False), ("lora", True)])
def test_a_federation_trains_a_part_from_a_start(part: str, private: bool, start: Path, tmp_path: Path) -> None:
    more: dict[str, object] = {"network.trainable": part, "simulation.baselines": part == "norms", "simulation.workers": 1}
    if private:
        more |= {"privacy.enabled": True, "privacy.noise_multiplier": 1.0, "training.ema": 0.5}
    config = federation(tmp_path, start, **more)
    summary = run_experiment(config, tmp_path / "run", lambda event: None)
    run, whole = Run(tmp_path / "run"), load_file(str(start))
    network = build_network(config)
    kinds = roles(network)
    first, last = run.checkpoint(0).weights, run.checkpoint(2).weights
    assert all(torch.equal(first[name], tensor) for name, tensor in network.state_dict().items())
    assert all(torch.equal(first[name], last[name]) for name, role in kinds.items() if role == "frozen")
    changed = [name for name, role in kinds.items() if role == "shared" and not torch.equal(first[name], last[name])]
    assert len(changed) > 0.7 * list(kinds.values()).count("shared")
    shared = sum(4 * first[name].numel() for name, role in kinds.items() if role == "shared")
    names = sum(len(name.encode()) for name, role in kinds.items() if role == "shared")
    assert shared <= summary["bytes"]["up_per_site_round"] <= shared + names + 200
    if part == "norms":
        assert all(torch.equal(last[name], whole[name]) for name, role in kinds.items() if role == "frozen")
        assert set(summary["baselines"]["local"]) == {"phantom-00", "phantom-01"}
    start.unlink()  # what was trained needs it no more
    _, loaded, _ = load_model(tmp_path / "run", [])
    assert all(torch.equal(tensor, last[name]) for name, tensor in loaded.state_dict().items())


def test_training_begins_there_and_goes_on_from_there_only(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = {"training.learning_rate": 1e-30, "training.weight_decay": 0.0}
    (tmp_path / "study.toml").write_text(federation(tmp_path, start, **still).to_toml())
    out = tmp_path / "trained"
    train = ("train", str(tmp_path / "study.toml"), "--out")
    assert command(*train, str(out)) == 0
    last, weights = Run(out).last_checkpoint(), load_file(str(start))
    assert last and all(torch.allclose(tensor, weights[name], atol=1e-6) for name, tensor in last.weights.items())
    assert command(*train, str(tmp_path / "on"), "--set", f"network.start={out}") == 0  # a run's folder is a start too
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, str(start))
    capsys.readouterr()
    assert command(*train, str(out)) == 2
    assert "another start" in capsys.readouterr().err


def test_a_hospital_needs_the_file_only_for_what_does_not_travel(start: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "hospital", sites=1, cases=8, seed=1, size=32)
    node = {"manifest": str(manifest), "cache": str(tmp_path / "own")}
    server = build_network(federation(tmp_path, start))
    absent = tmp_path / "absent.safetensors"
    assert open_site(federation(tmp_path, absent), node).workspace.frozen == frozen_digest(server)
    with pytest.raises(ConfigError, match="is not at this site"):
        open_site(federation(tmp_path, absent, **{"network.trainable": "head"}), node)
    with pytest.raises(ConfigError, match=r"federation\.algorithm=fedbn"):
        open_site(federation(tmp_path, absent, **{"federation.algorithm": "fedbn"}), node)

    config = federation(tmp_path, start, **{"network.trainable": "head"})
    pinned = frozen_digest(build_network(config))
    assert open_site(config, node).workspace.frozen == pinned
    weights = load_file(str(start))
    save_file({**weights, "skips.0.bias": weights["skips.0.bias"] + 1}, str(start))
    open_workspace.cache_clear()
    assert open_site(config, node).workspace.frozen != pinned  # the server refuses that, and says which files to compare


def test_the_plan_counts_what_trains(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = federation(tmp_path, start, **{"network.trainable": "norms", "privacy.enabled": True, "privacy.noise_multiplier": 1.0})
    (tmp_path / "run.toml").write_text(config.to_toml())
    network = build_network(config)
    start.unlink()  # a plan is made before there is one
    assert command("privacy", "plan", str(tmp_path / "run.toml"), "--patients", "800", "--json") == 0
    state = network.state_dict()
    expected = sum(state[name].numel() for name, role in roles(network).items() if role == "shared")
    assert json.loads(capsys.readouterr().out)["signal"]["parameters"] == expected
