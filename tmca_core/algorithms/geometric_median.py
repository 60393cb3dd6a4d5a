"""`geometric-median`: the point with the least sum of distances to the sites' updates."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.replies import Replies, shares, weighted
from tmca_core.algorithms.robust import ALL_UPDATES, Combine, Robust
from tmca_core.config import FederationSettings

SMOOTHING = 1e-6
"""ν: distances below it count as it."""
ITERATIONS, TOLERANCE = 1000, 1e-9


def coefficients(distances: Tensor, alpha: Tensor) -> Tensor:
    """Shares β of the updates in their geometric median v = Σ β_k Δ_k: smoothed Weiszfeld (Pillutla et al. 2022, algorithm 2).

    β_k ∝ α_k / max(ν, ‖v − Δ_k‖), begun at β = α. As v stays among the updates' means, squared distances D between the updates
    are all it takes: ‖v − Δ_k‖² = (Dβ)_k − ½ βᵀDβ. The paper stops after a few iterations, for there each is a round trip.

    Args:
        distances: D, (n, n).
        alpha: (n,), summing to 1.
    """
    beta = alpha
    for _ in range(ITERATIONS):
        toward = distances @ beta
        away = (toward - 0.5 * (beta @ toward)).clamp_min(0).sqrt().clamp_min(SMOOTHING)
        fresh = alpha / away
        fresh = fresh / fresh.sum()
        moved, beta = (fresh - beta).abs().max(), fresh
        if moved < TOLERANCE:
            break
    return beta


def choose(replies: Replies, settings: FederationSettings) -> Combine:
    """Sites weigh as much as their public weights, as in the paper; hostile ones must hold less than half of all weight."""
    return partial(weighted, coefficients(replies.distances(), shares(replies.weights)))


ALGORITHMS.register("geometric-median")(Algorithm(partial(Robust, choose=choose), ALL_UPDATES, sparse=False))
