"""`trimmed-mean`: coordinate by coordinate, the mean of the sites' updates without the largest and smallest."""

from __future__ import annotations

import logging
from functools import partial

from torch import Tensor

from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.replies import Replies
from tmca_core.algorithms.robust import ALL_UPDATES, Combine, Robust
from tmca_core.config import FederationSettings

log = logging.getLogger(__name__)


def trimmed(values: Tensor, cut: int) -> Tensor:
    """Mean over the updates without the `cut` largest and smallest of each coordinate: (updates, coordinates) → (coordinates,)."""
    return values.sort(0).values[cut : len(values) - cut].mean(0)


def choose(replies: Replies, settings: FederationSettings) -> Combine:
    """⌊trim · n⌋ are cut off at each end; the others count the same, whatever their public weight (Yin et al. 2018)."""
    cut = int(settings.trim * len(replies) + 1e-9)
    if not cut and settings.trim:
        log.warning("federation.trim = %g of %d updates is none: this round's mean is not robust.", settings.trim, len(replies))
    return partial(trimmed, cut=cut)


ALGORITHMS.register("trimmed-mean")(Algorithm(partial(Robust, choose=choose), ALL_UPDATES, sparse=False))
