"""Low-rank adapters: W + up·down in the place of a layer's weight W, which stays as it is (LoRA, Hu et al. 2021, arXiv 2106.09685).

A layer keeps its class and its name; only its weight is computed, by `torch.nn.utils.parametrize`. So code that reads `layer.weight`,
`torch.func` and checkpoints see an ordinary network, whose tensor "….weight" is called "….parametrizations.weight.original".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

_WEIGHT, _ADAPTER = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRank(nn.Module):
    """The change of one weight (out, in) or (out, in, 1, 1): `down` is drawn, `up` begins at zero, so that nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out, width = weight.shape[:2]
        rank = min(rank, out, width)
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as `nn.Linear` begins

    def forward(self, weight: Tensor) -> Tensor:
        """W → W + up·down."""
        return weight + (self.up @ self.down).view_as(weight)


def add_adapters(network: nn.Module, rank: int) -> set[str]:
    """Give every linear layer and every 1×1 convolution an adapter; returns the names of the adapters' tensors.

    Args:
        rank: of `up·down`; no larger than a weight's own.
    """
    for layer in [module for module in network.modules() if _adaptable(module)]:
        assert isinstance(layer.weight, Tensor)
        register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return {name for name, _ in network.named_parameters() if _ADAPTER in name}


def plain_name(name: str) -> str:
    """A tensor's name in the network without adapters; "" of an adapter's own."""
    return "" if _ADAPTER in name else name.replace(_WEIGHT, ".weight")


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict as that of a network without adapters, theirs added to the weights that they change."""
    found = {plain_name(name): tensor for name, tensor in weights.items() if plain_name(name)}
    for name in [name for name in weights if name.endswith(f"{_ADAPTER}up")]:
        layer = name.removesuffix(f"{_ADAPTER}up")
        weight = found[f"{layer}.weight"]
        found[f"{layer}.weight"] = weight + (weights[name] @ weights[f"{layer}{_ADAPTER}down"]).view_as(weight)
    return found


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
