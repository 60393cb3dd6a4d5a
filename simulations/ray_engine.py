"""Flower's Ray runtime with the same two apps: one worker process a CPU, each with its own resident network."""

from __future__ import annotations

import logging
import os

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

# Read when Flower and Ray start: no telemetry, no look for updates, no per-run dependency installs, no chatter.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def run_on_ray(server_app: ServerApp, client_app: ClientApp, nodes: int, workers: int, gpus: float = 0.0) -> None:
    """Run a ServerApp over `nodes` virtual nodes on `workers` Ray workers; what it raises is raised.

    Apps are handed over as objects, because Flower's call gives them an empty run-config.

    Raises:
        ConfigError: the `ray` extra is not installed.
    """
    import importlib.util

    from tmca_core.errors import ConfigError

    if importlib.util.find_spec("ray") is None:
        raise ConfigError("the Ray engine needs the 'ray' extra: pip install 'tmca-fl[ray]', or use simulation.engine=inprocess.")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from flwr.simulation import run_simulation

    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.CRITICAL)  # errors of clients reach us as replies, the server's as exceptions
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=nodes,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": gpus},
                "init_args": {"num_cpus": workers, "logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False},
            },
        )
    finally:
        flower.setLevel(level)
