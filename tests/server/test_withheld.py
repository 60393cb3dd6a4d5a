"""Sites that keep figures or refuse by their policy, as the round loop sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from made_up_sites import NAMES, Sites, Tiny, assert_weights, settings

from server import rounds
from server.app import federate
from tmca_core.errors import FederationError, PolicyRefusal
from tmca_core.messages import METRICS, REFUSED, SETTINGS, WITHHELD

COUNTS = ("patients", "train_patients", "train_cases", "val_cases", "test_cases", "skipped")


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config, **_: Tiny())


class Keeping(Sites):
    """Sites of which some tell no counts, and of an evaluation only `figures`."""

    figures: Mapping[str, float] = {"dice_image": 0.75}

    def keep(self, *names: str) -> None:
        for name in names:
            self.kept = {*getattr(self, "kept", set()), name}
            self.twists[name, -1] = lambda content: RecordDict(
                {METRICS: MetricRecord(dict(self.figures)), SETTINGS: ConfigRecord({"split": "val", WITHHELD: True})}
            )

    def _query(self, message: Message, context: Any) -> Message:
        reply = super()._query(message, context)
        record = reply.content.config_records[SETTINGS]
        if record["site"] in getattr(self, "kept", set()):
            for name in COUNTS:
                del record[name]
            record[WITHHELD] = True
        return reply


def weigh_alike(content: RecordDict) -> RecordDict:
    content.config_records[SETTINGS]["weight"] = 1
    return content


def uniform(**values: Any) -> Any:
    return settings(federation__weighting="uniform", **values)


def federation(**values: Any) -> Keeping:
    sites = Keeping(uniform(**values))
    for round in range(1, 10):
        sites.twists |= {(name, round): weigh_alike for name in NAMES}
    return sites


def test_a_site_without_counts_and_with_one_figure_takes_part(tmp_path: Path) -> None:
    sites, events = federation(), list[Mapping[str, Any]]()
    sites.keep("iowa")
    summary = federate(sites.grid(), sites.config, tmp_path / "run", events.append)
    assert summary["faults"] == [] and summary["rejections"] == {}
    assert_weights(tmp_path / "run", 3 * 0.2)  # (0.1 + 0.2 + 0.3) / 3 a round
    final = summary["final"]
    assert final["withheld"] == ["iowa"] and final["dice_image"] == pytest.approx((0.5 + 0.6 + 0.75) / 3)
    assert summary["fairness"]["worst_site"] == "ghent" and summary["best_round"] == 1
    (iowa,) = [site for site in summary["sites"] if site["name"] == "iowa"]
    assert all(iowa[name] is None for name in COUNTS)
    told = [event for event in events if event["event"] == "site_eval" and event["site"] == "iowa"]
    assert [(event["dice_image"], event["cases"], event["ci95"], event["loss"]) for event in told] == [(0.75, None, None, None)] * 3
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == summary


def test_a_figure_that_cannot_be_is_a_fault_and_one_that_is_not_declared_is_dropped(tmp_path: Path) -> None:
    sites = federation(federation__rounds=1)
    sites.keep("iowa")
    sites.figures = {"dice_image": 1.5}
    summary = federate(sites.grid(), sites.config, tmp_path / "a", None)
    assert {fault["reason"] for fault in summary["faults"]} == {"the evaluation's 'dice_image' is 1.5, above 1"}
    sites.figures = {"dice_image": 0.5, "patient_17_dice": 0.1}
    summary = federate(sites.grid(), sites.config, tmp_path / "b", None)
    assert summary["faults"] == [] and "patient_17" not in json.dumps(summary)


def test_sums_without_announced_counts_are_not_taken(tmp_path: Path) -> None:
    sites = federation(federation__rounds=1)
    sites.kept = {"iowa"}
    summary = federate(sites.grid(), sites.config, tmp_path / "run", None)
    assert {fault["reason"] for fault in summary["faults"]} == {"the evaluation holds sums, but the site announced no number of cases"}


def test_metrics_are_missing_only_where_the_site_says_that_it_keeps_them(tmp_path: Path) -> None:
    def without(content: RecordDict) -> RecordDict:
        for name in ("loss", "cases", "seconds"):
            del content.metric_records[METRICS][name]
        return weigh_alike(content)

    def kept(content: RecordDict) -> RecordDict:
        without(content).config_records[SETTINGS][WITHHELD] = True
        return content

    def kept_too_much(content: RecordDict) -> RecordDict:
        del kept(content).metric_records[METRICS]["steps"]
        return content

    sites, events = federation(federation__rounds=1), list[Mapping[str, Any]]()
    sites.twists |= {("ghent", 1): without, ("hannover", 1): kept_too_much, ("iowa", 1): kept}
    summary = federate(sites.grid(), sites.config, tmp_path / "run", events.append)
    assert summary["rejections"] == {"ghent": {"metrics": 1}, "hannover": {"metrics": 1}}
    (turn,) = [event for event in events if event["event"] == "site_train"]
    assert turn["site"] == "iowa" and turn["loss"] is turn["seconds"] is None


def refuse(sites: Sites, name: str, round: int) -> None:
    """A refusal by the policy in the place of a turn."""
    train = sites._train

    def answer(message: Message, context: Any) -> Message:
        if (sites._site(context), int(message.content[SETTINGS]["round"])) == (name, round):
            return Message(Error(REFUSED, "PolicyRefusal: this hospital's policy refuses. Rule: r; bound: b."), reply_to=message)
        return train(message, context)

    sites._train = answer  # type: ignore[method-assign]


def test_a_refusal_is_named_and_only_where_it_leaves_too_few_it_ends_the_run_with_3(tmp_path: Path) -> None:
    from flwr.clientapp import ClientApp

    def grid(names: tuple[str, ...]) -> tuple[Any, Any]:
        sites = federation(federation__min_sites=2)
        for name in names:
            refuse(sites, name, 2)
        app = ClientApp()
        app.query()(sites._query)
        app.train()(sites._train)
        app.evaluate()(sites._evaluate)
        sites.app = app
        return sites.grid(), sites.config

    summary = federate(*grid(("iowa",)), tmp_path / "a", None)
    (fault,) = summary["faults"]
    assert (fault["site"], fault["round"], fault["kind"]) == ("iowa", 2, "refusal") and "Rule: r; bound: b." in fault["reason"]
    assert summary["rejections"] == {}
    with pytest.raises(PolicyRefusal, match=r"1 usable updates, 2 are needed .*hannover: the site refuses: .*Rule: r") as refused:
        federate(*grid(("iowa", "hannover")), tmp_path / "b", None)
    assert refused.value.exit_code == 3
    left = json.loads((tmp_path / "b" / "run.json").read_text())
    assert {fault["site"] for fault in left["faults"]} == {"iowa", "hannover"} and left["final"]["dice_image"] is None


def test_a_hello_that_refuses_counts_as_a_refusal_and_not_as_a_site(tmp_path: Path) -> None:
    sites = federation(federation__rounds=1)
    nothing = {"network": "", "frozen": "", "refusal": "PolicyRefusal: Rule: r; bound: b."}
    sites.hello["iowa"] = nothing
    summary = federate(sites.grid(), sites.config, tmp_path / "a", None)
    (fault,) = summary["faults"]
    assert (fault["site"], fault["phase"], fault["kind"]) == ("iowa", "hello", "refusal")
    assert [site["name"] for site in summary["sites"]] == ["ghent", "hannover"]
    sites.hello |= dict.fromkeys(NAMES, nothing)
    with pytest.raises(PolicyRefusal, match="Rule: r; bound: b"):
        federate(sites.grid(), sites.config, tmp_path / "b", None)
    sites.hello |= {name: {"code": "other"} for name in NAMES}
    with pytest.raises(FederationError):
        federate(sites.grid(), sites.config, tmp_path / "c", None)
