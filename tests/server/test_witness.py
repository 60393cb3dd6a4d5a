"""The coordinator's record holds what was asked before the first answer, and what came, under the site's own digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.exchange import Answer, packed, request
from server.witness import Witness
from tmca_core.config import parse
from tmca_core.digests import message_digest, weights_digest
from tmca_core.errors import LedgerError
from tmca_core.messages import SETTINGS
from tmca_core.record import Record
from tmca_core.run import Run

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Run.create(tmp_path / "run", parse({}))


def entries(run: Run, kind: str) -> list[dict[str, object]]:
    return [entry for entry in Record.open(run.folder / "record").entries() if entry["kind"] == kind]


def test_questions_before_answers_after(run: Run) -> None:
    witness = Witness(run, "r1", "config", "code", 0)
    arrays = packed(WEIGHTS)
    requests = {site: request("train", node, arrays, {"round": 1, "counted": node}, "1") for node, site in enumerate(("ghent", "lyon"), 2)}
    reply = RecordDict({SETTINGS: ConfigRecord({"round": 1})})

    def answers() -> Iterator[Answer]:
        (asked,) = entries(run, "asked")
        assert asked["weights"] == weights_digest(WEIGHTS)
        assert asked["sites"] == {site: message_digest(message.content) for site, message in requests.items()}
        assert len(set(asked["sites"].values())) == 2  # type: ignore[attr-defined]
        yield Answer("ghent", reply)
        yield Answer("lyon", None, "it failed", "failed")

    assert [answer.site for answer in witness.watch(requests, 1, answers())] == ["ghent", "lyon"]
    (received,) = entries(run, "received")
    assert received["sites"] == {"ghent": message_digest(reply)} and received["asked"] == "train"


def test_the_weights_are_told_without_what_the_algorithm_sends_beside_them(run: Run) -> None:
    arrays = packed({**WEIGHTS, "extra/variate.a": torch.ones(2, 3)})
    message = request("train", 2, arrays, {"round": 1}, "1")
    list(Witness(run, "r1", "config", "code", 0).watch({"ghent": message}, 1, iter([])))
    (asked,) = entries(run, "asked")
    assert asked["weights"] == weights_digest(WEIGHTS) and asked["sites"] == {"ghent": message_digest(message.content)}


def test_what_had_come_is_kept_where_the_round_is_broken_off(run: Run) -> None:
    witness = Witness(run, "r1", "config", "code", 0)
    answers = witness.watch(
        {"ghent": request("train", 2, packed(WEIGHTS), {"round": 1}, "1")}, 1, iter([Answer("ghent", RecordDict())] * 2)
    )
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert len(entries(run, "received")) == 1


def test_a_resumed_run_goes_on_in_its_record_and_a_changed_one_stops_it(run: Run) -> None:
    Witness(run, "r1", "config", "code", 0).model(1, WEIGHTS)
    Witness(run, "r1", "config", "code", 1)
    assert [entry["round"] for entry in entries(run, "began")] == [0, 1]
    path = run.folder / "record" / "record.jsonl"
    path.write_text(path.read_text().replace('"round":1', '"round":7'))
    with pytest.raises(LedgerError, match="damaged"):
        Witness(run, "r1", "config", "code", 1)
