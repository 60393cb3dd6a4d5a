"""What the federation costs beyond the work itself: the same training steps and evaluations, with and without it."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from simulations.bench.interface import BENCHMARKS, Measurement, Repeats
from simulations.engine import simulate
from tmca_core.cases.sites import load_sites
from tmca_core.config import Config, parse
from tmca_core.networks import build_network, shared_state
from tmca_core.training.centralised import build_pipeline
from tmca_core.training.device import resolve_device, set_threads
from tmca_core.training.evaluation import evaluate
from tmca_core.training.loop import fit
from tmca_core.training.state import TrainState

# The default network and default rounds; fewer of them, and two sites.
SETTINGS = {"phantom.sites": 2, "federation.rounds": 2, "simulation.baselines": False}


@BENCHMARKS.register("federation")
def federation(repeats: Repeats = 3) -> Measurement:
    """overhead: seconds of an in-process federation over those of its bare steps and evaluations; upload: bytes over 4 × parameters."""
    ratios, federated, bare = [], [], []
    upload = 0.0
    with tempfile.TemporaryDirectory() as folder:
        config = parse(SETTINGS | {"data.cache_dir": f"{folder}/cache"})
        set_threads(config.training)
        _bare(config)  # first touch: imports, kernels, caches
        for repeat in range(repeats):
            start = time.perf_counter()
            summary = simulate(config, Path(folder) / f"run-{repeat}", None)
            middle = time.perf_counter()
            _bare(config)
            end = time.perf_counter()
            federated.append(middle - start)
            bare.append(end - middle)
            ratios.append(federated[-1] / bare[-1])
            upload = summary["bytes"]["up_per_site_round"]
        shared = sum(4 * tensor.numel() for tensor in shared_state(build_network(config)).values())
    figures = {"federation_seconds": statistics.median(federated), "bare_seconds": statistics.median(bare), "shared_bytes": float(shared)}
    return Measurement({"overhead": statistics.median(ratios), "upload_over_shared": upload / shared}, figures, repeats)


def _bare(config: Config) -> None:
    """The steps and evaluations of the federation, with nothing between them: one network, no exchange, no checkpoints."""
    device = resolve_device(config.training)
    sites = load_sites(config)
    network = build_network(config).to(device)
    pipeline = build_pipeline(network, config)
    states: dict[str, TrainState] = {}
    for round in range(1, config.federation.rounds + 1):
        for name, site in sites.items():
            result = fit(network, site.train, pipeline, config, round=round, site=name, state=states.get(name), device=device)
            states[name] = result.state
        for site in sites.values():
            if len(site.val):
                evaluate(network, site.val, pipeline, settings=config.evaluation, device=device, counterfactual=False, hd95=False)
    for site in sites.values():
        if len(site.test):
            evaluate(network, site.test, pipeline, settings=config.evaluation, device=device)
