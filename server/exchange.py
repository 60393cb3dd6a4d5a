"""Messages out, answers in, one at a time as they arrive; whoever fails or is late is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from tmca_core.errors import FederationError
from tmca_core.messages import ARRAYS, SETTINGS, ByReference, payload_bytes

# Replies asked for at once: what is in memory together does not grow with the number of sites.
GROUP = 4
TOO_LATE = "no reply within"


class TensorArray(ByReference, Array):  # type: ignore[override]
    """A Flower Array that holds a tensor; Flower's object store knows it by the name of its base."""

    __qualname__ = "Array"


@dataclass(frozen=True)
class Answer:
    """One site's answer: its content, or why there is none."""

    site: str
    content: RecordDict | None
    failure: str = ""


def pack(weights: Mapping[str, Tensor]) -> ArrayRecord:
    """Weights as a record, by reference; the same record may go into every message of a phase."""
    record = ArrayRecord()
    for name, tensor in weights.items():
        record[name] = TensorArray(tensor)
    return record


def request(kind: str, node: int, arrays: ArrayRecord | None, settings: Mapping[str, str | int], group: str) -> Message:
    """A message to one node."""
    content = RecordDict({SETTINGS: ConfigRecord(dict(settings))})
    if arrays is not None:
        content[ARRAYS] = arrays
    return Message(content, dst_node_id=node, message_type=kind, group_id=group)


def carried_bytes(content: RecordDict) -> int:
    """Bytes that a message or a reply carries."""
    return payload_bytes(content.array_records.get(ARRAYS, {}), *content.config_records.values(), *content.metric_records.values())


def exchange(grid: Grid, requests: Mapping[str, Message], *, poll: float, seconds: float) -> Iterator[Answer]:
    """Push one request a site, then yield every site's answer once, in the order of arrival.

    Args:
        requests: site name → message.
        poll: seconds between two looks where nothing had arrived.
        seconds: the whole exchange may take; 0: as long as it needs. What comes later is not yielded.

    Raises:
        FederationError: the process is ending (the engine's main thread was interrupted).
    """
    start = time.monotonic()

    def late() -> bool:
        return bool(seconds) and time.monotonic() - start > seconds

    outstanding: dict[str, str] = {}
    for site, message in requests.items():
        # One by one: a grid may leave out ids of messages that it could not push, and a batch may exceed its payload limit.
        ids = [identity for identity in grid.push_messages([message]) if identity]
        if ids:
            outstanding[ids[0]] = site
        else:
            yield Answer(site, None, "the message could not be pushed")
    while outstanding:
        arrived = False
        for group in _groups(list(outstanding)):
            for reply in grid.pull_messages(group):
                arrived = True
                sender = outstanding.pop(reply.metadata.reply_to_message_id, None)
                if sender is None:
                    continue
                if late():
                    yield Answer(sender, None, _too_late(seconds))
                elif reply.has_error():
                    yield Answer(sender, None, f"the site failed: {_one_line(reply.error.reason, reply.error.code)}")
                else:
                    yield Answer(sender, reply.content)
            if arrived or late():
                break
        if late():
            break
        if not arrived:
            if not threading.main_thread().is_alive():  # Ctrl-C ends the main thread of a Ray simulation, not this one
                raise FederationError("interrupted while waiting for replies.")
            time.sleep(poll)
    for site in outstanding.values():
        yield Answer(site, None, _too_late(seconds))


def _groups(identities: list[str]) -> Iterator[list[str]]:
    pending = iter(identities)
    while group := list(islice(pending, GROUP)):
        yield group


def _too_late(seconds: float) -> str:
    return f"{TOO_LATE} {seconds:g} s"


def _one_line(reason: str | None, code: int) -> str:
    """The reason in one line; of a long one, which is a traceback, the end."""
    text = " ".join((reason or "").split())
    if not text:
        return f"Flower error {code} without a reason"
    return text if len(text) <= 500 else f"… {text[-500:]}"
