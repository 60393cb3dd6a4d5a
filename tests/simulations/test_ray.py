"""Flower's Ray runtime gives what the in-process engine gives, and survives the same faults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from tiny_runs import tiny

import server.app
from simulations.engine import simulate
from simulations.ray_engine import run_on_ray
from tmca_core.errors import FederationError
from tmca_core.run import Run

pytestmark = pytest.mark.slow
pytest.importorskip("ray")


def test_the_same_numbers_as_in_process_and_resumable(tmp_path: Path) -> None:
    config, events = tiny(tmp_path / "cache"), []
    here = simulate(config, tmp_path / "here")
    on_ray = config.with_values({"simulation.engine": "ray"})
    there = simulate(on_ray, tmp_path / "there", events.append)
    assert there["engine"] == "ray"
    assert there["faults"] == []
    assert there["sites"] == here["sites"]
    assert there["bytes"] == here["bytes"]
    first, second = Run(tmp_path / "here").last_checkpoint(), Run(tmp_path / "there").last_checkpoint()
    assert first is not None
    assert second is not None
    for name, tensor in first.weights.items():
        torch.testing.assert_close(second.weights[name], tensor, rtol=0, atol=1e-5)
    assert there["final"]["dice_image"] == pytest.approx(here["final"]["dice_image"], abs=1e-4)
    assert [len(event["completed"]) for event in events if event["event"] == "round"] == [3, 3, 3]
    # A run begun on one engine may be finished on the other.
    checkpoints = Run(tmp_path / "there").checkpoints()
    checkpoints[-1].rename(checkpoints[-1].with_name(".gone"))
    assert simulate(config, tmp_path / "there")["resumed_from"] == 2
    third = Run(tmp_path / "there").last_checkpoint()
    assert third is not None
    for name, tensor in first.weights.items():
        torch.testing.assert_close(third.weights[name], tensor, rtol=0, atol=1e-5)


def test_an_error_of_the_server_reaches_the_caller(tmp_path: Path) -> None:
    config = tiny(tmp_path / "cache", federation__min_sites=9)
    with pytest.raises(FederationError, match="3 sites can train, 9 are needed"):
        simulate(config.with_values({"simulation.engine": "ray"}), tmp_path / "run")


def test_sites_that_fail_on_ray_are_named(tmp_path: Path) -> None:
    from flwr.clientapp import ClientApp

    config = tiny(tmp_path / "cache", federation__rounds=1).with_values({"simulation.out": str(tmp_path / "run")})
    events: list[Mapping[str, Any]] = []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        import client.app

        if context.node_config["partition-id"] == 1:
            raise OSError("the archive is not mounted")
        return client.app.make_app(config)(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        import client.app
        from tmca_core.messages import METRICS

        reply = client.app.make_app(config)(message, context)
        if context.node_config["partition-id"] == 2:
            reply.content[METRICS]["loss"] = float("nan")
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        import client.app

        return client.app.make_app(config)(message, context)

    run_on_ray(server.app.make_app(config, tmp_path / "run", events.append), app, nodes=3, workers=2)
    faults = Run(tmp_path / "run").read_json("run.json")["faults"]
    assert [(fault["phase"], fault["round"]) for fault in faults] == [("hello", 0), ("train", 1)]
    assert "the archive is not mounted" in faults[0]["reason"]
    assert (faults[1]["site"], faults[1]["reason"]) == ("phantom-02", "metric 'loss' is nan.")
