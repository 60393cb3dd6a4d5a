"""The data check at the server: what it takes of an answer, what it warns of, where it is written, and that a run without it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from made_up_sites import A_ROUND, NAMES, Sites, Tiny, assert_weights, settings

from server import rounds
from server.app import federate
from server.checking import read_check, table_of, warnings_of
from tmca_core.cases.figures import COUNTS, figures_of
from tmca_core.messages import KEPT, METRICS, REFUSED, SETTINGS, WITHHELD
from tmca_core.run import Run

FIGURES = figures_of(("lesion",))
GOOD = {
    **dict(zip(COUNTS, (30.0, 40.0, 1.0), strict=True)),
    "data.image_width": 11 / 13,
    "data.image_height": 11 / 13,
    "data.intensity_mean": 0.4,
    "data.intensity_deviation": 0.5,
    "data.missing_reports": 0.0,
    "data.report_words": 0.1,
    "data.language_de": 0.0,
    "data.language_en": 0.9,
    "data.one_sided": 0.8,
    "data.sides_patient": 0.95,
    "data.sides_image": 0.05,
    "data.prevalence": 0.9,
    "data.mask_area": 0.1,
}


def answer(figures: Mapping[str, Any], kept: list[str] | None = None) -> RecordDict:
    return RecordDict({METRICS: MetricRecord({**figures}), SETTINGS: ConfigRecord({KEPT: kept, WITHHELD: True} if kept else {})})


class Checked(Sites):
    """Made-up sites that answer the data check too; `answers` changes single ones."""

    def __init__(self, **values: Any) -> None:
        super().__init__(settings(**{"federation__check": "true", **values}))
        self.answers: dict[str, Any] = {}
        self.checks: list[str] = []
        self.app.query("check")(self._check)

    def _check(self, message: Message, context: Context) -> Message:
        site = self._site(context)
        self.checks.append(site)
        found = self.answers.get(site, answer(GOOD))
        return Message(found, reply_to=message)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def test_the_fixture_has_every_figure() -> None:
    assert GOOD.keys() == {*COUNTS, *FIGURES}


def test_a_run_is_checked_once_and_trains_as_ever(tmp_path: Path) -> None:
    sites, events = Checked(), list[Mapping[str, Any]]()
    summary = federate(sites.grid(), sites.config, tmp_path / "run", events.append)
    assert sorted(sites.checks) == list(NAMES)
    assert_weights(tmp_path / "run", 3 * A_ROUND)
    found = summary["data_check"]
    assert list(found["sites"]) == list(NAMES) and found["failed"] == {} and found["warnings"] == []
    assert [row[0] for row in found["table"]] == ["site", *NAMES] and found["table"][0][1] == "patients"
    ghent = found["sites"]["ghent"]
    assert (ghent["patients"], ghent["image_width"], ghent["intensity_mean"], ghent["report_words"]) == (30, 2048, 0.4, 25)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data_check"] == found
    logged = {event["site"]: event for event in Run(tmp_path / "run").events("data_check")}
    assert logged.keys() == {*NAMES} and logged["ghent"]["figures"] == ghent and logged["ghent"]["withheld"] == []
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert len(notes) == 1 and notes[0].startswith("data check, before any training") and "ghent" in notes[0]
    federate(sites.grid(), sites.config, tmp_path / "run", None)
    assert len(sites.checks) == 3  # what is known is not asked for, and not paid for, again


def test_only_stops_before_the_first_round_and_the_run_may_go_on(tmp_path: Path) -> None:
    sites = Checked(federation__check="only")
    summary = federate(sites.grid(), sites.config, tmp_path / "run", None)
    assert sites.turns == [] and summary["data_check"]["sites"] and summary["final"]["dice_image"] is None
    sites.answers["iowa"] = answer({**GOOD, "data.prevalence": 0.1})  # its data were changed
    again = federate(sites.grid(), sites.config, tmp_path / "run", None)
    assert len(sites.checks) == 6 and "90% of its masks are empty" in again["data_check"]["warnings"][0]
    for check in ("true", "false"):
        going = Checked(federation__check=check)
        summary = federate(going.grid(), going.config, tmp_path / "run", None)
        assert going.checks == [] and ("data_check" in summary) == (check == "true")
    assert_weights(tmp_path / "run", 3 * A_ROUND)
    trained = json.loads((tmp_path / "run" / "run.json").read_text())
    later = federate(sites.grid(), sites.config, tmp_path / "run", None)
    assert later["final"] == trained["final"] and "data_check" in later  # a check does not undo what was trained


def test_without_it_nothing_is_asked_and_nothing_is_said(tmp_path: Path) -> None:
    sites = Checked(federation__check="false")
    summary = federate(sites.grid(), sites.config, tmp_path / "run", None)
    assert sites.checks == [] and "data_check" not in summary and not (tmp_path / "run" / "data_check.json").exists()
    assert sites.config.digest() == Checked().config.digest()


def test_who_refuses_or_answers_nonsense_is_named_and_the_others_count(tmp_path: Path) -> None:
    sites = Checked()
    sites.answers["iowa"] = answer({**GOOD, "data.intensity_mean": 7.0})
    sites.answers["hannover"] = Error(REFUSED, "PolicyRefusal: this hospital's policy refuses. Rule: r; bound: b.")
    summary = federate(sites.grid(), sites.config, tmp_path / "run", None)
    found = summary["data_check"]
    assert list(found["sites"]) == ["ghent"] and found["failed"].keys() == {"hannover", "iowa"}
    assert "'data.intensity_mean' is 7.0, which no such figure is" in found["failed"]["iowa"]
    kinds = {fault["site"]: (fault["phase"], fault["kind"]) for fault in summary["faults"]}
    assert kinds == {"iowa": ("check", "figures"), "hannover": ("check", "refusal")}
    assert any("'hannover' did not answer: the site refuses: PolicyRefusal" in line for line in found["warnings"])


def test_what_a_policy_withholds_is_named(tmp_path: Path) -> None:
    sites = Checked()
    sites.answers["ghent"] = answer({"data.prevalence": 0.4}, [name for name in GOOD if name != "data.prevalence"])
    found = federate(sites.grid(), sites.config, tmp_path / "run", None)["data_check"]
    assert found["sites"]["ghent"]["prevalence"] == 0.4 and found["sites"]["ghent"]["patients"] is None
    assert "intensity_mean" in found["withheld"]["ghent"] and "prevalence" not in found["withheld"]["ghent"]
    assert [line for line in found["warnings"] if "'ghent'" in line] == ["data check: site 'ghent': 60% of its masks are empty."]
    assert "withheld by ghent's policy: patients, cases" in table_of(found)


BAD = [
    ({"data.intensity_mean": float("nan")}, "'data.intensity_mean' is nan"),
    ({"data.patients": -1.0}, "'data.patients' is -1.0"),
    ({"data.cases": float("inf")}, "'data.cases' is inf"),
    ({"data.language_en": 1.5}, "'data.language_en' is 1.5"),
]


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_figure_that_cannot_be_spoils_the_answer(change: dict[str, float], reason: str) -> None:
    told, _, said = read_check(answer({**GOOD, **change}), FIGURES)
    assert told == {} and reason in said


def test_figures_that_nobody_declared_are_dropped_and_missing_ones_named() -> None:
    told, kept, reason = read_check(answer({**GOOD, "patient_17_age": 93.0}, ["a secret", "data.mask_area"]), FIGURES)
    assert told.keys() == GOOD.keys() and kept == ["mask_area"] and reason == ""
    assert read_check(answer({name: value for name, value in GOOD.items() if name != "data.mask_area"}), FIGURES)[2].endswith(
        "lacks 'data.mask_area'"
    )
    assert read_check(RecordDict(), FIGURES)[2].endswith("lacks 'data.patients'")


# --- warnings -----------------------------------------------------------------------------------------
USUAL = {name.removeprefix("data."): FIGURES[name].shown(value) if name in FIGURES else value for name, value in GOOD.items()}


def said_of(odd: Mapping[str, Any], others: Mapping[str, Any] = USUAL, targets: tuple[str, ...] = ("lesion",)) -> list[str]:
    sites = {"odd": {**USUAL, **odd}, "b": dict(others), "c": dict(others)}
    lines = warnings_of({"sites": sites, "failed": {}, "withheld": {name: [] for name in sites}}, targets)
    assert all(line.startswith("data check: site 'odd': ") for line in lines), lines
    return [line.removeprefix("data check: site 'odd': ") for line in lines]


ODD = [
    ({"sides_patient": 0.7, "sides_image": 0.3}, "agree on the side in 70% only"),
    ({"sides_patient": 0.1, "sides_image": 0.9}, "its reports mean the image's left, those of most others not"),
    ({"prevalence": 0.45}, "55% of its masks are empty"),
    ({"language_en": 0.1, "language_de": 0.8}, "another language ('de') than those of the others ('en')"),
    ({"intensity_mean": 0.6}, "a mean grey of 0.60, the others of 0.40"),
    ({"intensity_deviation": 0.1}, "the contrast of its images is 0.1, that of the others 0.25"),
    ({"image_width": 512.0}, "the width in pixels of its images is 512, that of the others 2048"),
    ({"patients": 12.0}, "12 patients are too few for privacy: policies ask for 20"),
    ({"missing_reports": 0.3}, "30% of its cases have no report"),
    ({"skipped": 20.0}, "20 rows of its manifest cannot be used, beside 40 cases"),
]


@pytest.mark.parametrize(("odd", "sentence"), ODD, ids=[sentence for _, sentence in ODD])
def test_each_trouble_has_one_sentence(odd: dict[str, float], sentence: str) -> None:
    (line,) = said_of(odd)
    assert sentence in line


def test_what_is_usual_or_kept_is_not_warned_of() -> None:
    assert said_of({}) == [] and said_of(dict.fromkeys(USUAL)) == []
    assert said_of({"intensity_mean": 0.5, "image_width": 1100.0, "prevalence": 0.5, "sides_patient": 0.8}) == []
    targets = {"prevalence:a": 0.9, "prevalence:b": 0.2, "prevalence": None}
    assert said_of(targets, {**USUAL, **targets, "prevalence:b": 0.9}, ("a", "b")) == ["80% of its masks of b are empty."]
