"""What training needs to go on exactly: optimiser moments, step count, averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from tmca_core.errors import WeightsError


@dataclass
class TrainState:
    """State of an optimiser by parameter name, so that it survives another parameter order; plain SGD has none but the count.

    Attributes:
        step: optimiser steps taken.
        moments: name → (first, second) moment, shaped as the parameter.
        average: name → exponentially averaged weight; empty when EMA is off.
        counts: name → steps that a parameter took part in, where fewer than `step`.
    """

    PREFIXES: ClassVar = ("first", "second", "average", "count")

    step: int = 0
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def as_tensors(self) -> dict[str, Tensor]:
        """One flat dict of CPU tensors, as files hold it."""
        tensors = {"step": torch.tensor(self.step)}
        for name, (first, second) in self.moments.items():
            tensors |= {f"first/{name}": first, f"second/{name}": second}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"count/{name}": torch.tensor(count) for name, count in self.counts.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TrainState:
        """The state that `as_tensors` gave; KeyError where it is not one."""
        firsts = [name.removeprefix("first/") for name in tensors if name.startswith("first/")]
        return cls(
            int(tensors["step"]),
            {name: (tensors[f"first/{name}"], tensors[f"second/{name}"]) for name in firsts},
            {name.removeprefix("average/"): value for name, value in tensors.items() if name.startswith("average/")},
            {name.removeprefix("count/"): int(value) for name, value in tensors.items() if name.startswith("count/")},
        )


def capture(network: nn.Module, optimizer: torch.optim.Optimizer, step: int, average: dict[str, Tensor]) -> TrainState:
    """The state of an optimiser, tensors by reference."""
    moments, counts = {}, {}
    for name, parameter in network.named_parameters():
        values = optimizer.state.get(parameter, {})
        if "exp_avg" in values:
            moments[name] = (values["exp_avg"], values["exp_avg_sq"])
            if int(values["step"]) != step:
                counts[name] = int(values["step"])
    return TrainState(step, moments, average, counts)


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
            "step": torch.tensor(float(state.counts.get(name, state.step)), device=parameter.device),  # fused AdamW wants it there
            "exp_avg": first.clone().to(parameter.device),
            "exp_avg_sq": second.clone().to(parameter.device),
        }
