"""Every algorithm in a small federation, stopped within a round and gone on with: the weights are those of one never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny

from client.workspace import open_workspace
from simulations.engine import simulate
from tmca_core.algorithms import ALGORITHMS


class Stopped(Exception):
    """What ends the run."""


def stop_in_round_2(event: Mapping[str, Any]) -> None:
    """After the second of three updates has been folded: what the fold and the sites hold by then is a round that never ends."""
    if event["event"] == "site_train" and event["round"] == 2:
        stop_in_round_2.seen += 1  # type: ignore[attr-defined]
        if stop_in_round_2.seen == 2:  # type: ignore[attr-defined]
            raise Stopped


def files(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Everything with tensors in it after the last round: the server's files, and each site's (below the run's own name)."""
    last = max((out / "checkpoints").glob("round-*"))
    assert last.name == "round-003"
    found = {path.name: load_file(path) for path in last.glob("*.safetensors")}
    for path in (out / "sites").glob("*/*/round-003.safetensors"):
        found[path.parts[-3]] = load_file(path)
    assert len(found) >= 4
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_stopped_in_a_round_and_gone_on_with(tmp_path: Path, name: str) -> None:
    settings = {"federation__algorithm": name, "evaluation__bootstrap": 0, "evaluation__bootstrap_rounds": 0}
    config = tiny(tmp_path / "cache", **settings)
    whole = simulate(config, tmp_path / "whole")
    stop_in_round_2.seen = 0  # type: ignore[attr-defined]
    with pytest.raises(Stopped):
        simulate(config, tmp_path / "stopped", stop_in_round_2)
    open_workspace.cache_clear()  # a new process would have a new network
    again = simulate(config, tmp_path / "stopped")
    assert again["resumed_from"] == 1
    assert again["final"] == whole["final"]
    first, second = files(tmp_path / "whole"), files(tmp_path / "stopped")
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        assert tensors.keys() == second[file].keys()
        assert [tensor for tensor in tensors if not torch.equal(tensors[tensor], second[file][tensor])] == []
