"""`fedadam`, `fedyogi`, `fedadagrad`: the mean update as a gradient for an adaptive optimiser at the server."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.config import Config


class Adaptive(FedAvg):
    """m ← β₁ m + (1 − β₁) Δ, v ← `second`(v, Δ²), w ← w + η m / (√v + τ) (Reddi et al. 2021, algorithm 2).

    Δ is the mean of `FedAvg`; m = 0 and v = τ² at the start, as the paper asks for (v ≥ τ²), and there is no correction of
    the bias towards the start. Flower's own start at v = 0, and its FedAdam corrects the bias with one round too many.
    Both moments are held in float32.
    """

    own_rate = 0.01

    def __init__(self, like: Mapping[str, Tensor], config: Config) -> None:
        super().__init__(like, config)
        settings = config.federation
        self._beta1, self._beta2, self._tau = settings.server_momentum, settings.beta2, settings.tau
        self._first = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        self._second = {name: torch.full_like(tensor, settings.tau**2) for name, tensor in like.items()}

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """The new v from the old one, float64, and Δ²; may be written over either."""
        raise NotImplementedError

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """See the class; moments computed in float64, the step in float32.

        Raises:
            FederationError: no update was added.
        """
        for name, mean in self.means().items():
            m, v = self._first[name], self._second[name]
            v.copy_(self.second(v.double(), mean.square()))
            m.copy_(mean.mul_(1 - self._beta1).add_(m, alpha=self._beta1))
            weights[name].addcdiv_(m, v.sqrt().add_(self._tau), value=self._rate)
        self.start_over()

    def state(self) -> dict[str, Tensor]:
        """Both moments by name."""
        return {f"{moment}/{name}": tensor for moment, tensors in self._moments() for name, tensor in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take both moments back."""
        for moment, tensors in self._moments():
            for name, tensor in tensors.items():
                tensor.copy_(state[f"{moment}/{name}"])

    def _moments(self) -> list[tuple[str, dict[str, Tensor]]]:
        return [("first", self._first), ("second", self._second)]


class FedAdam(Adaptive):
    """v ← β₂ v + (1 − β₂) Δ²."""

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """See the class."""
        return v.lerp_(squared, 1 - self._beta2)


class FedYogi(Adaptive):
    """v ← v − (1 − β₂) Δ² sign(v − Δ²): v changes by no more than Δ² however large it is."""

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """See the class."""
        return v.addcmul_(squared, (v - squared).sign_(), value=self._beta2 - 1)


class FedAdagrad(Adaptive):
    """v ← v + Δ²."""

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """See the class."""
        return v.add_(squared)


for _name, _fold in (("fedadam", FedAdam), ("fedyogi", FedYogi), ("fedadagrad", FedAdagrad)):
    ALGORITHMS.register(_name)(Algorithm(_fold, f"{ONE_SUM}, and two moments like them"))
