"""Messages out, answers in, one at a time as they arrive; whoever fails or is late is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from tmca_core.errors import FederationError
from tmca_core.messages import ARRAYS, REFUSED, SETTINGS
from tmca_core.wire import PACKED, WHOLE, ByReference, fill, pack, payload_bytes

# Replies asked for at once: what is in memory together does not grow with the number of sites.
GROUP = 4
TOO_LATE = "no reply within"
ENOUGH = "enough other sites had answered"


class TensorArray(ByReference, Array):  # type: ignore[override]
    """A Flower Array that holds a tensor; Flower's object store knows it by the name of its base."""

    __qualname__ = "Array"


@dataclass(frozen=True)
class Answer:
    """One site's answer: its content, or why there is none.

    Attributes:
        kind: "" of a good one; "failed", "refusal" (the site's policy forbids it: nothing was released), "late", "surplus" (enough
            others were there before it) or "duplicate" (it comes on top of the site's first).
        seconds: from the question to the answer; where sites are run one after the other, without the others' runs.
    """

    site: str
    content: RecordDict | None
    failure: str = ""
    kind: str = ""
    seconds: float = 0.0


@dataclass
class Unawaited:
    """Questions whose answers nobody waits for any more: when one comes, it is taken from the grid, noted and dropped.

    Attributes:
        note: told site, round, kind ("late" or "surplus") and by how many seconds the answer missed.
        open: message → (site, round, kind, the moment when waiting ended).
    """

    note: Callable[[str, int, str, float], None]
    open: dict[str, tuple[str, int, str, float]] = field(default_factory=dict)

    def collect(self, grid: Grid) -> None:
        """Take in what has come by now."""
        for group in _groups(list(self.open)):
            for reply in grid.pull_messages(group):
                if found := self.open.pop(reply.metadata.reply_to_message_id, None):
                    site, round, kind, since = found
                    self.note(site, round, kind, time.monotonic() - since)


def packed(weights: Mapping[str, Tensor], deployed: bool = False) -> ArrayRecord:
    """Weights as a record, which may go into every message of a phase: by reference, or of a deployment in one piece."""
    if deployed:
        return ArrayRecord({WHOLE: Array("uint8", (len(blob := pack(weights)),), PACKED, blob)})
    record: ArrayRecord = fill(ArrayRecord(), {name: TensorArray(tensor) for name, tensor in weights.items()})
    return record


def request(kind: str, node: int, arrays: ArrayRecord | None, settings: Mapping[str, str | int], group: str) -> Message:
    """A message to one node."""
    content = RecordDict({SETTINGS: ConfigRecord(dict(settings))})
    if arrays is not None:
        content[ARRAYS] = arrays
    return Message(content, dst_node_id=node, message_type=kind, group_id=group)


def carried_bytes(content: RecordDict) -> int:
    """Bytes that a message or a reply carries."""
    arrays = content.get(ARRAYS)
    rest = (record for record in content.values() if isinstance(record, (ConfigRecord, MetricRecord)))
    return payload_bytes(arrays if isinstance(arrays, ArrayRecord) else {}, *rest)


def exchange(
    grid: Grid,
    requests: Mapping[str, Message],
    *,
    poll: float,
    seconds: float,
    unawaited: Unawaited | None = None,
    round: int = 0,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """Push one request a site, then yield every site's answer once, in the order of arrival; second ones on top, as "duplicate".

    Args:
        requests: site name → message.
        poll: seconds between two looks where nothing had arrived.
        seconds: the whole exchange may take; 0: as long as it needs. What comes later is not yielded.
        unawaited: takes over the questions that are still open at the end, and is looked after meanwhile. A grid that runs a site
            only when its answer is asked for (it has `withdraw`) is told to forget them instead. Such a grid may simulate waiting,
            with a `clock` and a `sleep` of its own.
        round: that they belong to.
        enough: looked at before every answer; once true, the sites that have not answered are "surplus".

    Raises:
        FederationError: the process is ending (the engine's main thread was interrupted).
    """
    # A simulation's grid may have a clock on which a straggler's delay passes without waiting.
    clock: Callable[[], float] = getattr(grid, "clock", time.monotonic)
    sleep: Callable[[float], None] = getattr(grid, "sleep", time.sleep)
    start = clock()
    withdraw: Callable[[list[str]], None] | None = getattr(grid, "withdraw", None)

    def late() -> bool:
        return bool(seconds) and clock() - start > seconds

    outstanding: dict[str, str] = {}
    answered: dict[str, str] = {}
    for site, message in requests.items():
        # One by one: a grid may leave out ids of messages that it could not push, and a batch may exceed its payload limit.
        ids = [identity for identity in grid.push_messages([message]) if identity]
        if ids:
            outstanding[ids[0]] = site
        else:
            yield Answer(site, None, "the message could not be pushed", "failed")
    while outstanding and not enough():
        arrived = False
        if unawaited:
            unawaited.collect(grid)
        for group in _groups(list(outstanding)):
            asked = clock()
            for reply in grid.pull_messages(group):
                arrived = True
                identity = reply.metadata.reply_to_message_id
                if identity in answered:
                    yield Answer(answered[identity], None, "a second reply to the same message", "duplicate")
                    continue
                if identity not in outstanding:
                    continue
                sender = answered[identity] = outstanding.pop(identity)
                took = clock() - (asked if withdraw else start)
                if enough():
                    yield Answer(sender, None, ENOUGH, "surplus", took)
                elif late():
                    if unawaited:
                        unawaited.note(sender, round, "late", clock() - start - seconds)
                    yield Answer(sender, None, _too_late(seconds), "late", took)
                elif reply.has_error():
                    kind = "refusal" if reply.error.code == REFUSED else "failed"
                    said = _one_line(reply.error.reason, reply.error.code)
                    yield Answer(sender, None, f"the site {'refuses' if kind == 'refusal' else 'failed'}: {said}", kind, took)
                else:
                    yield Answer(sender, reply.content, seconds=took)
            if arrived or late():
                break
        if late():
            break
        if not arrived:
            if not threading.main_thread().is_alive():  # Ctrl-C ends the main thread of a Ray simulation, not this one
                raise FederationError("interrupted while waiting for replies.")
            sleep(poll)
    kind = "surplus" if enough() else "late"
    if withdraw:
        withdraw(list(outstanding))
    elif unawaited:
        unawaited.open |= {identity: (site, round, kind, time.monotonic()) for identity, site in outstanding.items()}
    for site in outstanding.values():
        yield Answer(site, None, ENOUGH if kind == "surplus" else _too_late(seconds), kind)


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
