"""Replies on disk: a site is not asked twice for what it has given, whatever stops the server in between."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from made_up_sites import A_ROUND, NAMES, Sites, Tiny, assert_weights, final_weights, settings

from server import rounds
from server.app import federate
from server.received import Received, Reply, clear
from simulations.inprocess import InProcessGrid
from tmca_core.config import Config
from tmca_core.errors import FederationError
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def interrupted(config: Config, out: Path, site: str, round: int) -> None:
    sites = Sites(config)

    def interrupt(content: RecordDict) -> RecordDict:
        raise KeyboardInterrupt

    sites.twists[site, round] = interrupt
    with pytest.raises(KeyboardInterrupt):
        federate(sites.grid(), config, out, None)


@pytest.mark.parametrize("site", NAMES)
def test_a_site_is_not_asked_twice_and_the_bits_are_the_same(tmp_path: Path, site: str) -> None:
    config = settings(federation__keep_replies="on")
    reference = federate(Sites(config).grid(), config, tmp_path / "whole", None)
    interrupted(config, tmp_path / "run", site, 2)
    folder = tmp_path / "run" / "received" / "round-002"
    before = NAMES[: NAMES.index(site)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["cohort.json", *(f"{name}.safetensors" for name in before)])
    sites = Sites(config)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert [name for name, round in sites.turns if round == 2] == [name for name in NAMES if name not in before]
    first, second = final_weights(tmp_path / "whole"), final_weights(tmp_path / "run")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for key in ("final", "bytes", "faults", "fairness"):
        assert summary[key] == reference[key]
    assert not list((tmp_path / "run" / "received").iterdir())


class Elsewhere(InProcessGrid):
    """Of another name than the simulations' grids, hence a deployment."""


def test_in_a_deployment_replies_are_kept_without_being_asked(tmp_path: Path) -> None:
    config = settings()
    sites = Sites(config)
    seen: list[list[str]] = []

    def look(content: RecordDict) -> RecordDict:
        seen.append(sorted(path.name for path in (tmp_path / "run" / "received" / "round-002").iterdir()))
        return content

    sites.twists["iowa", 2] = look
    assert federate(Elsewhere(sites.app, 3), config, tmp_path / "run", None)["engine"] == "deployment"
    assert seen == [["cohort.json", "ghent.safetensors", "hannover.safetensors"]]
    assert_weights(tmp_path / "run", 3 * A_ROUND)


def test_in_one_process_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    config = settings()
    interrupted(config, tmp_path / "run", "iowa", 1)
    assert not (tmp_path / "run" / "received").exists()


def test_a_damaged_file_is_removed_and_its_site_asked_again(tmp_path: Path) -> None:
    config = settings(federation__keep_replies="on")
    interrupted(config, tmp_path / "run", "iowa", 2)
    path = tmp_path / "run" / "received" / "round-002" / "ghent.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    (path.parent / ".iowa.safetensors.1.tmp").write_bytes(b"half")
    sites = Sites(config)
    federate(sites.grid(), config, tmp_path / "run", None)
    assert [name for name, round in sites.turns if round == 2] == ["ghent", "iowa"]
    assert_weights(tmp_path / "run", 3 * A_ROUND)


def test_the_round_goes_on_with_the_cohort_it_began_with(tmp_path: Path) -> None:
    config = settings(federation__keep_replies="on")
    interrupted(config, tmp_path / "run", "hannover", 2)
    # Ghent has answered and iowa has not; after the restart neither is there.
    names = ("hannover",)
    sites = Sites(config, names)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    history = Run(tmp_path / "run").last_checkpoint().state["history"]  # type: ignore[union-attr]
    assert [record["completed"] for record in history] == [[*NAMES], ["ghent", "hannover"], ["hannover"]]
    (fault,) = summary["faults"]
    assert (fault["site"], fault["round"]) == ("iowa", 2)
    assert "is gone" in fault["reason"]
    assert_weights(tmp_path / "run", A_ROUND + (10 * 0.1 + 30 * 0.2) / 40 + 0.2)


def test_what_a_finished_round_left_is_cleared(tmp_path: Path) -> None:
    config = settings(federation__keep_replies="on", federation__rounds=1)
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    left = tmp_path / "run" / "received" / "round-001"
    left.mkdir()
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    assert not left.exists()


def reply(site: str, value: float) -> Reply:
    tensors = {"int8/codes": torch.tensor([1, -2], dtype=torch.int8), "w": torch.full((2, 3), value).T}
    return Reply(site, tensors, {"round": 1, "weight": 3}, {"loss": 0.1}, 77, 1.5, 3, 12)


def test_replies_come_back_in_the_order_of_arrival(tmp_path: Path) -> None:
    received = Received(Run(tmp_path), 1)
    names = ["z", "a/b", ".hidden", "ß" * 200, "ß" * 201, ".."]
    assert received.cohort(names, "start") == names
    for i, name in enumerate(names):
        received.write(reply(name, float(i)))
    back = list(received.replies())
    assert [one.site for one in back] == names
    assert all(path.resolve().parent == received.folder.resolve() for path in received.folder.iterdir())
    assert torch.equal(back[3].tensors["w"], torch.full((3, 2), 3.0))
    assert back[0].tensors["int8/codes"].dtype == torch.int8
    assert (back[0].settings, back[0].metrics, back[0].bytes, back[0].seconds) == ({"round": 1, "weight": 3}, {"loss": 0.1}, 77, 1.5)
    assert received.cohort(["other"], "start") == names
    clear(received.run, 0)
    assert received.folder.exists()
    clear(received.run, 1)
    assert not received.folder.exists()


def test_nothing_undeclared_is_written(tmp_path: Path) -> None:
    from flwr.app import ConfigRecord, MetricRecord

    from tmca_core.messages import METRICS, SETTINGS

    config = settings(federation__keep_replies="on")
    sites = Sites(config)

    def chatty(content: RecordDict) -> RecordDict:
        content[SETTINGS] = ConfigRecord({**content[SETTINGS], "patient": b"jane"})
        content[METRICS] = MetricRecord({**content[METRICS], "patient_17_loss": [0.1]})
        return content

    def interrupt(content: RecordDict) -> RecordDict:
        raise KeyboardInterrupt

    sites.twists["ghent", 1], sites.twists["hannover", 1] = chatty, interrupt
    with pytest.raises(KeyboardInterrupt):
        federate(sites.grid(), config, tmp_path / "run", None)
    content = (tmp_path / "run" / "received" / "round-001" / "ghent.safetensors").read_bytes()
    assert b"jane" not in content
    assert b"patient_17" not in content
    cohort = json.loads((tmp_path / "run" / "received" / "round-001" / "cohort.json").read_text())
    assert (set(cohort), cohort["sites"]) == ({"start", "sites"}, [*NAMES])


# --- what replies are worth ---------------------------------------------------------------------------
def asked_in(sites: Sites, round: int) -> list[str]:
    return [name for name, number in sites.turns if number == round]


def test_replies_of_a_round_go_with_the_round_before_it(tmp_path: Path) -> None:
    """The server died while the checkpoint of round 2 was being written and replies of round 3 were there already."""
    config = settings(federation__keep_replies="on")
    interrupted(config, tmp_path / "run", "iowa", 3)
    assert len(list((tmp_path / "run" / "received" / "round-003").glob("*.safetensors"))) == 2
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round-002")
    sites = Sites(config)
    federate(sites.grid(), config, tmp_path / "run", None)
    assert asked_in(sites, 2) == asked_in(sites, 3) == [*NAMES]
    assert_weights(tmp_path / "run", 3 * A_ROUND)


def test_replies_to_other_weights_are_dropped(tmp_path: Path) -> None:
    config = settings(federation__keep_replies="on", federation__rounds=2)
    interrupted(config, tmp_path / "run", "iowa", 2)
    run = Run(tmp_path / "run")
    last = run.checkpoint(1)
    run.save_checkpoint(replace(last, weights={**last.weights, "b": last.weights["b"] + 1}))
    sites = Sites(config)
    federate(sites.grid(), config, tmp_path / "run", None)
    assert asked_in(sites, 2) == [*NAMES]


def test_without_a_checkpoint_no_reply_counts(tmp_path: Path) -> None:
    config = settings(federation__keep_replies="on")
    interrupted(config, tmp_path / "run", "iowa", 1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    sites = Sites(config)
    federate(sites.grid(), config, tmp_path / "run", None)
    assert asked_in(sites, 1) == [*NAMES]


def test_the_first_checkpoint_is_there_before_anybody_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.save_checkpoint

    def slow(self: Run, *args: Any, **values: Any) -> Path:
        time.sleep(0.2)
        return real(self, *args, **values)

    monkeypatch.setattr(Run, "save_checkpoint", slow)
    config, seen = settings(federation__rounds=1), []
    sites = Sites(config)

    def look(content: RecordDict) -> RecordDict:
        seen.extend(path.name for path in Run(tmp_path / "run").checkpoints())
        return content

    sites.twists["ghent", 1] = look
    federate(sites.grid(), config, tmp_path / "run", None)
    assert seen == ["round-000"]


def test_a_cohort_that_has_become_too_small_is_drawn_anew(tmp_path: Path) -> None:
    config, events = settings(federation__keep_replies="on", federation__min_sites=2, federation__rounds=1), []
    sites = Sites(config, ("ghent", "hannover"))

    def burn(content: RecordDict) -> RecordDict:
        raise RuntimeError("on fire")

    sites.twists["hannover", 1] = burn
    with pytest.raises(FederationError, match="1 usable updates, 2 are needed"):
        federate(sites.grid(), config, tmp_path / "run", None)
    # Hannover is gone for good; what ghent gave still counts.
    again = Sites(config, ("ghent", "iowa"))
    federate(again.grid(), config, tmp_path / "run", events.append)
    assert again.turns == [("iowa", 1)]
    assert_weights(tmp_path / "run", (10 * 0.1 + 60 * 0.3) / 70)
    assert any("hannover" in event["text"] and "drawn anew" in event["text"] for event in events if event["event"] == "note")


def test_a_kept_reply_that_is_refused_costs_its_site_the_turn(tmp_path: Path) -> None:
    config = settings(federation__keep_replies="on")
    interrupted(config, tmp_path / "run", "hannover", 2)
    received = Received(Run(tmp_path / "run"), 2)
    (kept,) = received.replies()
    received.write(replace(kept, tensors={**kept.tensors, "b": torch.tensor(float("nan"))}))
    sites = Sites(config)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert [(fault["site"], fault["round"], fault["kind"]) for fault in summary["faults"]] == [("ghent", 2, "not-finite")]
    assert asked_in(sites, 2) == ["hannover", "iowa"]
    assert_weights(tmp_path / "run", 2 * A_ROUND + (30 * 0.2 + 60 * 0.3) / 90)


def test_the_order_of_arrival_survives_a_removed_file(tmp_path: Path) -> None:
    received = Received(Run(tmp_path), 1)
    for name in "abc":
        received.write(reply(name, 0.0))
    (received.folder / "b.safetensors").write_bytes(b"damaged")
    again = Received(Run(tmp_path), 1)
    assert [one.site for one in again.replies()] == ["a", "c"]
    again.write(reply("b", 0.0))
    assert [one.site for one in again.replies()] == ["a", "c", "b"]


@settings_of_hypothesis(max_examples=50, deadline=None)
@given(sites=st.sets(st.text(alphabet="._%-~aé/+", min_size=1, max_size=4), min_size=2, max_size=6))
def test_no_two_sites_share_a_file(sites: set[str]) -> None:
    from server.received import _file_name

    names = {_file_name(site) for site in sites}
    assert len(names) == len(sites)
    assert not any(name.startswith(".") or "/" in name for name in names)


def test_a_short_name_cannot_be_that_of_a_long_one() -> None:
    from server.received import _file_name

    long = _file_name("x" * 151)
    assert _file_name(long) != long
    assert _file_name(".a") != _file_name("_.a")
