"""A hospital that pauses, resumes and leaves: at its node's door, and as the whole federation sees it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hospital import Hospital, private, reason, rewrite
from typer.testing import CliRunner

import client.app
from client import standing
from client.view.commands import app
from server import roster
from server.app import federate
from simulations.inprocess import InProcessGrid
from tmca_core.config import Config
from tmca_core.errors import ConfigError, SiteAway
from tmca_core.messages import REFUSED


def plain(**values: Any) -> Config:
    return private(privacy__enabled=False, federation__poll=0.01, evaluation__bootstrap=20, **values)


def allow_plain(hospital: Hospital) -> Hospital:
    path = hospital.folder / "site.toml"
    path.write_text(path.read_text().replace("[privacy]", "[privacy]\nrequired = false"))
    return hospital


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    (tmp_path / "state").mkdir()
    return allow_plain(Hospital.make(tmp_path))


# --- at the door ------------------------------------------------------------------------------------
def test_a_paused_site_answers_nothing_before_a_case_is_read_and_everything_again_when_it_resumes(hospital: Hospital) -> None:
    since = standing.pause(hospital.folder / "state").paused
    for kind, fields in (("train", {"round": 1}), ("evaluate", {"round": 1, "split": "val"})):
        reply = hospital.answer(plain(), kind, **fields)
        assert reply.error.code == REFUSED
        assert reason(reply) == "SiteAway: this hospital's policy refuses. Rule: paused by the hospital; bound: until it resumes."
    hello = hospital.hello(plain())
    assert "paused by the hospital" in hello.refusal and since not in hello.refusal and hello.site == "ghent"
    assert not hospital.decoded() and hospital.kinds() == []
    assert standing.resume(hospital.folder / "state") == standing.Standing()
    assert not hospital.train(plain()).has_error() and hospital.hello(plain()).refusal == ""


def test_a_run_that_was_left_is_left_for_good_and_no_other(hospital: Hospital) -> None:
    state = hospital.folder / "state"
    assert not hospital.train(plain(), run="0f").has_error()
    standing.leave(state, "0f")
    standing.pause(state)
    standing.resume(state)
    for reply in (hospital.train(plain(), 2, run="0f"), hospital.evaluate(plain(), run="0f")):
        assert reason(reply).endswith("Rule: left by the hospital; bound: for good, in this run.")
    assert "left by the hospital" in hospital.hello(plain(), run="0f").refusal
    assert hospital.hello(plain(), run="1f").refusal == "" and not hospital.train(plain(), run="1f").has_error()


def test_what_is_computed_while_the_hospital_pauses_does_not_leave(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    import client.site

    real = client.site.train

    def train(site: Any, content: RecordDict) -> RecordDict:
        standing.pause(hospital.folder / "state")
        return real(site, content)

    monkeypatch.setattr(client.site, "train", train)
    reply = hospital.train(plain())
    assert reply.error.code == REFUSED and "paused by the hospital" in reason(reply)
    assert hospital.decoded()  # it was under way


@pytest.mark.parametrize("content", ["", "{", "[]", '{"paused": 3}', '{"left": []}', '{"away": true}', None])
def test_a_standing_that_cannot_be_read_answers_nothing_and_is_not_written_over(hospital: Hospital, content: str | None) -> None:
    path = hospital.folder / "state" / standing.FILE
    path.mkdir() if content is None else path.write_text(content)
    assert "what it has decided cannot be read" in reason(hospital.train(plain()))
    for change in (standing.pause, standing.resume):
        with pytest.raises(SiteAway, match="cannot be read"):
            change(hospital.folder / "state")
    assert not hospital.decoded() and (content is None or path.read_text() == content)


def test_a_folder_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Name the folder that state="):
        standing.pause(tmp_path / "tpyo")
    assert not (tmp_path / "tpyo").exists()


def test_pausing_twice_keeps_the_first_moment(tmp_path: Path) -> None:
    first = standing.pause(tmp_path)
    standing.leave(tmp_path, "0f")
    assert standing.pause(tmp_path).paused == first.paused and set(standing.read_standing(tmp_path).left) == {"0f"}


def test_the_commands_say_what_holds_now(tmp_path: Path) -> None:
    def tmca(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--node-state", str(tmp_path)])

    refused = tmca("leave")
    assert isinstance(refused.exception, ConfigError) and "there is none to leave" in str(refused.exception)
    assert tmca("pause").exit_code == 0 and "This site is paused since 20" in tmca("status").output
    assert json.loads(tmca("status", "--json").output)["answers"] is False
    assert "takes part" in tmca("resume").output and json.loads(tmca("status", "--json").output)["answers"] is True
    (tmp_path / "ghent" / "0f").mkdir(parents=True)
    assert "never asked here; known, the last first: 0f" in str(tmca("leave", "--run", "1f").exception)
    assert set(json.loads(tmca("leave", "--json").output)["left"]) == {"0f"}


# --- as the federation sees it ----------------------------------------------------------------------
class Nodes(InProcessGrid):
    """A deployment in one process: every node is a hospital with its own files. Nodes of `later` are not connected yet."""

    def __init__(self, config: Config, hospitals: Mapping[str, Hospital]) -> None:
        super().__init__(client.app.make_app(config), len(hospitals))
        for (node, _), (name, hospital) in zip(sorted(self._contexts.items()), hospitals.items(), strict=True):
            self._contexts[node] = Context(1, node, {**hospital.node, "site": name}, RecordDict(), {})
        self.later: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.later]


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Hospital]:
    made = {}
    for name in ("ghent", "iowa"):
        (tmp_path / name / "state").mkdir(parents=True)
        made[name] = allow_plain(Hospital.make(tmp_path / name, cases=12))
        rewrite(made[name].manifest, lambda k, row, name=name: {**row, "patient_id": f"SECRET-{name}-{k}"})  # type: ignore[misc]
    return made


def completed(events: list[Mapping[str, Any]]) -> list[list[str]]:
    return [event["completed"] for event in events if event["event"] == "round"]


def test_a_site_pauses_in_the_midst_of_a_run_and_comes_back_under_its_name(
    tmp_path: Path, two: dict[str, Hospital], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roster, "REFUSED_SECONDS", 0.0)
    caplog.set_level(logging.DEBUG, logger="server")  # a command that ran before may have set it higher
    config, events, state = plain(federation__rounds=6), [], two["iowa"].folder / "state"
    grid = Nodes(config, two)

    def decide(event: Mapping[str, Any]) -> None:
        events.append(event)
        if event["event"] == "round":
            {1: standing.pause, 4: standing.resume}.get(event["round"], lambda folder: None)(state)

    summary = federate(grid, config, tmp_path / "run", decide)
    both, one = ["ghent", "iowa"], ["ghent"]
    assert completed(events) == [both, one, one, one, both, both]
    told = [event for event in events if event["event"] == "sites"]
    assert told[0]["present"] == both and told[-1]["present"] == both and told[-1]["refusing"] == {}
    assert "paused by the hospital" in told[1]["refusing"]["iowa"] and told[1]["missing"] == ["iowa"]
    # Asked for its turn once, then said hello to; named once for each, and not every round.
    assert [(fault["round"], fault["phase"], fault["kind"]) for fault in summary["faults"]] == [
        (2, "train", "refusal"),
        (2, "val", "refusal"),
    ]
    assert [event["sites"] for event in events if event["event"] == "asked" and event["phase"] == "train"] == [
        both,
        both,
        one,
        one,
        both,
        both,
    ]
    # Nothing of a case is on the coordinator's side.
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("server"))
    files = [path.read_text() for path in (tmp_path / "run").iterdir() if path.suffix in (".jsonl", ".json", ".toml")]
    assert "SECRET" not in "".join([said, *files]) and "paused by the hospital" in said


@pytest.mark.slow
def test_a_site_that_leaves_is_gone_for_the_run_and_the_others_go_on(
    tmp_path: Path, two: dict[str, Hospital], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "REFUSED_SECONDS", 0.0)
    config, events, state = plain(federation__rounds=4), [], two["iowa"].folder / "state"

    def decide(event: Mapping[str, Any]) -> None:
        events.append(event)
        if event["event"] == "round" and event["round"] == 1:
            (run,) = [path.name for path in (state / "iowa").iterdir()]
            standing.leave(state, run)

    federate(Nodes(config, two), config, tmp_path / "run", decide)
    assert completed(events) == [["ghent", "iowa"], *[["ghent"]] * 3]
    assert "left by the hospital" in [event for event in events if event["event"] == "sites"][-1]["refusing"]["iowa"]


@pytest.mark.slow
def test_a_paused_site_is_waited_for_where_the_run_needs_it(
    tmp_path: Path, two: dict[str, Hospital], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused between two rounds; the hello of the next gathering finds it so, and waits."""
    monkeypatch.setattr(roster, "REFUSED_SECONDS", 0.0)
    config, events, state = plain(federation__rounds=2, federation__min_sites=2, federation__wait=120.0), [], two["iowa"].folder / "state"
    standing.pause(state)

    def decide(event: Mapping[str, Any]) -> None:
        events.append(event)
        if event["event"] == "sites" and event["refusing"]:
            standing.resume(state)

    federate(Nodes(config, two), config, tmp_path / "run", decide)
    assert completed(events) == [["ghent", "iowa"]] * 2
    assert [sorted(event["refusing"]) for event in events if event["event"] == "sites"] == [["iowa"], []]


@pytest.mark.slow
def test_a_site_that_appears_in_the_midst_of_a_run_is_taken_up(tmp_path: Path, two: dict[str, Hospital]) -> None:
    config, events = plain(federation__rounds=4), []
    grid = Nodes(config, two)
    grid.later = {max(grid._contexts)}

    def join(event: Mapping[str, Any]) -> None:
        events.append(event)
        if event["event"] == "round" and event["round"] == 2:
            grid.later.clear()

    summary = federate(grid, config, tmp_path / "run", join)
    assert completed(events) == [["ghent"], ["ghent"], ["ghent", "iowa"], ["ghent", "iowa"]]
    assert [site["name"] for site in summary["sites"]] == ["ghent", "iowa"] and summary["faults"] == []
