"""`scaffold`: control variates that take out of each local step what makes a site drift away from the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, EXTRA, Algorithm
from tmca_core.config import Config
from tmca_core.messages import Spec, Update
from tmca_core.training.rules import LocalRule, Told, add_to_gradient, parameters_among


class Scaffold(FedAvg):
    """w as in `FedAvg`; c ← c + Σ n_k Δc_k / N over the sites that answered, N being the weight of all (Karimireddy et al. 2020, eq. 5).

    So c = Σ n_k c_k / N over all sites, a site that has not trained yet counting with c_k = 0. The paper has equal weights; the
    variates must have those of the mean, or the model settles at the optimum of another objective. c is held in float32.
    N is of all sites there have ever been at once: who is away keeps its part of c, and where N grows, the parts of the others shrink.
    """

    def __init__(self, like: Mapping[str, Tensor], config: Config) -> None:
        super().__init__(like, config)
        self._changes = FedAvg({f"{EXTRA}{name}": tensor for name, tensor in like.items()}, config)
        self._variate = {f"{EXTRA}{name}": torch.zeros_like(tensor) for name, tensor in like.items()}
        self._total = self._known = 0

    def begin(self, total: int) -> None:
        """Note the weight of all sites."""
        super().begin(total)
        self._changes.begin(total)
        self._total = total

    def add(self, update: Update) -> None:
        """Both sums."""
        super().add(update)
        self._changes.add(update)

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """See the class.

        Raises:
            FederationError: no update was added.
        """
        known, weight = max(self._total, self._known, self._weight), self._weight
        super().finish(weights)
        for name, mean in self._changes.means().items():
            if self._known and known > self._known:
                self._variate[name].mul_(self._known / known)
            self._variate[name].add_(mean, alpha=weight / known)
        self._known = known
        self._changes.start_over()

    def state(self) -> dict[str, Tensor]:
        """c by name, and N."""
        return {**self._variate, "known": torch.tensor(self._known)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take c and N back."""
        self._known = int(state["known"])
        for name, variate in self._variate.items():
            variate.copy_(state[name])

    def broadcast(self) -> dict[str, Tensor]:
        """c."""
        return dict(self._variate)


class Correction(LocalRule):
    """g ← g − c_k + c at every step, before clipping; then c_k⁺ = the mean of the round's g as they were, and Δc_k = c_k⁺ − c_k.

    With plain SGD at a constant rate η that is the paper's option II, c_k⁺ = c_k − c + (w − w_k)/(Kη), for
    w − w_k = η Σ (g − c_k + c). The mean of gradients holds for any optimiser, where the paper's expression does not.
    """

    def start(self, network: nn.Module, received: Mapping[str, Tensor], extras: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Take c from the server and c_k from the site's disk; a site without one begins at 0."""
        self.parameters = parameters_among(network, received)
        self.own = {name: kept[name].to(p.device) if name in kept else torch.zeros_like(p) for name, p in self.parameters.items()}
        self.shift = {name: extras[name].to(p.device) - self.own[name] for name, p in self.parameters.items()}
        self.sum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def after_backward(self, step: int, steps: int) -> None:
        """Sum up the gradients, then correct them."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.sum[name].add_(parameter.grad)
            add_to_gradient(parameter, self.shift[name])
        self.steps += 1

    def end(self) -> Told:
        """Δc_k to the server, c_k⁺ to the disk."""
        fresh = {name: total.div_(self.steps).detach() for name, total in self.sum.items()}
        return Told(sent={name: value - self.own[name].detach() for name, value in fresh.items()}, kept=fresh)


def with_variates(spec: Spec) -> Spec:
    """A variate beside every shared tensor."""
    return spec | {f"{EXTRA}{name}": entry for name, entry in spec.items()}


ALGORITHMS.register("scaffold")(
    Algorithm(Scaffold, f"two times {ONE_SUM}, and a variate like them", local=lambda config: Correction(), sent=with_variates)
)
