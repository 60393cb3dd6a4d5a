"""One call for a simulated federation, whichever engine runs it: same apps, same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tmca_core.config import Config

OnEvent = Callable[[Mapping[str, Any]], None]


def simulate(config: Config, out: Path, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Run the federation that `config` describes in the folder `out`, or go on with it; returns run.json.

    Args:
        config: `simulation.engine` chooses the engine.
        out: the run's folder; an interrupted run in it is resumed.
        on_event: receives the events of metrics.jsonl as they happen; on Ray in another thread than the caller's.

    Raises:
        ConfigError: `out` holds a run of another configuration, the engine is not installed, or it cannot play the scenario.
        ManifestError: the manifest cannot be used.
        FederationError: too few sites gave usable updates; the last checkpoint is kept.
    """
    import client.app
    import server.app
    from simulations.scenario import stage
    from tmca_core.cases.sites import site_names

    out = out.resolve()
    # The sites keep their optimiser state below the run's folder.
    settings = config.with_values({"simulation.out": str(out)})
    nodes = len(site_names(settings))
    server_app = server.app.make_app(settings, out, on_event or _ignore)
    client_app, weather = stage(settings, client.app.make_app(settings))
    if config.simulation.engine == "ray":
        from simulations.ray_engine import run_on_ray

        run_on_ray(server_app, client_app, nodes, config.simulation.workers, gpus=_gpu_share(config))
    else:
        from simulations.inprocess import run_in_process

        run_in_process(server_app, client_app, nodes, weather)
    summary: dict[str, Any] = json.loads((out / "run.json").read_text())
    return summary


def _gpu_share(config: Config) -> float:
    """Share of a GPU a Ray worker reserves: the GPUs dealt out evenly, none on the CPU."""
    from tmca_core.training.device import resolve_device

    if resolve_device(config.training).type != "cuda":
        return 0.0
    import torch

    return min(1.0, torch.cuda.device_count() / config.simulation.workers)


def _ignore(event: Mapping[str, Any]) -> None:
    """Nobody watches."""
