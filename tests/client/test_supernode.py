"""`tmca deploy node` is Flower's SuperNode, but for its pauses."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from flwr.supernode import cli, start_client_internal

from client.supernode import node


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = sys.argv
    yield
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
