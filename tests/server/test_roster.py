"""The first hello: nodes that never answer, answer late, or say that they are many."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message
from made_up_sites import NAMES, Sites, Tiny, assert_weights, settings

from server import roster, rounds
from server.app import federate
from simulations.inprocess import InProcessGrid
from tmca_core.errors import FederationError
from tmca_core.messages import PLACES, SETTINGS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())
    monkeypatch.setattr(roster, "HELLO_SECONDS", 0.5)


class Hung(InProcessGrid):
    """A deployment in real time whose last node is connected, and answers nothing before `wakes`."""

    withdraw = None  # type: ignore[assignment]
    wakes = float("inf")

    def clock(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        last = max(self._contexts)
        awake = time.monotonic() >= self.wakes
        return super().pull_messages(
            [i for i in message_ids if i in self._pending and (awake or self._pending[i].metadata.dst_node_id != last)]
        )


def test_a_node_that_hangs_does_not_stop_a_run_with_enough_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "HELLO_SECONDS", 1.0)
    config = settings(federation__min_sites=2, federation__rounds=8)
    start = time.monotonic()
    summary = federate(Hung(Sites(config).app, 3), config, tmp_path / "run", None)
    # Asked once in the beginning, and seldom again; said once.
    assert time.monotonic() - start < 5  # eight rounds of waiting for it would be eight seconds
    ((site, kind),) = [(fault["site"], fault["kind"]) for fault in summary["faults"]]
    assert (site, kind) == ("node 4", "late")
    assert_weights(tmp_path / "run", 8 * (10 * 0.1 + 30 * 0.2) / 40)


def test_a_silent_node_is_asked_again_ever_more_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "HELLO_SECONDS", 0.25)
    config = settings(federation__min_sites=2, federation__rounds=60)
    grid, asked = Hung(Sites(config).app, 3), []
    real = grid.push_messages

    def push(messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        asked.extend(time.monotonic() for message in messages if message.metadata.dst_node_id == 4)
        return real(messages)

    monkeypatch.setattr(grid, "push_messages", push)
    federate(grid, config, tmp_path / "run", lambda event: time.sleep(0.03) if event["event"] == "round" else None)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    # A quarter of a second for the answer and the pause, which doubles.
    assert len(asked) >= 3
    assert all(pause >= 0.25 * 2**i for i, pause in enumerate(pauses))


def test_a_node_that_wakes_is_taken_in(tmp_path: Path) -> None:
    config, events = settings(federation__min_sites=3, federation__rounds=1), []
    grid = Hung(Sites(config).app, 3)
    grid.wakes = time.monotonic() + 1.2
    federate(grid, config, tmp_path / "run", events.append)
    assert [event["completed"] for event in events if event["event"] == "round"] == [[*NAMES]]


def test_too_few_because_one_hangs_says_so(tmp_path: Path) -> None:
    config = settings(federation__min_sites=3, federation__wait=0.7)
    with pytest.raises(FederationError, match=r"2 sites can train, 3 are needed.*ready: ghent, hannover; node 4: no reply within"):
        federate(Hung(Sites(config).app, 3), config, tmp_path / "run", None)


class Many(Sites):
    """Iowa says that it serves nine sites."""

    def _query(self, message: Message, context: Context) -> Message:
        reply = super()._query(message, context)
        if self._site(context) == "iowa":
            place = message.content[SETTINGS].get("place", 0)
            reply.content[SETTINGS] = ConfigRecord({**reply.content[SETTINGS], "site": f"sock-{place}", PLACES: 9})
        return reply


class Elsewhere(InProcessGrid):
    """Of another name than the simulations' grids, hence a deployment."""


def test_in_a_deployment_a_node_is_one_site(tmp_path: Path) -> None:
    config = settings(federation__rounds=1, federation__algorithm="median")
    summary = federate(Elsewhere(Many(config).app, 3), config, tmp_path / "run", None)
    assert [site["name"] for site in summary["sites"]] == ["ghent", "hannover"]
    (fault,) = summary["faults"]
    assert (fault["site"], fault["kind"]) == ("sock-0", "hello")
    assert "9 sites" in fault["reason"]
    assert_weights(tmp_path / "run", 0.15)
