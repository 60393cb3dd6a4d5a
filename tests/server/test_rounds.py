"""The round loop over a grid of made-up sites: what is folded, what is refused, what is written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from flwr.app import Array, RecordDict
from made_up_sites import A_ROUND, Sites, Tiny, Twist, assert_weights, settings
from torch import Tensor

from server import rounds
from server.app import federate
from server.exchange import TensorArray
from tmca_core.errors import FederationError
from tmca_core.messages import ARRAYS, METRICS, SETTINGS
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def test_three_rounds_by_hand(tmp_path: Path) -> None:
    config, events = settings(), []
    summary = federate(Sites(config).grid(), config, tmp_path / "run", events.append)
    assert_weights(tmp_path / "run", 3 * A_ROUND)
    assert summary == json.loads((tmp_path / "run" / "run.json").read_text())
    assert list(summary)[:6] == ["schema", "network", "engine", "algorithm", "seed", "rounds"]
    assert summary["engine"] == "inprocess"
    first = {"name": "ghent", "patients": 9, "train_patients": 5, "train_cases": 10, "val_cases": 4, "test_cases": 5, "skipped": 1}
    assert summary["sites"][0] == first
    assert summary["skipped"] == 3
    assert summary["final"]["dice_image"] == pytest.approx(0.6)
    assert summary["final"]["worst_site"] == "ghent"
    assert summary["faults"] == []
    assert summary["resumed_from"] is None
    # 4 floats, the names "a" and "b"; round 5 + 8, run 3 + 12, place 5 + 8, counted 7 + 8; weight 6 + 8;
    # loss, steps, cases, seconds 4 + 5 + 5 + 7 + 4·8
    assert summary["bytes"] == {"up_per_site_round": 18 + 13 + 14 + 53, "down_per_site_round": 18 + 13 + 15 + 13 + 15, "full_state": 28}
    assert set(summary["seconds"]) == {"total", "training", "communication", "aggregation", "evaluation"}
    assert summary["seconds"]["training"] == pytest.approx(9e-6)
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == events
    assert [path.name for path in Run(tmp_path / "run").checkpoints()] == [f"round-{i:03d}" for i in range(4)]


def test_events_have_exactly_these_keys(tmp_path: Path) -> None:
    config, events = settings(federation__rounds=1), []
    federate(Sites(config).grid(), config, tmp_path / "run", events.append)
    keys = {event["event"]: set(event) - {"event"} for event in events}
    always = {"arm", "time", "round"}
    assert keys["sites"] == always | {"present", "missing", "refusing"}
    assert keys["asked"] == always | {"phase", "sites"}
    assert keys["site_train"] == always | {"site", "loss", "seconds", "bytes_up", "bytes_down"}
    assert keys["site_eval"] == keys["site_test"] == always | {"site", "dice_image", "ci95", "loss", "cases"}
    fairness = {"worst_site", "worst_dice", "spread", "worst_decile"}
    assert keys["round"] == always | {"dice_image", "seconds", "completed", "failed", "surplus", "refused"} | fairness
    assert [e["event"] for e in events] == [
        *("sites", "asked", *["site_train"] * 3, "asked", *["site_eval"] * 3, "round"),
        *("asked", *["site_test"] * 3, "ended"),
    ]
    assert [e["phase"] for e in events if e["event"] == "asked"] == ["train", "val", "test"]
    assert {e["arm"] for e in events} == {"federated"}


def _arrays(change: dict[str, Tensor | None]) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        for name, tensor in change.items():
            if tensor is None:
                del content[ARRAYS][name]
            else:
                content[ARRAYS][name] = TensorArray(tensor)
        return content

    return twist


def _raise(content: RecordDict) -> RecordDict:
    raise ValueError("the scanner is on fire")


def _nothing(content: RecordDict) -> RecordDict:
    return RecordDict()


def _none(content: RecordDict) -> None:
    return None


def _foreign(content: RecordDict) -> RecordDict:
    content[ARRAYS]["b"] = Array(torch.tensor(1.0).numpy())
    return content


def _heavier(content: RecordDict) -> RecordDict:
    content[SETTINGS]["weight"] = 10**9
    return content


def _older(content: RecordDict) -> RecordDict:
    content[SETTINGS]["round"] = 1
    return content


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (_raise, "ValueError: the scanner is on fire"),
        (_arrays({"b": torch.tensor(float("nan"))}), "tensor 'b' holds NaN"),
        (_arrays({"a": torch.tensor([0.0, float("inf"), 0.0])}), "tensor 'a' holds NaN or infinite"),
        (_arrays({"a": torch.zeros(4)}), "tensor 'a' has shape (4,), expected (3,)"),
        (_arrays({"a": torch.zeros(3, dtype=torch.float64)}), "tensor 'a' is float64, expected float32"),
        (_arrays({"a": None}), "tensor 'a' is missing"),
        (_arrays({"norm.weight": torch.zeros(1, 1)}), "tensor 'norm.weight' is not one of the shared tensors"),
        (_nothing, "the reply holds no 'arrays'"),
        (_none, "returned NoneType, expected a Message"),
        (_foreign, "serialised as 'numpy.ndarray'"),
        (_heavier, "its weight is 1000000000, but it announced 30"),
        (_older, "it is of round 1, expected round 2"),
        (lambda content: _metrics(steps=-1)(content), "metric 'steps' is -1"),
    ],
)
def test_a_site_that_fails_loses_its_turn_and_the_round_goes_on(tmp_path: Path, twist: Twist, reason: str) -> None:
    config, events = settings(), []
    sites = Sites(config)
    sites.twists["hannover", 2] = twist
    summary = federate(sites.grid(), config, tmp_path / "run", events.append)
    assert_weights(tmp_path / "run", 2 * A_ROUND + (10 * 0.1 + 60 * 0.3) / 70)
    (fault,) = summary["faults"]
    assert (fault["round"], fault["site"], fault["phase"]) == (2, "hannover", "train")
    assert reason in fault["reason"]
    (event,) = [event for event in events if event["event"] == "fault"]
    assert event == {"event": "fault", "arm": "federated", "time": event["time"], **fault}
    second = [event for event in events if event["event"] == "round"][1]
    assert second["completed"] == ["ghent", "iowa"]
    assert list(second["failed"]) == ["hannover"]


def test_a_slow_site_misses_the_deadline(tmp_path: Path) -> None:
    config = settings(federation__deadline=0.5, federation__rounds=2)
    sites = Sites(config)

    def slow(content: RecordDict) -> RecordDict:
        time.sleep(0.7)
        return content

    sites.twists["iowa", 1] = slow
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert [(f["site"], f["reason"]) for f in summary["faults"]] == [("iowa", "no reply within 0.5 s")]
    assert_weights(tmp_path / "run", (10 * 0.1 + 30 * 0.2) / 40 + A_ROUND)


def _metrics(**change: float | str | None) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        for name, value in change.items():
            if value is None:
                del content[METRICS][name]
            else:
                content[METRICS][name] = value
        return content

    return twist


def _no_metrics(content: RecordDict) -> RecordDict:
    del content[METRICS]
    return content


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (_metrics(dice_sum=float("nan")), "the evaluation's 'dice_sum' is not finite"),
        (_metrics(hd95_sum=None), "the evaluation lacks 'hd95_sum'"),
        (_metrics(dice_image=None), "the evaluation lacks 'dice_image'"),
        (_no_metrics, "the evaluation lacks 'cases'"),
        (_metrics(truth=-1.0), "the evaluation's 'truth' is -1, below 0"),
        (_metrics(cases=60.0), "the evaluation is of 60 cases, but the site announced"),
        (_metrics(hd95_cases=6.0), "the evaluation's 'hd95_cases' is 6, above the number of cases"),
        (_metrics(ci95_low=0.1), "the evaluation lacks 'ci95_high'"),
    ],
)
def test_a_site_that_fails_to_evaluate_is_left_out(tmp_path: Path, twist: Twist, reason: str) -> None:
    config = settings(federation__rounds=1)
    sites = Sites(config)
    sites.twists["iowa", -1] = twist
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert [(fault["phase"], fault["site"]) for fault in summary["faults"]] == [("val", "iowa"), ("test", "iowa")]
    assert all(reason in fault["reason"] for fault in summary["faults"])
    assert list(summary["final"]["per_site"]) == ["ghent", "hannover"]


def test_what_a_site_says_beyond_the_declared_figures_is_dropped(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    sites, plain = Sites(config), Sites(config)
    sites.twists["iowa", -1] = _metrics(patient_17_dice=0.1)
    sites.twists["iowa", 1] = _metrics(patient_17_loss=0.1)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert summary["faults"] == []
    assert summary["final"] == federate(plain.grid(), config, tmp_path / "plain", None)["final"]
    written = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.json*"))
    assert "patient_17" not in written


def test_too_few_sites_stop_the_run_and_it_can_go_on(tmp_path: Path) -> None:
    config = settings(federation__min_sites=3)
    sites = Sites(config)
    sites.twists["iowa", 2] = _raise
    with pytest.raises(FederationError, match=r"round 2: 2 usable updates, 3 are needed .*iowa: .*on fire.*Round 1 is kept"):
        federate(sites.grid(), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", A_ROUND)
    again = Sites(config)
    summary = federate(again.grid(), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", 3 * A_ROUND)
    assert summary["resumed_from"] == 1
    assert {round for _, round in again.turns} == {2, 3}
