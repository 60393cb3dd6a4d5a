"""Hostile and broken sites in the round loop: what they send is refused or bounded, counted and named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict
from made_up_sites import A_ROUND, CASES, NAMES, Sites, Tiny, Twist, assert_weights, settings

from server import rounds
from server.app import federate
from server.exchange import TensorArray
from simulations.inprocess import InProcessGrid
from tmca_core.errors import FederationError
from tmca_core.messages import ARRAYS, METRICS, SETTINGS
from tmca_core.wire import RAW


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def times(factor: float) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        for name in list(content[ARRAYS]):
            content[ARRAYS][name] = TensorArray(content[ARRAYS][name].tensor * factor)
        return content

    return twist


def all_of(value: float) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        for name in list(content[ARRAYS]):
            content[ARRAYS][name] = TensorArray(torch.full_like(content[ARRAYS][name].tensor, value))
        return content

    return twist


def setting(**values: int) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        content[SETTINGS] = ConfigRecord({**content[SETTINGS], **values})
        return content

    return twist


def test_refusals_are_counted_by_site_and_kind(tmp_path: Path) -> None:
    config = settings(federation__rounds=6)
    sites = Sites(config)
    sites.twists = {
        ("iowa", 2): times(float("nan")),
        ("iowa", 3): setting(round=2),
        ("iowa", 4): setting(weight=10**6),
        ("iowa", 5): times(1e4),
        ("ghent", 5): times(float("inf")),
        ("ghent", 6): times(float("inf")),
    }
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert summary["rejections"] == {"ghent": {"not-finite": 2}, "iowa": {"not-finite": 1, "replay": 1, "weight": 1, "norm": 1}}
    (blown_up,) = [fault for fault in summary["faults"] if fault["kind"] == "norm"]
    assert (blown_up["site"], blown_up["round"]) == ("iowa", 5)
    assert "federation.max_norm_ratio" in blown_up["reason"]
    # Rounds 2 to 4 without iowa, 5 hannover alone, 6 without ghent.
    assert_weights(tmp_path / "run", A_ROUND + 3 * (10 * 0.1 + 30 * 0.2) / 40 + 0.2 + (30 * 0.2 + 60 * 0.3) / 90)


def test_without_a_bound_the_model_is_replaced(tmp_path: Path) -> None:
    config = settings(federation__rounds=2, federation__max_norm_ratio=0)
    sites = Sites(config)
    sites.twists["iowa", 2] = times(1e4)
    assert federate(sites.grid(), config, tmp_path / "run", None)["rejections"] == {}
    assert_weights(tmp_path / "run", A_ROUND + (10 * 0.1 + 30 * 0.2 + 60 * 0.3e4) / 100)


class Doubling(InProcessGrid):
    """Every answer arrives twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]


def test_a_second_reply_changes_nothing_and_is_named(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    summary = federate(Doubling(Sites(config).app, 3), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", A_ROUND)
    assert {site: kinds["duplicate"] for site, kinds in summary["rejections"].items() if site in NAMES} == dict.fromkeys(NAMES, 3)
    assert summary["stragglers"]["ghent"]["turns"].__len__() == 1


def test_failures_and_late_answers_are_no_refusals(tmp_path: Path) -> None:
    config = settings(federation__rounds=2)
    sites = Sites(config)

    def burn(content: RecordDict) -> RecordDict:
        raise RuntimeError("on fire")

    sites.twists["iowa", 2] = burn
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert [fault["kind"] for fault in summary["faults"]] == ["failed"]
    assert summary["rejections"] == {}
    assert len(summary["stragglers"]["iowa"]["turns"]) == 1
    assert summary["stragglers"]["ghent"]["median_seconds"] >= 0


@pytest.mark.parametrize("spoil", [times(float("nan")), setting(weight=0), setting(round=99)])
def test_when_every_reply_is_refused_the_round_before_is_kept(tmp_path: Path, spoil: Twist) -> None:
    config = settings()
    sites = Sites(config)
    sites.twists = {(name, 2): spoil for name in NAMES}
    with pytest.raises(FederationError, match=r"round 2: 0 usable updates, 1 are needed.*ghent: .*iowa: .*Round 1 is kept"):
        federate(sites.grid(), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", A_ROUND)
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", 3 * A_ROUND)


def test_a_site_that_claims_nothing_to_train_on_leaves_an_empty_cohort(tmp_path: Path) -> None:
    config = settings()
    sites = Sites(config)
    sites.hello = {name: {"train_cases": 0, "train_patients": 0} for name in NAMES}
    with pytest.raises(FederationError, match=r"0 sites can train, 1 are needed.*without training cases: ghent, hannover, iowa"):
        federate(sites.grid(), config, tmp_path / "run", None)


# --- small replies that mean harm ---------------------------------------------------------------------
def metrics(**values: float) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        content[METRICS] = MetricRecord({**content[METRICS], **values})
        return content

    return twist


def test_an_empty_tensor_of_an_impossible_shape_is_refused(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    sites = Sites(config)

    def twist(content: RecordDict) -> RecordDict:
        content[ARRAYS]["a"] = Array(dtype="float32", shape=(0, 2**31 - 1, 2**31 - 1, 2**31 - 1), stype=RAW, data=b"")
        return content

    sites.twists["iowa", 1] = twist
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert summary["rejections"] == {"iowa": {"shape": 1}}
    assert_weights(tmp_path / "run", (10 * 0.1 + 30 * 0.2) / 40)


def test_patients_without_cases_weigh_nothing(tmp_path: Path) -> None:
    config = settings(federation__rounds=1, federation__weighting="patients")
    sites = Sites(config)
    sites.hello["iowa"] = {"train_cases": 0, "train_patients": 7}
    sites.twists = {("ghent", 1): setting(weight=5), ("hannover", 1): setting(weight=15), ("iowa", 1): setting(weight=7)}
    federate(sites.grid(), config, tmp_path / "run", None)
    assert ("iowa", 1) not in sites.turns
    assert_weights(tmp_path / "run", (5 * 0.1 + 15 * 0.2) / 20)


def test_a_site_cannot_have_worked_longer_than_was_waited(tmp_path: Path) -> None:
    config, events = settings(federation__rounds=2), []
    sites = Sites(config)
    sites.twists = {("iowa", round): metrics(seconds=1.7e308) for round in (1, 2)}
    summary = federate(sites.grid(), config, tmp_path / "run", events.append)
    assert summary["seconds"]["training"] < 60
    assert all(event["seconds"] < 60 for event in events if event["event"] == "site_train")
    assert_weights(tmp_path / "run", 2 * A_ROUND)


@pytest.mark.parametrize("steps", [1e12, 3.0, 1.0, 2.5])
def test_the_steps_are_those_of_the_announced_cases(tmp_path: Path, steps: float) -> None:
    config = settings(federation__rounds=1, training__ema=0.5)
    sites = Sites(config)
    sites.twists["iowa", 1] = metrics(steps=steps)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert summary["rejections"] == {"iowa": {"metrics": 1}}
    assert "2 steps" in summary["faults"][0]["reason"]


# --- the first round ----------------------------------------------------------------------------------
@pytest.mark.parametrize("hostile", NAMES)
@pytest.mark.parametrize("keep", ["on", "off"])
def test_the_first_updates_are_compared_with_each_other(tmp_path: Path, hostile: str, keep: str) -> None:
    config = settings(federation__rounds=1, federation__keep_replies=keep)
    sites = Sites(config)
    sites.twists[hostile, 1] = times(1e4)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert summary["rejections"] == {hostile: {"norm": 1}}
    moves = {name: (CASES[name], (i + 1) / 10) for i, name in enumerate(NAMES) if name != hostile}
    assert_weights(tmp_path / "run", sum(n * by for n, by in moves.values()) / sum(n for n, _ in moves.values()))


def test_updates_of_small_cohorts_are_compared_with_three_before(tmp_path: Path) -> None:
    config = settings(federation__rounds=4, federation__cohort=1)
    sites = Sites(config)
    sites.twists = {(name, 4): times(1e4) for name in NAMES}
    with pytest.raises(FederationError, match=r"round 4: 0 usable updates.*federation\.max_norm_ratio"):
        federate(sites.grid(), config, tmp_path / "run", None)


def test_two_sites_whose_updates_grow_from_a_small_first_one_are_taken(tmp_path: Path) -> None:
    """As they do in a warm-up: the third update of the run is 40 times the first two, and all there was to compare it with are those."""
    config = settings(federation__rounds=2, federation__cohort=2)
    sites = Sites(config, ("ghent", "hannover"))
    sites.twists = {("ghent", 2): times(40), ("hannover", 2): times(20)}
    assert federate(sites.grid(), config, tmp_path / "run", None)["rejections"] == {}


def test_two_updates_cannot_be_compared_and_are_taken(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    sites = Sites(config, ("ghent", "hannover"))
    federate(sites.grid(), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", (10 * 0.1 + 30 * 0.2) / 40)


@pytest.mark.parametrize("keep", ["on", "off"])
def test_weights_that_overflow_are_never_kept(tmp_path: Path, keep: str) -> None:
    config = settings(federation__max_norm_ratio=0, federation__keep_replies=keep)
    sites = Sites(config)
    sites.twists = {(name, round): all_of(3e38) for name in NAMES for round in (1, 2)}  # float32 ends at 3.4e38
    with pytest.raises(FederationError, match=r"round 2: .*'[ab]' is not finite.*Round 1 is kept.*federation\.max_norm_ratio"):
        federate(sites.grid(), config, tmp_path / "run", None)
    last = rounds.Run(tmp_path / "run").last_checkpoint()
    assert last is not None
    assert last.round == 1
    assert all(torch.isfinite(tensor).all() for tensor in last.weights.values())
    # With sites that behave it goes on: nothing of the overflow has stayed.
    federate(Sites(config).grid(), config, tmp_path / "run", None)


# --- compressed replies ------------------------------------------------------------------------------
def compressing(name: str, spoil: str = "") -> Twist:
    from tmca_core.compression import COMPRESSIONS
    from tmca_core.config import Config

    def twist(content: RecordDict) -> RecordDict:
        compression = COMPRESSIONS[name](Config().with_values({"federation.compression_share": 1.0}))
        payload, _ = compression.encode({n: a.tensor for n, a in content[ARRAYS].items()}, {}, torch.Generator().manual_seed(0))
        for old in list(content[ARRAYS]):
            del content[ARRAYS][old]
        for part, tensor in payload.items():
            if part == spoil:
                tensor = tensor[:-1]
            content[ARRAYS][part] = TensorArray(tensor)
        return content

    return twist


@pytest.mark.parametrize(("name", "parts"), [("int8", 4 + 8), ("int4", 2 + 8), ("topk", 32), ("bf16", 8)])
def test_compressed_updates_are_folded_and_their_bytes_counted(tmp_path: Path, name: str, parts: int) -> None:
    config = settings(federation__compression=name, federation__compression_share=1.0, federation__rounds=1)
    sites = Sites(config)
    sites.twists = {(site, 1): compressing(name) for site in NAMES}
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    # All values of a tensor are equal, which every step keeps; bf16 has 8 bits of them.
    last = rounds.Run(tmp_path / "run").last_checkpoint()
    assert last is not None
    assert last.weights["b"].item() == pytest.approx(4 + A_ROUND, rel=1e-6 if name != "bf16" else 1e-3)
    names = {"int8": "int8/codesint8/scales", "int4": "int4/codesint4/scales", "topk": "topk/placestopk/values", "bf16": "bf16/values"}
    assert summary["bytes"]["up_per_site_round"] == parts + len(names[name]) + 13 + 14 + 53


def test_a_payload_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    config = settings(federation__compression="int8", federation__rounds=1)
    sites = Sites(config)
    sites.twists = {(site, 1): compressing("int8", "int8/codes" if site == "iowa" else "") for site in NAMES}
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    (fault,) = summary["faults"]
    assert (fault["site"], fault["kind"]) == ("iowa", "payload")
    assert "tensor 'int8/codes' has shape (3,), expected (4,)" in fault["reason"]
    assert_weights(tmp_path / "run", (10 * 0.1 + 30 * 0.2) / 40)
