"""All sites in this process, one after the other: no serialisation, one network in memory, nothing to start."""

from __future__ import annotations

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


class InProcessGrid(Grid):
    """Flower's Grid over a ClientApp in the same process.

    A pull runs ONE pending message and returns its reply, so the server folds a reply before the next exists and memory
    does not grow with the number of sites. Messages are handed over as they are; what a client raises becomes an error
    reply, as in Flower's own runtimes.

    Args:
        client_app: answers every message.
        nodes: number of nodes; node i + 1 has partition-id i.
    """

    def __init__(self, client_app: ClientApp, nodes: int) -> None:
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
            self._pending[identity] = message
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the first of the messages that is still pending."""
        for identity in message_ids:
            if identity in self._pending:
                return [self._answer(self._pending.pop(identity))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer all messages; `timeout` is not needed, nothing is waited for."""
        return [self._answer(self._pending.pop(identity)) for identity in self.push_messages(messages)]

    def _answer(self, message: Message) -> Message:
        try:
            reply: Any = self._client_app(message, self._contexts[message.metadata.dst_node_id])
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message.")
        except Exception as error:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=message)
        return reply


def run_in_process(server_app: ServerApp, client_app: ClientApp, nodes: int) -> None:
    """Run a ServerApp over `nodes` in-process nodes; what it raises is raised."""
    grid = InProcessGrid(client_app, nodes)
    server_app(grid, Context(_RUN, _SERVER, {}, RecordDict(), {}))
