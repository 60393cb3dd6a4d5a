"""Aggregation as a fold: each update is added when it arrives and then dropped, so memory does not grow with the sites.

A later algorithm is one more file that registers a factory of its own `Fold`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from tmca_core.errors import FederationError
from tmca_core.messages import Update
from tmca_core.registry import Registry


class Fold(Protocol):
    """One round's aggregation, from the first update to the new weights."""

    def add(self, update: Update) -> None:
        """Take an update in; its tensors are not kept."""

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Turn the weights of the round's start into those of its end, in place, and start over for the next round."""


ALGORITHMS: Registry[Callable[[Mapping[str, Tensor]], Fold]] = Registry("federated algorithm")


@ALGORITHMS.register("fedavg")
class FedAvg:
    """w ← w + Σ n_k Δ_k / Σ n_k over the sites k that answered (McMahan et al. 2017, with n_k the public weight).

    The sum is kept un-normalised in float64 and the weights are integers: n·Δ has a 24-bit mantissa times a small
    integer, hence no rounding at all, and the sum of a few such products is exact too as long as their bits span no
    more than 53 positions (weights to 2⁸ in 8 sites leave 18 bits, a factor of 10⁵ between the largest and the
    smallest update of one parameter). What rounding is left is near 2⁻⁵³, and vanishes in the one rounding to
    float32 at the end. So the order of arrival does not show in the result, and no list of replies is needed to sort.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._sum = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in like.items()}
        self._weight = 0

    def add(self, update: Update) -> None:
        """sum += n·Δ, in place."""
        for name, total in self._sum.items():
            total.add_(update.tensors[name], alpha=update.weight)
        self._weight += update.weight

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """w += sum / Σn, computed in float64 and rounded once.

        Raises:
            FederationError: no update was added.
        """
        if not self._weight:
            raise FederationError("no update was folded, so there is no mean.")
        for name, total in self._sum.items():
            weights[name].add_(total.div_(self._weight))
            total.zero_()
        self._weight = 0
