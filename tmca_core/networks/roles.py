"""Parameter roles: every tensor of a network is frozen, shared or personal, and this is the one place that says which."""

from __future__ import annotations

import hashlib
from typing import Literal

from torch import Tensor

from tmca_core.networks.interface import Network

Role = Literal["frozen", "shared", "personal"]


def roles(network: Network) -> dict[str, Role]:
    """Role of every entry of `network.state_dict()`, in its order.

    frozen: buffers and parameters without gradient; never leave the site, pinned by `frozen_digest`.
    personal: trainable, and named by `network.personal` or below a module that it names; stay at the site.
    shared: the rest; aggregated.
    """
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    personal = tuple(f"{name.removesuffix('.')}." for name in network.personal)

    def role(name: str) -> Role:
        if name not in trainable:
            return "frozen"
        return "personal" if f"{name}.".startswith(personal) else "shared"

    return {name: role(name) for name in network.state_dict()}


def shared_state(network: Network) -> dict[str, Tensor]:
    """References to the shared tensors, in state_dict order. Writing to them writes to the network."""
    state = network.state_dict()
    return {name: state[name] for name, role in roles(network).items() if role == "shared"}


def frozen_digest(network: Network) -> str:
    """sha256 over the names and bytes of all frozen tensors, of a frozen text encoder, and over `network.constants`.

    Sites compare it with the server's before training: weights that never travel must be the same everywhere.
    """
    digest = hashlib.sha256()
    state = network.state_dict()
    for name, role in roles(network).items():
        if role == "frozen":
            digest.update(name.encode())
            digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    if network.uses_text and network.text_encoder.frozen:
        digest.update(network.text_encoder.fingerprint().encode())
    digest.update(network.constants.encode())
    return digest.hexdigest()
