"""Which of a SuperLink's paths may be called from where. Flower 1.41 serves all of them on one port, and asks operators for nothing.

A test holds these against the installed Flower.
"""

from __future__ import annotations

from tmca_core.deploy.schema import Coordinator, bracketed

FLEET_PATHS = tuple(
    f"/v1/fleet/{call}"
    for call in (
        "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages", "push-messages",
        "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
"""All that a SuperNode calls; its key is asked for at each."""
CONTROL_PREFIX = "/v1/control/"
"""Of all that `flwr` calls."""
CONTROL_PROBE = "/v1/control/list-runs"
"""A control call that changes nothing: on the fleet port it must be refused."""


def fleet_listen(coordinator: Coordinator) -> str:
    """Address on which the fleet port listens: all, or in a trial the loopback interface."""
    if coordinator.local:
        return "127.0.0.1" if coordinator.host == "localhost" else bracketed(coordinator.host)
    return "[::]" if ":" in coordinator.host else "0.0.0.0"  # noqa: S104  the sites come from outside


def control_host(coordinator: Coordinator) -> str:
    """Where an operator's forwarder connects to: this machine where the control port is not open to others (an SSH tunnel ends there)."""
    return "127.0.0.1" if coordinator.control_address in ("127.0.0.1", "localhost", "::1") else bracketed(coordinator.host)
