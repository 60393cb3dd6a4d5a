"""A site's worker whose answers are garbage: the installed app, with its updates spoilt before they leave.

Started in the place of `tmca deploy work`, by whoever is at home on the site's machine.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import client.app
from client.worker import Runtime, work
from tmca_core.messages import ARRAYS
from tmca_core.wire import RAW, dtype_name, tensors_of, to_bytes


def spoilt(app: ClientApp, how: str) -> ClientApp:
    """The app, but of every update the first tensor is full of NaN (`nan`), or every tensor has one row too many (`shapes`)."""
    bad = ClientApp()

    @bad.query()
    def query(message: Message, context: Context) -> Message:
        return app(message=message, context=context)

    @bad.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return app(message=message, context=context)

    @bad.train()
    def train(message: Message, context: Context) -> Message:
        reply = app(message=message, context=context)
        if reply.has_error():
            return reply
        tensors = tensors_of(reply.content[ARRAYS])  # type: ignore[arg-type]
        if how == "nan":
            first = next(iter(tensors))
            tensors[first] = torch.full_like(tensors[first], torch.nan)
        else:
            tensors = {name: torch.cat((tensor.reshape(-1), tensor.new_zeros(1))) for name, tensor in tensors.items()}
        arrays = {name: Array(dtype_name(tensor), tuple(tensor.shape), RAW, to_bytes(tensor)) for name, tensor in tensors.items()}
        reply.content[ARRAYS] = ArrayRecord(arrays)
        return reply

    return bad


def main(how: str, runtime: str, home: str, secret: str) -> None:
    """Answer the messages of a SuperNode."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped as tidily as `tmca deploy work`
    client.app.app = spoilt(client.app.app, how)
    work(Runtime(runtime, Path(secret).read_bytes()), Path(home))


if __name__ == "__main__":
    main(*sys.argv[1:5])
