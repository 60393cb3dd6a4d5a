"""All sites in this process, one after the other: no serialisation, one network in memory, nothing to start."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN, _SERVER, _TASK = 1, 1, 1


class Weather:
    """When answers arrive, and how often: fair weather is at once, and once."""

    def delay(self, message: Message, context: Context, usual: float) -> float:
        """Seconds that the answer to a message takes beyond the usual.

        Args:
            usual: mean seconds of an answer of its kind so far; 0 before the first.
        """
        return 0.0

    def copies(self, message: Message, context: Context) -> int:
        """How often the answer arrives."""
        return 1


class InProcessGrid(Grid):
    """Flower's Grid over a ClientApp in the same process.

    A pull runs ONE pending message and returns its reply, so the server folds a reply before the next exists and memory
    does not grow with the number of sites. Messages are handed over as they are; what a client raises becomes an error
    reply, as in Flower's own runtimes.

    A late answer costs no waiting: the grid has a `clock` of its own, and where nothing is due `sleep` moves it on.

    Args:
        client_app: answers every message.
        nodes: number of nodes; node i + 1 has partition-id i.
        weather: delays and copies of answers.
    """

    def __init__(self, client_app: ClientApp, nodes: int, weather: Weather | None = None) -> None:
        # Message() asks for the identity of the task that makes it.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _TASK, _RUN, _SERVER
        self._client_app = client_app
        self._run = Run.create_empty(_RUN)
        # Node 1 is the server, as Flower has it; the sites follow.
        self._contexts = {
            _SERVER + 1 + index: Context(_RUN, _SERVER + 1 + index, {"partition-id": index, "num-partitions": nodes}, RecordDict(), {})
            for index in range(nodes)
        }
        self._pending: dict[str, Message] = {}
        self._weather = weather or Weather()
        self._due: dict[str, float] = {}
        self._taken: dict[str, tuple[float, int]] = {}  # kind → seconds of all answers, and their number
        self._skipped = 0.0

    def clock(self) -> float:
        """Seconds, simulated waiting included; only differences have a meaning."""
        return time.monotonic() + self._skipped

    def sleep(self, seconds: float) -> None:
        """Nothing happens in this process meanwhile: go to where the next answer is due, at least `seconds` on."""
        ahead = min((self._due[identity] for identity in self._pending), default=0.0) - self.clock()
        self._skipped += max(seconds, ahead)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; they are there from the start."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are asked for."""
        identities = []
        for message in messages:
            identity = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identity
            seconds, count = self._taken.get(message.metadata.message_type, (0.0, 0))
            late = self._weather.delay(message, self._contexts[message.metadata.dst_node_id], seconds / max(1, count))
            self._due[identity] = self.clock() + late
            self._pending[identity] = message
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the first of the messages that is still pending and due."""
        now = self.clock()
        for identity in message_ids:
            if identity in self._pending and self._due[identity] <= now:
                return self._replies(identity)
        return []

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages that nobody waits for any more."""
        for identity in message_ids:
            self._pending.pop(identity, None)
            self._due.pop(identity, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer all messages; `timeout` is not needed, nothing is waited for."""
        return [reply for identity in self.push_messages(messages) for reply in self._replies(identity)]

    def _replies(self, identity: str) -> list[Message]:
        message = self._pending.pop(identity)
        del self._due[identity]
        start, kind = time.monotonic(), message.metadata.message_type
        reply = self._answer(message)
        seconds, count = self._taken.get(kind, (0.0, 0))
        self._taken[kind] = seconds + time.monotonic() - start, count + 1
        return [reply] * self._weather.copies(message, self._contexts[message.metadata.dst_node_id])

    def _answer(self, message: Message) -> Message:
        try:
            reply: Any = self._client_app(message, self._contexts[message.metadata.dst_node_id])
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message.")
        except Exception as error:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=message)
        return reply


def run_in_process(server_app: ServerApp, client_app: ClientApp, nodes: int, weather: Weather | None = None) -> None:
    """Run a ServerApp over `nodes` in-process nodes; what it raises is raised."""
    grid = InProcessGrid(client_app, nodes, weather)
    server_app(grid, Context(_RUN, _SERVER, {}, RecordDict(), {}))
