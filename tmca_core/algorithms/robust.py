"""What robust algorithms share: keep a round's updates, then combine them coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tmca_core.algorithms.interface import Stateless
from tmca_core.algorithms.replies import Replies
from tmca_core.config import Config, FederationSettings
from tmca_core.errors import FederationError
from tmca_core.messages import Update

ALL_UPDATES = "every update of the round, in memory or (federation.spill) in a temporary file"

Combine = Callable[[Tensor], Tensor]
"""Values of all updates (updates, coordinates) float64 → one each coordinate (coordinates,)."""


class Robust(Stateless):
    """w ← w + η combine(Δ_1 … Δ_n); `choose` looks at all updates of the round and says how to combine them."""

    def __init__(self, like: Mapping[str, Tensor], config: Config, choose: Callable[[Replies, FederationSettings], Combine]) -> None:
        self._settings, self._choose = config.federation, choose
        self._replies = Replies(like, config.federation.spill)

    def begin(self, total: int) -> None:
        """Only those who answer count."""
        self._replies.clear()

    def add(self, update: Update) -> None:
        """Keep a copy."""
        self._replies.add(update)

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Combine in float64, a few coordinates at a time, rounded once.

        Raises:
            FederationError: no update was added.
        """
        if not sum(self._replies.weights):
            raise FederationError("no update was folded, so there is nothing to combine.")
        combine, rate = self._choose(self._replies, self._settings), self._settings.server_learning_rate or 1.0
        for name, tensor in weights.items():
            step = torch.empty(tensor.numel(), dtype=torch.float64)
            for where, values in self._replies.columns(name):
                step[where] = combine(values)
            tensor.add_(step.view(tensor.shape), alpha=rate)
        self._replies.clear()
