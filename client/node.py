"""What a node's config says about it: hospital or share of a simulation; and what an error may say outside a hospital."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmca_core.errors import PolicyRefusal

# Every message of these is made of names and shapes of tensors, names of sites and runs, and what the server itself has sent.
# By name, so that an error while importing can still be answered; a class derived from one of these is not meant.
_HARMLESS = {
    "tmca_core.errors.FederationError",
    "tmca_core.errors.PolicyRefusal",
    "tmca_core.errors.UpdateRejected",
    "tmca_core.training.loop.DivergedError",
}


def simulated(node: Mapping[str, Any]) -> bool:
    """Whether a node is one of many on this machine that share the run's data; else it is a hospital's own."""
    return "partition-id" in node and "manifest" not in node


def disclosed(error: Exception, node: Mapping[str, Any]) -> str:
    """What an error says to the server: everything in a simulation, where nothing leaves the machine.

    Of a hospital's errors the kind, and the message only where it cannot name a case, a patient or a folder. Of a refusal by its policy
    the rule and its bound: what was held against it may be a number of patients, or what they have spent.
    """
    kind = type(error)
    if isinstance(error, PolicyRefusal) and error.public and not simulated(node):
        return f"{kind.__name__}: this hospital's policy refuses. {error.public}"
    if simulated(node) or f"{kind.__module__}.{kind.__qualname__}" in _HARMLESS:
        return f"{kind.__name__}: {error}"
    return f"{kind.__name__}: details are in the site's own log"
