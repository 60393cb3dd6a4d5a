"""What settings of the round loop do: over-sampling, stopping early, the tested round, waiting, contributions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from made_up_sites import A_ROUND, CASES, NAMES, Sites, Tiny, assert_weights, final_weights, settings

from server import rounds
from server.app import federate, federate_aloud
from simulations.inprocess import InProcessGrid
from tmca_core.errors import ConfigError, FederationError, WeightsError
from tmca_core.messages import METRICS
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


class Judged(Sites):
    """Sites whose Dice is `judge(name, weight b)`."""

    judge: Any

    def _evaluate(self, message: Any, context: Any) -> Any:
        reply = super()._evaluate(message, context)
        site, weights = self.seen[-1]
        dice = self.judge(site, float(weights["b"]))
        metrics = reply.content[METRICS]
        metrics["dice_sum"], metrics["dice_image"] = dice * metrics["cases"], dice
        return reply


# --- over-sampling ------------------------------------------------------------------------------------
def test_more_sites_are_asked_and_the_first_replies_count(tmp_path: Path) -> None:
    config, events = settings(federation__cohort=2, federation__oversample=0.5, federation__rounds=60), []
    sites = Sites(config)
    summary = federate(sites.grid(), config, tmp_path / "run", events.append)
    records = [event for event in events if event["event"] == "round"]
    assert all(sorted([*record["completed"], *record["surplus"]]) == [*NAMES] and len(record["surplus"]) == 1 for record in records)
    assert sorted(sites.turns) == sorted((site, record["round"]) for record in records for site in record["completed"])
    assert summary["faults"] == []
    # In one process the first asked answers first: who is asked first is drawn, so that everybody takes part as often. Binomial:
    # 40 of 60 with a deviation of 3.7.
    for name in NAMES:
        assert 40 - 4 * 3.7 < sum(name in record["completed"] for record in records) < 40 + 4 * 3.7
    federate(Sites(config).grid(), config, tmp_path / "again", events.append)
    again = [event for event in events if event["event"] == "round"][60:]
    assert [record["completed"] for record in again] == [record["completed"] for record in records]


def test_a_failure_is_made_up_for_by_the_surplus(tmp_path: Path) -> None:
    config, events = settings(federation__cohort=2, federation__oversample=0.5, federation__min_sites=2, federation__rounds=1), []
    sites = Sites(config)

    def burn_first(content: RecordDict) -> RecordDict:
        if len(sites.turns) == 1:
            raise RuntimeError("on fire")
        return content

    sites.twists = {(name, 1): burn_first for name in NAMES}
    federate(sites.grid(), config, tmp_path / "run", events.append)
    (record,) = [event for event in events if event["event"] == "round"]
    first = sites.turns[0][0]
    assert (record["completed"], list(record["failed"]), record["surplus"]) == ([name for name in NAMES if name != first], [first], [])


@pytest.mark.parametrize(("cohort", "share", "asked"), [(10, 0.1, 11), (10, 0.0, 10), (3, 0.5, 5), (50, 0.2, 60)])
def test_how_many_are_asked(cohort: int, share: float, asked: int) -> None:
    from dataclasses import replace

    from server.roster import Identity, Roster
    from tmca_core.messages import Hello

    config = settings(federation__cohort=cohort, federation__oversample=share)
    roster = Roster(Identity("", "", "", ""), config, lambda *values: None)
    hello = Hello("", 1, 1, 1, 0, 0, 0, "", "", "", "")
    roster.hellos = {f"s{i:03d}": replace(hello, site=f"s{i:03d}") for i in range(100)}
    assert len(set(roster.cohort(1))) == asked


# --- the best round -----------------------------------------------------------------------------------
@pytest.fixture
def all_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "personal", ())


@pytest.mark.usefixtures("all_shared")
def test_training_stops_early_and_the_best_round_is_tested(tmp_path: Path) -> None:
    config = settings(federation__rounds=20, federation__patience=2, federation__select="best")
    sites = Judged(config)
    # Best after two rounds, b = 4.5.
    sites.judge = lambda site, b: 1 - abs(b - 4.5)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert (summary["best_round"], summary["stopped_early"], summary["tested_round"]) == (2, 4, 2)
    assert summary["final"]["dice_image"] == pytest.approx(1.0)
    assert summary["rounds"] == 20
    assert final_weights(tmp_path / "run")["b"].item() == pytest.approx(4 + 4 * A_ROUND)
    # Repeated, nothing is trained, and the same is tested.
    again = Judged(config)
    again.judge = sites.judge
    repeated = federate(again.grid(), config, tmp_path / "run", None)
    assert again.turns == []
    for key in ("final", "best_round", "stopped_early", "tested_round", "fairness"):
        assert repeated[key] == summary[key]


def test_the_last_round_is_tested_unless_told_otherwise(tmp_path: Path) -> None:
    config = settings(federation__rounds=4)
    sites = Judged(config)
    sites.judge = lambda site, b: 1 - abs(b - 4.5)
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert (summary["best_round"], summary["stopped_early"], summary["tested_round"]) == (2, None, 4)
    assert summary["final"]["dice_image"] == pytest.approx(0.5)


@pytest.mark.usefixtures("all_shared")
def test_the_best_checkpoint_survives_the_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "KEEP_ALL_BYTES", 0)
    config = settings(federation__rounds=7, federation__select="best", training__ema=0.5)
    sites = Judged(config)
    sites.judge = lambda site, b: 1 - abs(b - 4.4) / 10
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    best = summary["best_round"]
    assert best < 4
    kept = [path.name for path in Run(tmp_path / "run").checkpoints()]
    assert kept == [f"round-{number:03d}" for number in (best, 5, 6, 7)]
    assert summary["final"]["dice_image"] == pytest.approx(max(record["dice_image"] for record in summary["fairness"]["rounds"]))


def test_fairness_is_told_every_round(tmp_path: Path) -> None:
    config, events = settings(federation__rounds=2), []
    summary = federate(Sites(config).grid(), config, tmp_path / "run", events.append)
    for record in [event for event in events if event["event"] == "round"]:
        assert (record["worst_site"], record["worst_dice"], record["worst_decile"]) == ("ghent", 0.5, 0.5)
        assert record["spread"] == pytest.approx((0.02 / 3) ** 0.5)
    assert summary["fairness"]["worst_site"] == "ghent"
    assert [record["round"] for record in summary["fairness"]["rounds"]] == [1, 2]


# --- contributions ------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ["fedavg", "fedavgm"])
def test_contributions_by_hand(tmp_path: Path, algorithm: str) -> None:
    config, events = settings(federation__rounds=2, federation__contribution_every=2, federation__algorithm=algorithm), []
    sites = Judged(config)
    sites.judge = lambda site, b: b / 10
    summary = federate(sites.grid(), config, tmp_path / "run", events.append)
    steps = {name: (i + 1) / 10 for i, name in enumerate(NAMES)}

    def mean(names: list[str]) -> float:
        return sum(CASES[name] * steps[name] for name in names) / sum(CASES[name] for name in names)

    # Momentum weighs what is new with 1 in both, so the difference is the same.
    expected = {name: (mean([*NAMES]) - mean([other for other in NAMES if other != name])) / 10 for name in NAMES}
    assert summary["contribution"] == pytest.approx(expected, abs=1e-6)
    (event,) = [event for event in events if event["event"] == "contribution"]
    assert event["round"] == 2
    assert event["gains"] == pytest.approx(expected, abs=1e-6)
    # It is looked at and changes nothing.
    plain = settings(federation__rounds=2, federation__algorithm=algorithm)
    federate(Sites(plain).grid(), plain, tmp_path / "plain", None)
    one, other = (Run(tmp_path / name).last_checkpoint() for name in ("run", "plain"))
    assert one is not None
    assert other is not None
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert not list((tmp_path / "run" / "received").iterdir())


# --- waiting, and what another run or version left ----------------------------------------------------
class Arrivals(InProcessGrid):
    """Nodes come and go: `present` says which are there."""

    present: Any

    def get_node_ids(self) -> Any:
        everybody = list(super().get_node_ids())
        return [everybody[i] for i in self.present()]


def test_every_round_waits_for_enough_sites_and_names_the_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, events = settings(federation__min_sites=2, federation__wait=0.4), []
    grid = Arrivals(Sites(config).app, 3)
    rounds_done = lambda: sum(event["event"] == "round" for event in events)  # noqa: E731
    grid.present = lambda: [0, 1, 2] if rounds_done() < 1 else [2]
    with (
        caplog.at_level(logging.WARNING, logger="server"),
        pytest.raises(
            FederationError, match=r"1 sites can train, 2 are needed.*ready: iowa; missing: ghent, hannover .*Waited at most 0\.4 s"
        ),
    ):
        federate(grid, config, tmp_path / "run", events.append)
    assert "waiting up to 0.4 s for ghent, hannover" in caplog.text
    assert_weights(tmp_path / "run", A_ROUND)
    # The next server knows them from the checkpoint.
    caplog.clear()
    again = Arrivals(Sites(config).app, 3)
    again.present = lambda: [1, 2]
    with caplog.at_level(logging.WARNING, logger="server"):
        federate(again, config, tmp_path / "run", None)
    assert "going on without ghent" in caplog.text


def test_sites_that_come_back_in_time_end_the_waiting(tmp_path: Path) -> None:
    config, events = settings(federation__min_sites=3, federation__wait=5.0, federation__rounds=2), []
    grid, looks = Arrivals(Sites(config).app, 3), [0]

    def present() -> list[int]:
        looks[0] += any(event["event"] == "round" for event in events)
        return [0, 1] if 1 <= looks[0] <= 5 else [0, 1, 2]

    grid.present = present
    federate(grid, config, tmp_path / "run", events.append)
    assert [event["completed"] for event in events if event["event"] == "round"] == [[*NAMES]] * 2
    assert looks[0] > 5


def test_two_servers_in_one_folder_are_refused(tmp_path: Path) -> None:
    config = settings()
    with Run(tmp_path / "run").held(), pytest.raises(ConfigError, match="another process is at work"):
        federate_aloud(Sites(config).grid(), config, tmp_path / "run")


def test_two_runs_over_the_same_sites_do_not_mix(tmp_path: Path) -> None:
    config = settings(federation__rounds=2)
    sites = Sites(config)

    def other_run(content: RecordDict) -> RecordDict:
        federate(Sites(config).grid(), config, tmp_path / "inner", None)
        return content

    sites.twists["hannover", 1] = other_run
    federate(sites.grid(), config, tmp_path / "outer", None)
    for name in ("inner", "outer"):
        assert_weights(tmp_path / name, 2 * A_ROUND)


def test_a_checkpoint_of_another_version_says_so(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    path = Run(tmp_path / "run").checkpoints()[-1] / "state.json"
    state = json.loads(path.read_text())
    del state["norms"]
    path.write_text(json.dumps(state))
    with pytest.raises(WeightsError, match=r"round 1 was written by another version of the program \(norms differ\)"):
        federate(Sites(config).grid(), config, tmp_path / "run", None)


def test_the_best_round_needs_tensors_that_all_sites_share(tmp_path: Path) -> None:
    config = settings(federation__select="best", federation__algorithm="ditto")
    with pytest.raises(ConfigError, match="select=best"):
        federate(Sites(config).grid(), config, tmp_path / "run", None)


@pytest.mark.parametrize("algorithm", ["median", "trimmed-mean", "krum", "multi-krum", "geometric-median"])
def test_algorithms_that_compare_updates_take_no_sparse_ones(tmp_path: Path, algorithm: str) -> None:
    config = settings(federation__compression="topk", federation__algorithm=algorithm)
    with pytest.raises(ConfigError, match=f"federation.algorithm={algorithm} compares the updates.*use int8"):
        federate(Sites(config).grid(), config, tmp_path / "run", None)
