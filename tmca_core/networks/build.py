"""A network from the configuration, with initial weights that are the same everywhere for one seed."""

from __future__ import annotations

import torch

from tmca_core.config import Config
from tmca_core.networks import guide, ssa, tmca, tmca_ssa, unet  # noqa: F401  (they register themselves)
from tmca_core.networks.interface import NETWORKS, Network
from tmca_core.seeds import stream
from tmca_core.text.encoders import build_text_encoder


def build_network(config: Config) -> Network:
    """The network that `config.network` names, on the CPU, float32.

    Initial weights depend on `config.seed` only; the global random state is left as it was. The federated algorithm adds to the
    tensors that stay at a site (`Network.personal`).

    Raises:
        ConfigError: an unknown network, encoder or algorithm, or one that keeps a part at the sites which the network does not have.
    """
    from tmca_core.algorithms import ALGORITHMS  # they import this package

    factory = NETWORKS[config.network.name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "weights"))
        network = factory(config, build_text_encoder(config.network))
    personal = ALGORITHMS[config.federation.algorithm].personal(network, config)
    network.personal = (*network.personal, *sorted(personal))
    return network
