"""Federated algorithms: one small file each, both halves together, for server and site must agree."""

from tmca_core.algorithms import (  # noqa: F401  (they register themselves)
    adaptive,
    ditto,
    fedavg,
    fedavgm,
    fedbn,
    fedper,
    fedprox,
    fedrep,
    geometric_median,
    krum,
    median,
    norm_bound,
    scaffold,
    trimmed_mean,
)
from tmca_core.algorithms.interface import ALGORITHMS, EXTRA, Algorithm, Fold

__all__ = ["ALGORITHMS", "EXTRA", "Algorithm", "Fold"]
