"""`fedavgm`: the mean update with momentum at the server."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.config import Config


class FedAvgM(FedAvg):
    """v ← β v + Δ, w ← w + η v with Δ the mean of `FedAvg` and v = 0 at the start (Hsu et al. 2019).

    Flower's FedAvgM has the same numbers with all signs of v turned round. v is held in float32.
    """

    def __init__(self, like: Mapping[str, Tensor], config: Config) -> None:
        super().__init__(like, config)
        self._beta = config.federation.server_momentum
        self._velocity = {name: torch.zeros_like(tensor) for name, tensor in like.items()}

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """See the class.

        Raises:
            FederationError: no update was added.
        """
        for name, mean in self.means().items():
            velocity = self._velocity[name]
            weights[name].add_(velocity.copy_(mean.add_(velocity, alpha=self._beta)), alpha=self._rate)
        self.start_over()

    def state(self) -> dict[str, Tensor]:
        """v by name."""
        return dict(self._velocity)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take v back."""
        for name, velocity in self._velocity.items():
            velocity.copy_(state[name])


ALGORITHMS.register("fedavgm")(Algorithm(FedAvgM, f"{ONE_SUM}, and a momentum like them"))
