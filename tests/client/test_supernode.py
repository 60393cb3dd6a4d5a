"""`tmca deploy node` is Flower's SuperNode, but for its pauses."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import cli, start_client_internal
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client.supernode import answer_for_the_stopped, node


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before, kept = sys.argv, {name: getattr(InMemoryNodeState, name) for name in ("finish_task", "_on_task_tokens_expired")}
    yield
    for name, method in kept.items():
        setattr(InMemoryNodeState, name, method)
    sys.argv, start_client_internal.time = before, time


def test_flowers_own_pauses_are_cut_and_its_arguments_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    seen: list[list[str]] = []

    def started() -> None:
        seen.append(sys.argv)
        for seconds in (3, 0.5, 0.1):
            start_client_internal.time.sleep(seconds)
        assert start_client_internal.time.monotonic() > 0

    monkeypatch.setattr(cli, "flower_supernode", started)
    monkeypatch.setattr(time, "sleep", asked.append)
    node(["--superlink", "here:1", "--insecure"], poll=0.2)
    assert asked == [0.2, 0.2, 0.1] and seen == [["flower-supernode", "--superlink", "here:1", "--insecure"]]


def test_the_module_that_is_patched_is_the_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's loop must still take its pauses from there, or a new version would quietly be slow again."""

    class Stop(Exception):
        pass

    def stop(seconds: float) -> None:
        raise Stop(seconds)

    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", lambda **_: None)

    class Connected:
        def __enter__(self) -> list[object]:
            return [1, *[lambda *_: None] * 7]

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(start_client_internal, "_init_connection", lambda **_: Connected())
    monkeypatch.setattr(start_client_internal, "register_signal_handlers", lambda **_: None)
    monkeypatch.setattr(start_client_internal.time, "sleep", stop)

    class State:
        objectstore_factory = type("Factory", (), {"store": staticmethod(lambda: None)})

        @staticmethod
        def state() -> object:
            return type("Node", (), {"set_node_id": staticmethod(lambda _: None)})

    with pytest.raises(Stop) as stopped:
        start_client_internal.start_client_internal(
            state_factory=State, server_address="127.0.0.1:1", node_config={}, insecure=True, isolation="process"
        )
    assert stopped.value.args == (3,)


RUN = 7


def claimed() -> tuple[InMemoryNodeState, int]:
    """A SuperNode that has one message, whose task a worker has taken on and not read."""
    state = InMemoryNodeState(InMemoryObjectStore())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
    message = Message(RecordDict({"settings": ConfigRecord({"round": 3})}), dst_node_id=5, message_type="train")
    message.metadata.__dict__["_message_id"] = message.object_id
    state.store_message(message)
    task = state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="f")
    assert task is not None and state.claim_task(task) and state.activate_task(task)
    return state, task


def answers(state: InMemoryNodeState) -> list[str]:
    return [reply.error.reason for reply in state.get_messages_legacy(is_reply=True)]


def test_a_task_that_a_worker_gave_up_is_answered_by_the_node() -> None:
    state, task = claimed()
    state.finish_task(task, SubStatus.FAILED, "the worker was stopped")
    assert answers(state) == []  # Flower's own: nobody ever answers, and the node waits
    answer_for_the_stopped()
    state, task = claimed()
    state.finish_task(task, SubStatus.FAILED, "the worker was stopped")
    assert answers(state) == ["ClientApp stopped responding."]
    assert answers(state) == []  # once
    state, task = claimed()
    state.finish_task(task, SubStatus.COMPLETED, "")
    assert answers(state) == []  # the worker's own answer is on its way


def test_a_worker_that_died_before_it_read_is_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_for_the_stopped()
    state, _ = claimed()
    assert answers(state) == []
    later = in_memory_corestate.now() + timedelta(hours=1)
    monkeypatch.setattr(in_memory_corestate, "now", lambda: later)
    assert answers(state) == ["ClientApp stopped responding."]
