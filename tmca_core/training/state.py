"""What training needs to go on exactly: optimiser moments, step count, averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tmca_core.errors import WeightsError


@dataclass
class TrainState:
    """State of AdamW by parameter name, so that it survives another parameter order.

    Attributes:
        step: optimiser steps taken.
        moments: name → (first, second) moment, shaped as the parameter.
        average: name → exponentially averaged weight; empty when EMA is off.
    """

    step: int = 0
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)

    def as_tensors(self) -> dict[str, Tensor]:
        """One flat dict of CPU tensors, as files hold it."""
        tensors = {"step": torch.tensor(self.step)}
        for name, (first, second) in self.moments.items():
            tensors |= {f"first/{name}": first, f"second/{name}": second}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TrainState:
        """The state that `as_tensors` gave; KeyError where it is not one."""
        firsts = [name.removeprefix("first/") for name in tensors if name.startswith("first/")]
        return cls(
            int(tensors["step"]),
            {name: (tensors[f"first/{name}"], tensors[f"second/{name}"]) for name in firsts},
            {name.removeprefix("average/"): value for name, value in tensors.items() if name.startswith("average/")},
        )


def capture(network: nn.Module, optimizer: torch.optim.Optimizer, step: int, average: dict[str, Tensor]) -> TrainState:
    """The state of an optimiser, tensors by reference."""
    moments = {}
    for name, parameter in network.named_parameters():
        values = optimizer.state.get(parameter)
        if values:
            moments[name] = (values["exp_avg"], values["exp_avg_sq"])
    return TrainState(step, moments, average)


def restore(network: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Put moments and step count back; parameters that the state does not know start afresh.

    Raises:
        WeightsError: a moment has another shape than its parameter.
    """
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad or name not in state.moments:
            continue
        first, second = state.moments[name]
        if first.shape != parameter.shape:
            raise WeightsError(f"training state of '{name}' is {tuple(first.shape)}, the parameter is {tuple(parameter.shape)}.")
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step), device=parameter.device),  # fused AdamW wants it there
            "exp_avg": first.clone().to(parameter.device),
            "exp_avg_sq": second.clone().to(parameter.device),
        }
