"""Which part of a network stays at a site."""

from __future__ import annotations

from torch import nn

from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.networks.encoders.convnext import ChannelNorm
from tmca_core.networks.interface import Network

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, ChannelNorm)


def norms(network: Network, config: Config) -> set[str]:
    """Trainable tensors of all normalisation layers.

    Raises:
        ConfigError: the network has none.
    """
    own = {f"{name}.{own}" for name, module in network.named_modules() if isinstance(module, NORMS) for own, _ in module.named_parameters()}
    return _trainable(network, own, config, "norms")


def chosen_part(network: Network, config: Config) -> set[str]:
    """Trainable tensors of the part that `federation.personal` names.

    Raises:
        ConfigError: the network has no such part, or nothing of it trains.
    """
    part = config.federation.personal
    if part == "norms":
        return norms(network, config)
    below = tuple(f"{name}." for name in network.parts.get(part, ()))
    return _trainable(network, {name for name, _ in network.named_parameters() if f"{name}.".startswith(below)}, config, part)


def _trainable(network: Network, names: set[str], config: Config, part: str) -> set[str]:
    found = {name for name, parameter in network.named_parameters() if parameter.requires_grad and name in names}
    if not found:
        raise ConfigError(
            f"federation.algorithm '{config.federation.algorithm}' keeps the {part} at the sites, and network '{config.network.name}' has "
            "no trainable tensors there. Choose another federation.personal, algorithm or network."
        )
    return found
