"""`norm-bound`: the mean of updates none of which may be longer than a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.config import Config
from tmca_core.messages import Update, norms_of


class NormBound(FedAvg):
    """w ← w + η Σ n_k min(1, C/‖Δ_k‖) Δ_k / Σ n_k with the norm over all shared tensors (Sun et al. 2019).

    A site of weight n moves the model by no more than η C n / Σ n, whatever it sends.
    """

    linear = False

    def __init__(self, like: Mapping[str, Tensor], config: Config) -> None:
        super().__init__(like, config)
        self._bound = config.federation.norm_bound

    def add(self, update: Update) -> None:
        """sum += n·min(1, C/‖Δ‖)·Δ, in place."""
        norm = math.hypot(*norms_of([update.tensors[name] for name in self._sum]))
        self._add(update, update.weight * self._bound / max(norm, self._bound))


ALGORITHMS.register("norm-bound")(Algorithm(NormBound, ONE_SUM))
