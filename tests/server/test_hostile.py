"""Hostile and broken sites in the round loop: what they send is refused or bounded, counted and named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from made_up_sites import A_ROUND, NAMES, Sites, Tiny, Twist, assert_weights, settings

from server import rounds
from server.app import federate
from server.exchange import TensorArray
from simulations.inprocess import InProcessGrid
from tmca_core.errors import FederationError
from tmca_core.messages import ARRAYS, SETTINGS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def times(factor: float) -> Twist:
    def twist(content: RecordDict) -> RecordDict:
        for name in list(content[ARRAYS]):
            content[ARRAYS][name] = TensorArray(content[ARRAYS][name].tensor * factor)
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
