"""`fedrep`: the split of `fedper`, trained one after the other: the site's own part first, then what is shared."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.personal import chosen_part
from tmca_core.training.rules import LocalRule


class InTurn(LocalRule):
    """The first `share` of a round's steps train the personal part, the others the shared one (Collins et al. 2021, algorithm 1).

    Of two steps or more each part gets one at least; a single one trains what is shared.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def start(self, network: nn.Module, received: Mapping[str, Tensor], extras: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Deal the trainable parameters to both parts."""
        trainable = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.shared = [parameter for name, parameter in trainable if name in received]
        self.personal = [parameter for name, parameter in trainable if name not in received]

    def after_backward(self, step: int, steps: int) -> None:
        """Take the gradients of the part whose turn it is not."""
        first = min(max(1, round(self.share * steps)), steps - 1)
        for parameter in self.shared if step < first else self.personal:
            parameter.grad = None


ALGORITHMS.register("fedrep")(
    Algorithm(FedAvg, ONE_SUM, personal=chosen_part, local=lambda config: InTurn(config.federation.personal_share))
)
