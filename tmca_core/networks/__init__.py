"""Networks: image encoders, the text-guided decoder, baselines, parameter roles."""

from tmca_core.networks.build import build_network
from tmca_core.networks.interface import NETWORKS, Network, Output
from tmca_core.networks.roles import Role, frozen_digest, roles, shared_state

__all__ = ["NETWORKS", "Network", "Output", "Role", "build_network", "frozen_digest", "roles", "shared_state"]
