"""SIGKILL at any moment, the same call again: the final weights are those of a run that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simulations.engine import simulate
from tmca_core.config import Config
from tmca_core.run import Run

ROUNDS = 4


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Real processes of their own, forked from one that has imported everything but computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulations.engine", "server.rounds", "client.site", "simulations.inprocess"])
    return context


def tiny(cache: Path) -> Config:
    values = {
        "phantom.sites": 2,
        "phantom.cases": 10,
        "data.image_size": 32,
        "data.cache_dir": str(cache),
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 1,
        "training.batch_size": 2,
        "training.ema": 0.9,
        "federation.rounds": ROUNDS,
        "evaluation.bootstrap": 0,
    }
    return Config().with_values(values)


def weights(out: Path) -> dict[str, Tensor]:
    last = Run(out).last_checkpoint()
    assert last is not None
    assert last.round == ROUNDS
    return last.weights


def kill_at(context: ForkServerContext, config: Config, out: Path, lines: int, delay: float) -> bool:
    """Run until metrics.jsonl has `lines` lines and `delay` seconds more, then SIGKILL; False if it was over before."""
    process = context.Process(target=simulate, args=(config, out))
    process.start()
    path, end = out / "metrics.jsonl", time.monotonic() + 120
    while process.is_alive() and time.monotonic() < end:
        if (path.read_bytes().count(b"\n") if path.exists() else 0) >= lines:
            time.sleep(delay)
            break
        time.sleep(0.002)
    killed = process.is_alive()
    if killed:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return killed


def chain(server: ForkServerContext, tmp_path: Path, moments: list[tuple[int, float]]) -> None:
    config = tiny(tmp_path / "cache")
    reference = simulate(config, tmp_path / "whole")
    out = tmp_path / "killed"
    kills = sum(kill_at(server, config, out, lines, delay) for lines, delay in moments)
    assert kills > 0
    summary = simulate(config, out)
    first, second = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert summary["final"] == reference["final"]
    assert summary["bytes"] == reference["bytes"]


@pytest.mark.parametrize("seed", [23])
def test_killed_once(server: ForkServerContext, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    # A round writes 7 lines: who is asked, 2 trainings, who is asked, 2 validations, the round.
    chain(server, tmp_path, [(dice.randint(1, 14), dice.random() * 0.05)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again(server: ForkServerContext, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    moments = sorted(dice.randint(0, 20) for _ in range(4))
    chain(server, tmp_path, [(lines, dice.random() * 0.1) for lines in moments])


def test_a_torn_last_line_and_a_half_written_checkpoint_do_not_matter(tmp_path: Path) -> None:
    config = tiny(tmp_path / "cache").with_values({"federation.rounds": 2})
    out = tmp_path / "run"
    reference = simulate(config, out)
    newest = Run(out).checkpoints()[-1]
    kept = {name: tensor.clone() for name, tensor in Run(out).last_checkpoint().weights.items()}  # type: ignore[union-attr]
    newest.rename(newest.with_name(".round-002.1.tmp"))
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "rou')
    summary = simulate(config, out)
    assert summary["resumed_from"] == 1
    assert summary["final"] == reference["final"]
    last = Run(out).last_checkpoint()
    assert last is not None
    assert all(torch.equal(kept[name], last.weights[name]) for name in kept)
    assert len([event for event in Run(out).events("round") if event["round"] == 2]) == 2
