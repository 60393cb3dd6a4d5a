"""`fedprox`: the sites' loss with a pull to the round's start, so that uneven sites drift apart less."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.training.rules import LocalRule, add_to_gradient, parameters_among


class Pull(LocalRule):
    """Loss + μ/2 ‖w − w_received‖² over the shared tensors, by its gradient μ (w − w_received) (Li et al. 2020, eq. 2)."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def start(self, network: nn.Module, received: Mapping[str, Tensor], extras: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Note the point of attraction, on the network's device."""
        parameters = parameters_among(network, received)
        self.pairs = [(parameter, received[name].to(parameter.device)) for name, parameter in parameters.items()]

    @torch.no_grad()
    def after_backward(self, step: int, steps: int) -> None:
        """gradient += μ (w − w_received)."""
        for parameter, centre in self.pairs:
            add_to_gradient(parameter, (parameter - centre).mul_(self.strength))


ALGORITHMS.register("fedprox")(Algorithm(FedAvg, ONE_SUM, local=lambda config: Pull(config.federation.prox_mu)))
