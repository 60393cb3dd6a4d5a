"""Phantom federations of seconds, for tests of the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmca_core.config import Config


def tiny(cache: Path, **values: Any) -> Config:
    """Three sites, three rounds of two steps at 32²; `a__b=c` sets a.b."""
    base = {
        "phantom.sites": 3,
        "phantom.cases": 12,
        "data.image_size": 32,
        "data.cache_dir": str(cache),
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 2,
        "training.batch_size": 4,
        "federation.rounds": 3,
        "federation.poll": 0.05,
        "evaluation.bootstrap": 20,
    }
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})
