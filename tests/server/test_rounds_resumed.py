"""How the round loop goes on: interrupted runs, averages, sites that come late, leave or do not fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from made_up_sites import A_ROUND, NAMES, Sites, Tiny, Twist, assert_weights, final_weights, settings

from server import rounds
from server.app import federate
from simulations.inprocess import InProcessGrid
from tmca_core.errors import ConfigError, FederationError
from tmca_core.messages import SETTINGS
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("site", NAMES)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, site: str, ema: float) -> None:
    config = settings(training__ema=ema, federation__rounds=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reference = federate(Sites(config).grid(), config, whole, None)
    sites = Sites(config)

    def interrupt(content: RecordDict) -> RecordDict:
        raise KeyboardInterrupt

    sites.twists[site, 3] = interrupt
    with pytest.raises(KeyboardInterrupt):
        federate(sites.grid(), config, broken, None)
    summary = federate(Sites(config).grid(), config, broken, None)
    first, second = final_weights(whole), final_weights(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert summary["resumed_from"] == 2
    for key in ("final", "bytes", "sites", "faults"):
        assert summary[key] == reference[key]
    assert summary["seconds"]["training"] == pytest.approx(reference["seconds"]["training"])


def test_a_finished_run_is_only_tested_again(tmp_path: Path) -> None:
    config = settings()
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    sites = Sites(config)
    assert federate(sites.grid(), config, tmp_path / "run", None)["resumed_from"] == 3
    assert sites.turns == []


def test_another_configuration_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    config = settings()
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    other = settings(federation__rounds=4)
    with pytest.raises(ConfigError, match=r"federation\.rounds was 3, is 4"):
        federate(Sites(other).grid(), other, tmp_path / "run", None)


def test_averaged_weights_are_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    config = settings(training__ema=0.9, federation__rounds=2)
    sites = Sites(config)
    federate(sites.grid(), config, tmp_path / "run", None)
    # 2 local steps a round; decays min(.9, s/(s+10)): rounds' products 1/11·2/12 and 3/13·4/14
    first = A_ROUND * (1 - 1 / 11 * 2 / 12)
    d = 3 / 13 * 4 / 14
    second = d * first + (1 - d) * 2 * A_ROUND
    torch.testing.assert_close(sites.seen[-1][1]["b"], torch.tensor(4 + second))
    assert_weights(tmp_path / "run", second)


def test_large_runs_keep_only_the_newest_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "KEEP_ALL_BYTES", 0)
    config = settings(federation__rounds=5)
    federate(Sites(config).grid(), config, tmp_path / "run", None)
    assert [path.name for path in Run(tmp_path / "run").checkpoints()] == ["round-003", "round-004", "round-005"]


def test_validation_happens_every_so_many_rounds_and_at_the_end(tmp_path: Path) -> None:
    config, events = settings(federation__rounds=5, evaluation__every=2), []
    federate(Sites(config).grid(), config, tmp_path / "run", events.append)
    dice = {event["round"]: event["dice_image"] for event in events if event["event"] == "round"}
    assert [dice[i] is None for i in range(1, 6)] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        ({"raise": "no disk"}, "RuntimeError: no disk"),
        ({"code": "x"}, "other code than the server"),
        ({"config": "x"}, "its configuration differs"),
        ({"network": "x"}, "other shared tensors"),
        ({"frozen": "x"}, "frozen weights or text encoder differ"),
        ({"site": "ghent"}, "another node is already site 'ghent'"),
        ({"train_cases": -1}, "no valid 'train_cases'"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_by_name(tmp_path: Path, hello: dict[str, Any], reason: str) -> None:
    config = settings(federation__rounds=1)
    sites = Sites(config)
    sites.hello["iowa"] = hello
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    (fault,) = summary["faults"]
    assert (fault["round"], fault["phase"]) == (0, "hello")
    assert reason in fault["reason"]
    assert_weights(tmp_path / "run", (10 * 0.1 + 30 * 0.2) / 40)


def test_no_fitting_site_says_why_at_once(tmp_path: Path) -> None:
    config = settings(federation__wait=60.0)
    sites = Sites(config)
    sites.hello = {name: {"raise": f"{name} is closed"} for name in NAMES}
    start = time.monotonic()
    with pytest.raises(FederationError, match=r"0 sites can train.*3 nodes connected.*ghent is closed.*iowa is closed"):
        federate(sites.grid(), config, tmp_path / "run", None)
    assert time.monotonic() - start < 5


def test_one_reason_of_many_nodes_is_said_once(tmp_path: Path) -> None:
    config = settings()
    sites = Sites(config)
    sites.hello = {name: {"raise": "no disk"} for name in NAMES}
    with pytest.raises(FederationError) as raised:
        federate(sites.grid(), config, tmp_path / "run", None)
    assert str(raised.value).count("no disk") == 1
    assert "; node 2, node 3, node 4: the site failed: RuntimeError: no disk" in str(raised.value)


def test_a_site_without_training_cases_only_evaluates(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    sites = Sites(config)
    sites.hello["iowa"] = {"train_cases": 0, "train_patients": 0}
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert {site for site, _ in sites.turns} == {"ghent", "hannover"}
    assert "iowa" in summary["final"]["per_site"]


class Arrivals(InProcessGrid):
    """Nodes come and go: `present(looks)` says how many are there at a look."""

    present: Callable[[int], Iterable[int]]

    def get_node_ids(self) -> Iterable[int]:
        self.looks = getattr(self, "looks", 0) + 1
        everybody = list(super().get_node_ids())
        return [everybody[i] for i in self.present(self.looks)]


def test_waiting_for_sites_that_come_late(tmp_path: Path) -> None:
    config = settings(federation__min_sites=3, federation__rounds=1)
    grid = Arrivals(Sites(config).app, 3)
    grid.present = lambda looks: range(min(3, looks // 3))
    summary = federate(grid, config, tmp_path / "run", None)
    assert summary["engine"] == "deployment"
    assert_weights(tmp_path / "run", A_ROUND)


def test_waiting_ends_and_says_who_is_there(tmp_path: Path) -> None:
    config = settings(federation__min_sites=3, federation__wait=0.3)
    grid = Arrivals(Sites(config).app, 3)
    grid.present = lambda looks: range(2)
    with pytest.raises(
        FederationError, match=r"2 sites can train, 3 are needed.*2 nodes connected; ready: ghent, hannover.*Waited at most 0\.3 s"
    ):
        federate(grid, config, tmp_path / "run", None)


def test_a_site_that_joins_and_one_that_leaves(tmp_path: Path) -> None:
    config, events = settings(), []
    grid = Arrivals(Sites(config).app, 3)
    done = lambda: sum(event["event"] == "round" for event in events)  # noqa: E731
    grid.present = lambda looks: [[0, 1], [0, 1, 2], [1, 2], [1, 2]][done()]
    federate(grid, config, tmp_path / "run", events.append)
    assert [event["completed"] for event in events if event["event"] == "round"] == [
        ["ghent", "hannover"],
        ["ghent", "hannover", "iowa"],
        ["hannover", "iowa"],
    ]


def test_a_site_that_comes_back_under_the_same_node_takes_part_again(tmp_path: Path) -> None:
    config, events = settings(), []
    grid = Arrivals(Sites(config).app, 3)
    done = lambda: sum(event["event"] == "round" for event in events)  # noqa: E731
    grid.present = lambda looks: [[0, 1, 2], [0, 1], [0, 1, 2], [0, 1, 2]][done()]
    federate(grid, config, tmp_path / "run", events.append)
    assert [event["completed"] for event in events if event["event"] == "round"] == [[*NAMES], ["ghent", "hannover"], [*NAMES]]


@pytest.mark.parametrize("weighting", ["patients", "uniform"])
def test_other_weightings(tmp_path: Path, weighting: str) -> None:
    config = settings(federation__rounds=1, federation__weighting=weighting)
    sites = Sites(config)
    weights = {"patients": {"ghent": 5, "hannover": 15, "iowa": 30}, "uniform": dict.fromkeys(NAMES, 1)}[weighting]

    def weigh(site: str) -> Twist:
        def twist(content: RecordDict) -> RecordDict:
            content[SETTINGS]["weight"] = weights[site]
            return content

        return twist

    sites.twists = {(site, 1): weigh(site) for site in NAMES}
    federate(sites.grid(), config, tmp_path / "run", None)
    assert_weights(tmp_path / "run", sum(n * (i + 1) / 10 for i, n in enumerate(weights.values())) / sum(weights.values()))


def test_a_cohort_depends_on_seed_round_and_names_only(tmp_path: Path) -> None:
    def turns(order: tuple[str, ...], seed: int) -> list[set[str]]:
        config = settings(federation__cohort=2, federation__rounds=12, seed=seed)
        sites = Sites(config, order)
        federate(sites.grid(), config, tmp_path / f"{'-'.join(order)}-{seed}", None)
        return [{site for site, round in sites.turns if round == r} for r in range(1, 13)]

    drawn = turns(NAMES, 0)
    assert all(len(cohort) == 2 for cohort in drawn)
    assert set.union(*drawn) == set(NAMES)
    assert len({frozenset(cohort) for cohort in drawn}) == 3
    assert turns(NAMES[::-1], 0) == drawn
    assert turns(NAMES, 1) != drawn
