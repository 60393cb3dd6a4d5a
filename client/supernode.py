"""`tmca deploy node`: Flower's SuperNode, which signs its calls whole and looks for messages several times a second, not every three."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Annotated

import typer


def node(
    arguments: Annotated[list[str], typer.Argument(metavar="-- ARGUMENTS", help="Arguments of flower-supernode, after two dashes.")],
    poll: Annotated[float, typer.Option(min=0.05, max=3, help="Longest pause between two looks for a message, seconds.")] = 0.3,
) -> None:
    """Run flower-supernode with a shorter pause between two looks for a message, and a signature over the whole of each call."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    from client.signatures import sign_calls

    # Flower 1.41 has no setting for it: its main loop, which is this module, sleeps 3 s where nothing has come, 0.5 s until an answer has.
    vars(start_client_internal)["time"] = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, poll))})
    sign_calls()
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
