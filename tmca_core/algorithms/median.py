"""`median`: coordinate by coordinate, the middle one of the sites' updates."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.replies import Replies
from tmca_core.algorithms.robust import ALL_UPDATES, Combine, Robust
from tmca_core.config import FederationSettings


def middle(values: Tensor) -> Tensor:
    """Median over the updates, the mean of the middle two where their number is even: (updates, coordinates) → (coordinates,)."""
    count, ordered = len(values), values.sort(0).values
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def choose(replies: Replies, settings: FederationSettings) -> Combine:
    """Every site counts the same, whatever its public weight (Yin et al. 2018); fewer than half of them may be hostile."""
    return middle


ALGORITHMS.register("median")(Algorithm(partial(Robust, choose=choose), ALL_UPDATES, sparse=False))
