"""Real sites, real faults: training that diverges, replies spoilt on the way, data that disappear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

import client.app
import server.app
from client.workspace import open_workspace
from simulations.inprocess import run_in_process
from tmca_core.config import Config
from tmca_core.errors import FederationError
from tmca_core.messages import ARRAYS
from tmca_core.run import Run
from tmca_core.training import loop


def tiny(tmp_path: Path, **values: Any) -> Config:
    base = {
        "phantom.sites": 3,
        "phantom.cases": 12,
        "data.image_size": 32,
        "data.cache_dir": str(tmp_path / "cache"),
        "simulation.out": str(tmp_path / "run"),
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 1,
        "training.batch_size": 2,
        "federation.rounds": 2,
        "evaluation.bootstrap": 0,
    }
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})


def run(config: Config, spoil: Any) -> dict[str, Any]:
    """The federation with `spoil(site index, message, real answer)` between the grid and the real ClientApp."""
    app = client.app.make_app(config)

    def wrapped(message: Message, context: Context) -> Message:
        return spoil(int(context.node_config["partition-id"]), message, lambda: app(message, context))

    out = Path(config.simulation.out)
    run_in_process(server.app.make_app(config, out, lambda event: None), wrapped, 3)  # type: ignore[arg-type]
    return Run(out).read_json("run.json")


def test_one_site_sends_nan_one_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    def spoil(site: int, message: Message, answer: Any) -> Message:
        if message.metadata.message_type == "train" and site == 0:
            reply = answer()
            next(iter(reply.content[ARRAYS].values())).tensor.view(-1)[0] = float("nan")
            return reply
        if message.metadata.message_type == "train" and site == 2:
            raise MemoryError("out of memory")
        return answer()

    summary = run(tiny(tmp_path), spoil)
    found = {(fault["round"], fault["site"]): fault["reason"] for fault in summary["faults"]}
    assert set(found) == {(1, "phantom-00"), (1, "phantom-02"), (2, "phantom-00"), (2, "phantom-02")}
    assert "holds NaN" in found[1, "phantom-00"]
    assert "MemoryError: out of memory" in found[2, "phantom-02"]
    last = Run(tmp_path / "run").last_checkpoint()
    assert last is not None
    assert all(torch.isfinite(tensor).all() for tensor in last.weights.values())
    # The NaN was in the resident network that all sites of the process share; it must not have stayed there.
    assert summary["final"]["dice_image"] is not None


def test_a_site_whose_training_diverges_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path)
    real = loop.train_step

    def explode(*step: Any) -> Any:
        return real(*step) * float("nan")

    monkeypatch.setattr(loop, "train_step", explode)
    with pytest.raises(FederationError, match=r"round 1: 0 usable updates.*phantom-00: the site failed: Diverged.*Round 0 is kept"):
        run(config, lambda site, message, answer: answer())


def test_data_that_are_not_there_end_the_run_with_the_reason(tmp_path: Path) -> None:
    open_workspace.cache_clear()

    def spoil(site: int, message: Message, answer: Any) -> Message:
        raise OSError("the archive is not mounted")

    with pytest.raises(FederationError, match=r"0 sites can train.*OSError: the archive is not mounted"):
        run(tiny(tmp_path), spoil)
