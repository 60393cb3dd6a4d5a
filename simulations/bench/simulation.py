"""A federated simulation against a bare training loop that does the same work: seconds a round, and memory."""

from __future__ import annotations

import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulations.bench.fresh import IDLE, PADDED, in_fresh_process, register_padded, resident
from simulations.bench.interface import BENCHMARKS, Measurement, Repeats
from tmca_core.cases.sites import load_site
from tmca_core.config import Config, parse
from tmca_core.losses.segmentation import dice_cross_entropy
from tmca_core.networks import build_network, shared_state
from tmca_core.seeds import numpy_rng, torch_rng
from tmca_core.training.batches import prepare_images
from tmca_core.training.device import set_threads
from tmca_core.training.loop import build_optimizer

# The same work on both sides: no augmentation, no validation, no optimiser state between rounds, no clipping.
COMMON = {
    "phantom.cases": 8, "data.image_size": 32, "data.val_fraction": 0.0, "data.test_fraction": 0.0, "network.unet_channels": "8,16,32",
    "augmentation.flip": 0.0, "augmentation.rotate": 0.0, "augmentation.scale": 0.0, "augmentation.shift": 0.0, "augmentation.gain": 0.0,
    "augmentation.noise": 0.0, "training.steps": 2, "training.batch_size": 4, "training.clip_norm": 0.0, "training.device": "cpu",
    "training.threads": 1, "training.schedule": "constant", "training.warmup": 0.0, "federation.keep_optimizer": False,
    "federation.poll": 0.001, "evaluation.bootstrap": 0,
}  # fmt: skip
WORK: dict[str, dict[str, Any]] = {
    "W1": {"phantom.sites": 100, "federation.cohort": 20, "federation.rounds": 10, "network.name": "unet"},
    "W2": {"phantom.sites": 10, "federation.cohort": 0, "federation.rounds": 5, "network.name": IDLE},
    "W2_trained": {"phantom.sites": 10, "federation.cohort": 0, "federation.rounds": 5, "network.name": PADDED},
}
EXTRA = 10_000_000
log = logging.getLogger(__name__)


@BENCHMARKS.register("simulation")
def simulation(repeats: Repeats = 5) -> Measurement:
    """W1, W2: seconds of all rounds over those of a bare loop, interleaved in one process; memory_W2: peaks of fresh processes.

    W1: a small U-Net (8, 16, 32), 100 sites of 8 cases at 32², 20 of them a round, 2 steps of 4 cases, 10 rounds. W2: the same
    network beside 10 M more parameters, which are only exchanged, 10 sites, 5 rounds; W2_trained: the same where the optimiser moves
    them too, which gives both sides more to do and so makes the ratio smaller. Ours is the whole path: server, Flower's messages and
    client over the in-process grid, with a checkpoint and a log every round. The bare loop holds one network and one optimiser,
    copies the weights in, sets the optimiser's state to 0 as ours does, takes the steps and keeps a running mean; it writes nothing.
    """
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name in WORK:
        log.info("%s: seconds", name)
        rows = in_fresh_process(_seconds, name, repeats)
        rounds = WORK[name]["federation.rounds"]
        ratios[name] = statistics.median(ours / bare for ours, bare in rows)
        figures[f"{name}.round_seconds"] = statistics.median(ours for ours, _ in rows) / rounds
        figures[f"{name}.bare_round_seconds"] = statistics.median(bare for _, bare in rows) / rounds
    log.info("W2: memory")
    peaks = [(in_fresh_process(_peak, "W2", True), in_fresh_process(_peak, "W2", False)) for _ in range(min(repeats, 3))]
    figures["W2.peak_rss_mb"], figures["W2.bare_peak_rss_mb"] = (statistics.median(row[k] for row in peaks) for k in (0, 1))
    ratios["memory_W2"] = statistics.median(ours / bare for ours, bare in peaks)
    return Measurement(ratios, figures, repeats)


def _config(name: str, folder: str) -> Config:
    if WORK[name]["network.name"] != "unet":
        register_padded(EXTRA)
    config = parse(COMMON | WORK[name] | {"data.cache_dir": f"{folder}/cache", "simulation.out": f"{folder}/run"})
    set_threads(config.training)
    return config


def _seconds(name: str, repeats: int) -> list[tuple[float, float]]:
    """Ours and the bare loop's, one after the other, `repeats` times after one that warms up."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(name, folder)
        bare = _bare(config)
        rows = []
        for _ in range(repeats + 1):
            rows.append((federated(config), _timed(bare)))
    return rows[1:]


def _peak(name: str, ours: bool) -> float:
    """Peak memory of a process that does one of them once, MB."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(name, folder)
        if ours:
            federated(config)
        else:
            _bare(config)()
    return resident("VmHWM")


def federated(config: Config) -> float:
    """Seconds of all rounds of a new run; the sites' data are resident before they begin."""
    import client.app
    from server.rounds import Federation
    from simulations.inprocess import InProcessGrid
    from tmca_core.run import Run

    folder = Path(config.simulation.out)
    shutil.rmtree(folder, ignore_errors=True)
    grid = InProcessGrid(client.app.make_app(config), config.phantom.sites)
    federation = Federation(grid, config, Run.create(folder, config))
    federation.start(0.0)
    return _timed(federation.train)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _bare(config: Config) -> Callable[[], list[Tensor]]:
    """A loop over rounds as one would write it for this work alone; a call returns the weights that it ends with."""
    size, steps, rounds = config.training.batch_size, config.training.steps, config.federation.rounds
    network = build_network(config).train()
    here = list(shared_state(network).values())
    initial, weights, mean = ([tensor.clone() for tensor in here] for _ in range(3))
    sites = [load_site(config, index) for index in range(config.phantom.sites)]
    data = [(site.name, prepare_images(site.train.images), site.train.masks.float()) for site in sites]
    cohort = config.federation.cohort or len(data)
    optimizer = build_optimizer(network, config.training)

    def start_afresh() -> None:
        if optimizer.state:  # memory that is there already is several times as fast as new
            torch._foreach_zero_([value for values in optimizer.state.values() for value in values.values() if value is not None])

    @torch.no_grad()
    def put(target: list[Tensor], source: list[Tensor]) -> None:
        torch._foreach_copy_(target, source)

    @torch.no_grad()
    def fold(share: float) -> None:
        torch._foreach_lerp_(mean, here, share)

    def run() -> list[Tensor]:
        nonlocal weights, mean
        put(weights, initial)
        for round in range(1, rounds + 1):
            seen = 0
            # The draws of a federation, so that both train on the same cases in the same order.
            for k in sorted(numpy_rng(config.seed, "cohort", round).choice(len(data), cohort, replace=False).tolist()):
                name, images, masks = data[k]
                put(here, weights)
                start_afresh()
                order = torch.randperm(len(images), generator=torch_rng(config.seed, "order", name, round, 0))
                for step in range(steps):
                    index = order[step * size : (step + 1) * size]
                    loss = dice_cross_entropy(network(images[index], _NO_TEXT).logits, masks[index]).mean()
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                seen += len(images)
                fold(len(images) / seen)
            weights, mean = mean, weights
        return weights

    return run


_NO_TEXT: Any = None  # a U-Net reads none
