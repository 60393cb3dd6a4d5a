"""Questions and answers over a grid that is late, doubles answers, or answers what nobody waits for any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Message, RecordDict

from server.exchange import Answer, Unawaited, exchange, request
from simulations.inprocess import InProcessGrid


class Post(InProcessGrid):
    """Messages are answered at once, but an answer arrives only after `delay[site]` looks; some arrive twice."""

    withdraw = None  # type: ignore[assignment]

    def __init__(self, delay: dict[int, int], twice: tuple[int, ...] = ()) -> None:
        super().__init__(lambda message, context: Message(RecordDict(), reply_to=message), len(delay))  # type: ignore[arg-type]
        self.delay, self.twice, self.looks = delay, twice, 0
        self.inbox: list[tuple[int, Message]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            (identity,) = super().push_messages([message])
            (reply,) = super().pull_messages([identity])
            site = message.metadata.dst_node_id - 2
            copies = 2 if site in self.twice else 1
            self.inbox += [(self.looks + self.delay[site], reply)] * copies
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        wanted = set(message_ids)
        due = [(at, reply) for at, reply in self.inbox if reply.metadata.reply_to_message_id in wanted and at <= self.looks]
        self.inbox = [entry for entry in self.inbox if entry not in due]
        return [reply for _, reply in due]


def ask(grid: Post, **values: Any) -> list[Answer]:
    requests = {f"s{i}": request("train", i + 2, None, {}, "1") for i in grid.delay}
    return list(exchange(grid, requests, poll=0.001, **({"seconds": 0.0} | values)))


def test_everybody_answers_once_in_the_order_of_arrival() -> None:
    answers = ask(Post({0: 5, 1: 1, 2: 3}))
    assert [answer.site for answer in answers] == ["s1", "s2", "s0"]
    assert [answer.kind for answer in answers] == [""] * 3
    assert answers[0].seconds <= answers[1].seconds <= answers[2].seconds


def test_a_second_reply_is_named_and_not_counted() -> None:
    answers = ask(Post({0: 3, 1: 1}, twice=(1,)))
    assert [(answer.site, answer.kind) for answer in answers] == [("s1", ""), ("s1", "duplicate"), ("s0", "")]


def test_what_comes_after_the_deadline_is_taken_in_later_and_told_how_late() -> None:
    late: list[tuple[str, int, str, float]] = []
    unawaited = Unawaited(lambda *told: late.append(told))
    grid = Post({0: 1, 1: 10_000})
    answers = ask(grid, seconds=0.05, unawaited=unawaited, round=7)
    assert [(answer.site, answer.kind, answer.failure) for answer in answers] == [("s0", "", ""), ("s1", "late", "no reply within 0.05 s")]
    assert late == []
    assert len(unawaited.open) == 1
    grid.looks = 10_000
    grid.delay = {0: 1}
    assert [answer.site for answer in ask(grid, unawaited=unawaited, round=8)] == ["s0"]
    ((site, round, kind, seconds),) = late
    assert (site, round, kind) == ("s1", 7, "late")
    assert 0 < seconds < 5
    assert unawaited.open == {}


def test_the_surplus_is_not_waited_for() -> None:
    told: list[tuple[str, int, str, float]] = []
    unawaited = Unawaited(lambda *values: told.append(values))
    grid, good = Post({0: 1, 1: 2, 2: 10_000}), []
    requests = {f"s{i}": request("train", i + 2, None, {}, "1") for i in grid.delay}
    kinds = {}
    for answer in exchange(grid, requests, poll=0.001, seconds=0.0, unawaited=unawaited, round=1, enough=lambda: len(good) >= 2):
        kinds[answer.site] = answer.kind
        if answer.content is not None:
            good.append(answer.site)
    assert kinds == {"s0": "", "s1": "", "s2": "surplus"}
    grid.looks = 10_000
    unawaited.collect(grid)
    assert [entry[:3] for entry in told] == [("s2", 1, "surplus")]


def test_a_surplus_that_arrives_with_the_others_is_dropped_at_once() -> None:
    unawaited = Unawaited(lambda *values: None)
    good: list[str] = []
    grid = Post({0: 1, 1: 1, 2: 1})
    requests = {f"s{i}": request("train", i + 2, None, {}, "1") for i in grid.delay}
    for answer in exchange(grid, requests, poll=0.001, seconds=0.0, unawaited=unawaited, enough=lambda: len(good) >= 1):
        if answer.content is not None:
            good.append(answer.site)
    assert good == ["s0"]
    assert unawaited.open == {}


def test_a_grid_that_runs_sites_when_asked_does_not_run_the_surplus() -> None:
    ran: list[int] = []

    def app(message: Message, context: Context) -> Message:
        ran.append(message.metadata.dst_node_id)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 3)  # type: ignore[arg-type]
    unawaited = Unawaited(lambda *values: None)
    requests = {f"s{i}": request("train", i + 2, None, {}, "1") for i in range(3)}
    kinds = [a.kind for a in exchange(grid, requests, poll=0.001, seconds=0.0, unawaited=unawaited, enough=lambda: len(ran) >= 2)]
    assert ran == [2, 3]
    assert kinds.count("surplus") == 1 + kinds[:2].count("surplus")
    assert unawaited.open == {}
    assert list(grid.pull_messages(grid._pending)) == []
