"""What a federated algorithm changes in a site's training: hooks around the local steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Told:
    """What a rule leaves behind after a round.

    Attributes:
        sent: tensors that travel beside the update, named without "extra/".
        kept: tensors that stay on the site's disk until its next round.
    """

    sent: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)


class LocalRule:
    """One round of local training at one site as plain FedAvg has it; an algorithm overrides what it does differently.

    A rule is made anew for every round.

    Attributes:
        twin: rule of a second model, which the site trains for itself and is evaluated with; None where there is none.
    """

    twin: LocalRule | None = None

    def start(self, network: nn.Module, received: Mapping[str, Tensor], extras: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """The round begins.

        Args:
            network: on the device where it will train.
            received: shared tensors as the server sent them; in one process the server's own, not to be written to.
            extras: what the server sent beside them, named without "extra/".
            kept: `Told.kept` of the site's last round; {} in its first.
        """

    def after_backward(self, step: int, steps: int) -> None:
        """Change the gradients of step `step` (0-based) of `steps`, before clipping; a parameter whose gradient becomes None stays."""

    def end(self) -> Told:
        """The round is over."""
        return Told()


def parameters_among(network: nn.Module, names: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The trainable parameters whose names are in `names`."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad and name in names}


def add_to_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    """gradient += value; a parameter that the step's loss did not reach has a gradient of 0."""
    if parameter.grad is None:
        parameter.grad = value.clone()
    else:
        parameter.grad.add_(value)
