"""Which part of a network stays at a site."""

from __future__ import annotations

from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.networks.interface import Network
from tmca_core.networks.parts import trainable_part


def norms(network: Network, config: Config) -> set[str]:
    """Trainable tensors of all normalisation layers.

    Raises:
        ConfigError: the network has none.
    """
    return _kept(network, config, "norms")


def chosen_part(network: Network, config: Config) -> set[str]:
    """Trainable tensors of the part that `federation.personal` names.

    Raises:
        ConfigError: the network has no such part, or nothing of it trains.
    """
    return _kept(network, config, config.federation.personal)


def _kept(network: Network, config: Config, part: str) -> set[str]:
    found = trainable_part(network, part)
    if not found:
        raise ConfigError(
            f"federation.algorithm '{config.federation.algorithm}' keeps the {part} at the sites, and network '{config.network.name}' has "
            "no trainable tensors there. Choose another federation.personal, algorithm or network."
        )
    return found
