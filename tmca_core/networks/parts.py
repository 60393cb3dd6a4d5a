"""Which tensors belong to a part of a network: for what stays at a site, and for what trains."""

from __future__ import annotations

from torch import nn

from tmca_core.networks.encoders.convnext import ChannelNorm
from tmca_core.networks.interface import Network

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, ChannelNorm)


def trainable_part(network: Network, part: str) -> set[str]:
    """Names of the trainable tensors of a part: "norms", all normalisation layers, or one of `network.parts`; empty where it has none."""
    if part == "norms":
        below = {f"{name}." for name, module in network.named_modules() if isinstance(module, NORMS)}
    else:
        below = {f"{name}." for name in network.parts.get(part, ())}
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad and f"{name}.".startswith(tuple(below))}
