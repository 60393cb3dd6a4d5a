"""The round loop over a grid of made-up sites: what is folded, what is refused, what is written, and how it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from server import rounds
from server.app import federate
from server.exchange import TensorArray
from simulations.inprocess import InProcessGrid
from tmca_core.config import Config
from tmca_core.errors import ConfigError, FederationError
from tmca_core.messages import ARRAYS, METRICS, SETTINGS, Hello, source_digest, spec_digest, spec_of, to_tensor
from tmca_core.networks import Network, frozen_digest, shared_state
from tmca_core.run import Run
from tmca_core.training.scores import CaseScore, site_summary

NAMES = ("ghent", "hannover", "iowa")
CASES = {"ghent": 10, "hannover": 30, "iowa": 60}
ROOT = Path(rounds.__file__).parents[1]

Twist = Callable[[RecordDict], Any]


class Tiny(Network):
    """Two shared tensors, one frozen, one personal."""

    uses_text = False
    personal = ("norm.",)

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.a = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.b = nn.Parameter(torch.tensor(4.0))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.norm.weight)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def settings(**values: Any) -> Config:
    base = {"federation.rounds": 3, "federation.poll": 0.01, "federation.wait": 5.0, "evaluation.bootstrap": 0}
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})


class Sites:
    """A ClientApp whose site i moves every shared tensor by (i + 1)/10 a round; `twists` spoil single replies."""

    def __init__(self, config: Config, names: tuple[str, ...] = NAMES) -> None:
        self.config, self.names = config, names
        self.twists: dict[tuple[str, int], Twist] = {}
        self.hello: dict[str, dict[str, Any]] = {}
        self.turns: list[tuple[str, int]] = []
        self.seen: list[tuple[str, dict[str, Tensor]]] = []
        self.app = ClientApp()
        self.app.query()(self._query)
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def grid(self) -> InProcessGrid:
        return InProcessGrid(self.app, len(self.names))

    def _query(self, message: Message, context: Context) -> Message:
        site, network = self._site(context), Tiny()
        own = Hello(
            site=site,
            patients=CASES[site] // 2 + 4,
            train_patients=CASES[site] // 2,
            train_cases=CASES[site],
            val_cases=4,
            test_cases=5,
            skipped=1,
            config=self.config.digest(),
            network=spec_digest(spec_of(shared_state(network))),
            frozen=frozen_digest(network),
            code=source_digest(ROOT),
        ).as_values()
        change = self.hello.get(site, {})
        if "raise" in change:
            raise RuntimeError(change["raise"])
        return Message(RecordDict({SETTINGS: ConfigRecord({**own, **change})}), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        site, round = self._site(context), int(message.content[SETTINGS]["round"])
        self.turns.append((site, round))
        step = (NAMES.index(site) + 1) / 10
        arrays = ArrayRecord()
        for name, array in message.content[ARRAYS].items():
            arrays[name] = TensorArray(torch.full_like(to_tensor(name, array), step))
        reply = RecordDict(
            {
                ARRAYS: arrays,
                SETTINGS: ConfigRecord({"round": round, "weight": CASES[site]}),
                METRICS: MetricRecord({"loss": 0.5, "steps": 2, "cases": 16, "seconds": 0.01}),
            }
        )
        twisted = self.twists.get((site, round), lambda content: content)(reply)
        return Message(twisted, reply_to=message) if isinstance(twisted, RecordDict) else twisted

    def _evaluate(self, message: Message, context: Context) -> Message:
        site = self._site(context)
        self.seen.append((site, {name: to_tensor(name, array).clone() for name, array in message.content[ARRAYS].items()}))
        dice = 0.5 + NAMES.index(site) / 10
        scores = [CaseScore(f"{i}", f"p{i}", site, 5, 10, 10, dice, 0.3, 2.0, None, None, 0.7, {}) for i in range(4)]
        summary = site_summary(scores, bootstrap=0, seed=0)
        reply = RecordDict({METRICS: MetricRecord({**summary}), SETTINGS: ConfigRecord({"split": str(message.content[SETTINGS]["split"])})})
        twisted = self.twists.get((site, -1), lambda content: content)(reply)
        return Message(twisted, reply_to=message)

    def _site(self, context: Context) -> str:
        return self.names[int(context.node_config["partition-id"])]


def final_weights(out: Path) -> dict[str, Tensor]:
    last = Run(out).last_checkpoint()
    assert last is not None
    return last.weights


def moved(by: float) -> dict[str, Tensor]:
    start = Tiny().state_dict()
    return {"a": start["a"] + by, "b": start["b"] + by, "fixed": start["fixed"], "norm.weight": start["norm.weight"]}


def assert_weights(out: Path, by: float) -> None:
    torch.testing.assert_close(final_weights(out), moved(by))


# (10·0.1 + 30·0.2 + 60·0.3) / 100
A_ROUND = 0.25


def test_three_rounds_by_hand(tmp_path: Path) -> None:
    config, events = settings(), []
    summary = federate(Sites(config).grid(), config, tmp_path / "run", events.append)
    assert_weights(tmp_path / "run", 3 * A_ROUND)
    assert summary == json.loads((tmp_path / "run" / "run.json").read_text())
    assert list(summary)[:6] == ["schema", "network", "engine", "algorithm", "seed", "rounds"]
    assert summary["engine"] == "inprocess"
    assert summary["sites"][0] == {"name": "ghent", "patients": 9, "train_cases": 10, "val_cases": 4, "test_cases": 5, "skipped": 1}
    assert summary["skipped"] == 3
    assert summary["final"]["dice_image"] == pytest.approx(0.6)
    assert summary["final"]["worst_site"] == "ghent"
    assert summary["faults"] == []
    assert summary["resumed_from"] is None
    # 4 floats, the names "a" and "b"; round 5 + 8, run 3 + 12; weight 6 + 8; loss, steps, cases, seconds 4 + 5 + 5 + 7 + 4·8
    assert summary["bytes"] == {"up_per_site_round": 18 + 13 + 14 + 53, "down_per_site_round": 18 + 13 + 15, "full_state": 28}
    assert set(summary["seconds"]) == {"total", "training", "communication", "aggregation", "evaluation"}
    assert summary["seconds"]["training"] == pytest.approx(0.09)
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == events
    assert [path.name for path in Run(tmp_path / "run").checkpoints()] == [f"round-{i:03d}" for i in range(4)]


def test_events_have_exactly_these_keys(tmp_path: Path) -> None:
    config, events = settings(federation__rounds=1), []
    federate(Sites(config).grid(), config, tmp_path / "run", events.append)
    keys = {event["event"]: set(event) - {"event"} for event in events}
    assert keys["site_train"] == {"arm", "round", "site", "loss", "seconds", "bytes_up", "bytes_down"}
    assert keys["site_eval"] == keys["site_test"] == {"arm", "round", "site", "dice_image", "loss", "cases"}
    assert keys["round"] == {"arm", "round", "dice_image", "seconds", "completed", "failed"}
    assert [e["event"] for e in events] == ["site_train"] * 3 + ["site_eval"] * 3 + ["round"] + ["site_test"] * 3
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
    assert event == {"event": "fault", "arm": "federated", **fault}
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


def test_a_site_that_fails_to_evaluate_is_left_out(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    sites = Sites(config)

    def spoil(content: RecordDict) -> RecordDict:
        content[METRICS]["dice_sum"] = float("nan")
        return content

    sites.twists["iowa", -1] = spoil
    summary = federate(sites.grid(), config, tmp_path / "run", None)
    assert [(f["phase"], f["reason"]) for f in summary["faults"]] == [
        ("val", "the evaluation's 'dice_sum' is not finite"),
        ("test", "the evaluation's 'dice_sum' is not finite"),
    ]
    assert list(summary["final"]["per_site"]) == ["ghent", "hannover"]


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
