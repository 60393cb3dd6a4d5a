"""What the server holds in memory when 8 and when 64 sites answer: this server, and Flower's stock FedAvg on the same work."""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.bench.fresh import IDLE, in_fresh_process, register_padded, resident
from simulations.bench.interface import BENCHMARKS, Measurement, Repeats
from tmca_core.config import Config, parse

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.clientapp import ClientApp

FEW, MANY = 8, 64
SETTINGS = {
    "phantom.cases": 4, "data.image_size": 32, "data.val_fraction": 0.0, "data.test_fraction": 0.0, "network.name": IDLE,
    "network.unet_channels": "8,16,32", "training.steps": 1, "training.device": "cpu", "training.threads": 1, "federation.rounds": 2,
    "federation.keep_optimizer": False, "evaluation.bootstrap": 0, "federation.poll": 0.001,
}  # fmt: skip
log = logging.getLogger(__name__)


@BENCHMARKS.register("aggregation")
def aggregation(
    megabytes: Annotated[int, typer.Option(help="Size of the exchanged model, MB.", min=1)] = 40,
    repeats: Repeats = 3,
) -> Measurement:
    """memory_64_over_8: the server's peak memory with 64 sites over that with 8; flower_…: the same with Flower's own FedAvg.

    Every measurement is a process of its own: real ClientApps train a small U-Net beside 40 MB of parameters, in process,
    two rounds, all sites in each. A reply is copied before the server sees it, as if it had crossed a process boundary, so that
    each takes its own memory. What is compared is the peak resident memory above that before the run began (imports only): the
    part that the server and the messages take. It is stricter than the whole peak, which the imports level out; the figures
    have both.
    """
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for who, measure in (("", _ours), ("flower_", _stock)):
        rows = []
        for repeat in range(repeats):
            log.info("%s, %d of %d", "Flower's FedAvg" if who else "tmca", repeat + 1, repeats)
            rows.append({sites: in_fresh_process(measure, sites, megabytes) for sites in (FEW, MANY)})
        for sites in (FEW, MANY):
            for k, kind in enumerate(("peak_above_imports_mb", "peak_rss_mb")):
                figures[f"{who}{sites}.{kind}"] = statistics.median(row[sites][k] for row in rows)
        for k, kind in enumerate(("memory", "whole_memory")):
            ratios[f"{who}{kind}_{MANY}_over_{FEW}"] = statistics.median(row[MANY][k] / row[FEW][k] for row in rows)
    return Measurement(ratios, figures, repeats)


def _ours(sites: int, megabytes: int) -> tuple[float, float]:
    """Peak memory above the imports, and whole, MB."""
    import client.app
    import server.app
    import server.rounds
    from simulations.inprocess import run_in_process

    with tempfile.TemporaryDirectory() as folder:
        config = _prepare(sites, megabytes, folder)
        app = client.app.make_app(config)
        before = resident("VmRSS")
        run_in_process(server.app.make_app(config, Path(folder) / "run", _ignore), _over_a_border(app), sites)
        peak = resident("VmHWM")
    return peak - before, peak


def _over_a_border(app: ClientApp) -> ClientApp:
    """The same app, its replies copied: every tensor becomes bytes of its own, as between two processes."""

    def answer(message: Message, context: Any) -> Message:
        return copy.deepcopy(app(message, context))

    return answer  # type: ignore[return-value]


def _stock(sites: int, megabytes: int) -> tuple[float, float]:
    """The same with Flower's strategy, ArrayRecords of its own, and replies handed over one at a time."""
    import torch
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import FedAvg

    from client.workspace import open_site
    from simulations.inprocess import InProcessGrid
    from tmca_core.networks import build_network, shared_state
    from tmca_core.training.loop import fit

    class OneByOne(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            """Replies as they come, so that whoever keeps them all does so of his own accord."""
            return (reply for message in self.push_messages(messages) for reply in self.pull_messages([message]))

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = open_site(config, context.node_config)
        workspace = site.workspace
        with torch.no_grad():
            for name, tensor in message.content.array_records["arrays"].to_torch_state_dict().items():
                workspace.shared[name].copy_(tensor)
        fit(workspace.network, site.data.train, workspace.pipeline, config, round=1, site=site.name, state=None, device=workspace.device)
        metrics = MetricRecord({"num-examples": len(site.data.train)})
        return Message(RecordDict({"arrays": ArrayRecord(dict(workspace.shared)), "metrics": metrics}), reply_to=message)

    with tempfile.TemporaryDirectory() as folder:
        config = _prepare(sites, megabytes, folder)
        before = resident("VmRSS")
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        start = ArrayRecord(dict(shared_state(build_network(config))))
        strategy.start(OneByOne(app, sites), start, num_rounds=config.federation.rounds)
        peak = resident("VmHWM")
    return peak - before, peak


def _prepare(sites: int, megabytes: int, folder: str) -> Config:
    """The configuration, with everything imported that the work will use."""
    import monai.networks.nets.unet  # noqa: F401

    from tmca_core.training.device import set_threads

    register_padded(megabytes * 10**6 // 4)
    config = parse(SETTINGS | {"phantom.sites": sites, "data.cache_dir": f"{folder}/cache", "simulation.out": f"{folder}/run"})
    set_threads(config.training)
    return config


def _ignore(event: Mapping[str, Any]) -> None:
    """Nobody watches."""
