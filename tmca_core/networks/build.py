"""A network from the configuration, with initial weights that are the same everywhere for one seed."""

from __future__ import annotations

import torch

from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.networks import guide, ssa, tmca, tmca_ssa, unet  # noqa: F401  (they register themselves)
from tmca_core.networks.adapters import add_adapters
from tmca_core.networks.interface import NETWORKS, Network
from tmca_core.networks.parts import trainable_part
from tmca_core.networks.start import take_up_start
from tmca_core.seeds import stream
from tmca_core.text.encoders import build_text_encoder


def build_network(config: Config, *, started: bool = True) -> Network:
    """The network that `config.network` names, on the CPU, float32.

    Initial weights depend on `config.seed` and the content of `network.start` only; the global random state is left as it was. What
    `network.trainable` leaves out is frozen. The federated algorithm adds to the tensors that stay at a site (`Network.personal`).

    Args:
        started: read `network.start`; False where other weights are put in afterwards, or only names and shapes are asked for.

    Raises:
        ConfigError: an unknown network, encoder or algorithm, or one that keeps or trains a part which the network does not have.
        WeightsError: `network.start` or other weights cannot be read, or do not fit.
    """
    from tmca_core.algorithms import ALGORITHMS  # they import this package

    factory = NETWORKS[config.network.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "weights"))
        network = factory(config, build_text_encoder(config.network))
        _freeze_the_rest(network, config)
    personal = ALGORITHMS[config.federation.algorithm].personal(network, config)
    network.personal = (*network.personal, *sorted(personal))
    if started and config.network.start:
        take_up_start(network, config)
    return network


def _freeze_the_rest(network: Network, config: Config) -> None:
    """Leave only what `network.trainable` names with a gradient."""
    part = config.network.trainable
    if part == "all":
        return
    names = add_adapters(network, config.network.adapter_rank) if part == "lora" else trainable_part(network, part)
    if not names:
        raise ConfigError(
            f"network.trainable={part} trains nothing: network '{config.network.name}' has no trainable tensors there. "
            "Choose another part or network."
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
