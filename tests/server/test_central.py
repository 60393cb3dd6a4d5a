"""Central differential privacy in the round loop: what is clipped and noised, what is said first, what is counted, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from made_up_sites import Sites, Tiny, final_weights, settings

from server import rounds
from server.app import federate
from server.central import CentralFold, releases
from server.exchange import TensorArray
from server.roster import Identity, Roster
from tmca_core.algorithms import ALGORITHMS
from tmca_core.config import Config
from tmca_core.errors import BudgetExhausted, ConfigError
from tmca_core.messages import ARRAYS, Hello, Update
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.central import Draw
from tmca_core.privacy.randomness import Stream
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


class Quiet:
    """A stream of which every Gaussian number is 0."""

    def read(self, size: int) -> bytes:
        return b"\xff" * size  # u₁ = 1


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.central.SecureStream", Quiet)


def central(**values: Any) -> Config:
    base = {
        "central__enabled": True,
        "central__noise_multiplier": 1.0,
        "federation__weighting": "uniform",
        "federation__max_norm_ratio": 0.0,
    }
    return settings(**{**base, "federation__rounds": 1, **values})


class Uniform(Sites):
    """The made-up sites, each of weight 1."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.spoilt: dict[str, float] = {}

    def _train(self, message: Any, context: Any) -> Any:
        reply = super()._train(message, context)
        content: RecordDict = reply.content
        content["settings"]["weight"] = 1
        if (bad := self.spoilt.get(self._site(context))) is not None:
            content[ARRAYS]["b"] = TensorArray(torch.tensor(bad))
        return reply


class Loud:
    """A stream of which every Gaussian number is the same and far from 0."""

    def read(self, size: int) -> bytes:
        return b"\x00" * size  # u₁ = 2⁻⁶⁵, angle 0


def moved(out: Path) -> float:
    return float(final_weights(out)["b"] - Tiny().b)


@pytest.mark.usefixtures("quiet")
def test_updates_are_clipped_and_every_hospital_counts_the_same(tmp_path: Path) -> None:
    # Four numbers of 0.1, 0.2 and 0.3: norms 0.2, 0.4 and 0.6.
    config, events = central(central__clip=0.4), []
    summary = federate(Uniform(config).grid(), config, tmp_path / "run", events.append)
    assert moved(tmp_path / "run") == pytest.approx((0.1 + 0.2 + 0.2) / 3, abs=1e-6)
    kinds = [event["event"] for event in events]
    assert kinds.index("note") < kinds.index("site_train")
    said = events[kinds.index("note")]["text"]
    assert "whole hospital among N = 3, 3 asked a round, 1 rounds" in said and "add/remove, PLD" in said
    stated = summary["central"]
    assert (stated["unit"], stated["relation"], stated["releases"], stated["sites"], stated["asked"]) == ("hospital", "add/remove", 1, 3, 3)
    assert stated["epsilon"] == pytest.approx(epsilon([NoisySteps(1.0, 1.0, 1)], 1e-3))


@pytest.mark.usefixtures("quiet")
def test_who_does_not_answer_or_sends_nonsense_counts_as_nothing_in_a_public_number(tmp_path: Path) -> None:
    config = central(central__clip=0.4)
    sites = Uniform(config)
    sites.spoilt = {"iowa": math.nan}
    federate(sites.grid(), config, tmp_path / "run", lambda event: None)
    assert moved(tmp_path / "run") == pytest.approx((0.1 + 0.2) / 3, abs=1e-6)


def _fold(tmp_path: Path, stream: Stream | None = None, **values: Any) -> tuple[CentralFold, dict[str, torch.Tensor], Run]:
    config = central(**values)
    start, run = {"a": torch.zeros(3), "b": torch.zeros(())}, Run(tmp_path)
    return CentralFold(ALGORITHMS["fedavg"].fold(start, config), start, config, run, stream or Loud()), start, run


def _update(value: float) -> Update:
    return Update({"a": torch.full((3,), value), "b": torch.tensor(value)}, 1, {}, 1)


def test_the_noise_is_of_the_clip_over_the_number_asked(tmp_path: Path) -> None:
    fold, weights, _ = _fold(tmp_path, central__noise_multiplier=2.0, central__clip=0.5)
    fold.begin(4)
    fold.add(_update(0.0))
    fold.finish(weights)
    # Twice √(65 · 2 ln 2) cos 0, each with half the variance.
    loud = math.sqrt(130 * math.log(2)) * math.sqrt(2)
    assert float(weights["b"]) == pytest.approx(loud * 2.0 * 0.5 / 4, rel=1e-5)


def test_zeros_nan_and_infinity_in_a_fold(tmp_path: Path) -> None:
    fold, weights, _ = _fold(tmp_path, Quiet(), central__clip=1.0)
    fold.begin(4)
    for value in (0.0, math.nan, -math.inf, 0.25):
        fold.add(_update(value))
    fold.finish(weights)
    assert float(weights["b"]) == pytest.approx(0.25 / 4, abs=1e-6)


def test_the_adaptive_bound_lies_in_the_checkpoint_and_its_noise_is_paid_for(tmp_path: Path) -> None:
    more = {"central__adaptive": True, "central__clip": 4.0, "central__noise_multiplier": 1.0, "central__count_noise": 1.0}
    fold, weights, _ = _fold(tmp_path, **more)
    fold.begin(4)
    for _ in range(4):
        fold.add(_update(0.0))
    fold.finish(weights)
    loud = math.sqrt(130 * math.log(2))
    # All four unclipped: b̄ = 1 and the noise of 1 over 4; γ = ½, η = 0.2.
    assert fold.clip == pytest.approx(4 * math.exp(-0.2 * (0.5 + loud / 4)))
    assert float(weights["b"]) == pytest.approx(loud * math.sqrt(2) * 1.1547005 * 4 / 4, rel=1e-5)
    again, _, _ = _fold(tmp_path, **more)
    again.restore(fold.state())
    assert again.clip == fold.clip


def test_a_round_that_is_done_again_is_counted_again(tmp_path: Path) -> None:
    config = central(federation__rounds=2, central__noise_multiplier=1.0)

    def stop(event: Any) -> None:
        if event["event"] == "site_eval" and event["round"] == 2:
            raise KeyboardInterrupt  # its weights have been sent out

    with pytest.raises(KeyboardInterrupt):
        federate(Uniform(config).grid(), config, tmp_path / "run", stop)
    summary = federate(Uniform(config).grid(), config, tmp_path / "run", lambda event: None)
    assert releases(Run(tmp_path / "run")) == [Draw(3, 3)] * 3
    assert summary["central"]["releases"] == 3


def test_no_release_beyond_the_largest_epsilon(tmp_path: Path) -> None:
    # One round of σ = 1 at δ = 10⁻³ costs 3.1; two 4.9.
    with pytest.raises(BudgetExhausted, match=r"among N = 3, .*above central.max_epsilon=4"):
        config = central(central__max_epsilon=4.0, central__noise_multiplier=1.0, federation__rounds=2)
        federate(Uniform(config).grid(), config, tmp_path / "run", lambda event: None)
    assert not (tmp_path / "run" / "central.json").exists()
    fold, weights, run = _fold(tmp_path, central__max_epsilon=4.0, central__noise_multiplier=1.0)
    run.write_json("central.json", {"draws": [[3, 3]]})  # of an attempt that was cut off
    fold.begin(3)
    fold.add(_update(0.1))
    with pytest.raises(BudgetExhausted, match="release 2 of this run"):
        fold.finish(weights)
    assert float(weights["b"]) == 0 and len(releases(run)) == 1


def test_a_cohort_is_drawn_by_nobodys_seed(tmp_path: Path) -> None:
    hello = Hello("", 9, 5, 10, 4, 5, 0, "", "", "", "")
    rosters = {}
    for name, config in {"secret": central(federation__cohort=3), "seeded": settings(federation__cohort=3)}.items():
        rosters[name] = Roster(Identity("", "", "", ""), config, lambda *what: None)
        rosters[name].hellos = {f"site-{i:02d}": hello for i in range(20)}
    seen = {name: {tuple(roster.cohort(1)) for _ in range(20)} for name, roster in rosters.items()}
    assert len(seen["seeded"]) == 1 and len(seen["secret"]) > 10
    assert all(len(set(cohort)) == 3 and list(cohort) == sorted(cohort) for cohort in seen["secret"])


def test_a_round_that_is_done_again_between_hospitals_is_a_draw_of_its_own(tmp_path: Path) -> None:
    """Replies that were kept, of a cohort that was kept, would be released twice and accounted as two draws."""
    kept = []
    for config in (central(), central(central__enabled=False)):
        run = Run.create(tmp_path / str(len(kept)), config)
        kept.append(rounds.Federation(Uniform(config).grid(), config, run, deployed=True).keep_replies)
    assert kept == [False, True]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"federation__weighting": "cases"}, "a weight would multiply the clipped norm: set uniform"),
        ({"federation__max_norm_ratio": 30.0}, "max_norm_ratio=30"),
        ({"federation__contribution_every": 1}, "contribution_every=1"),
        ({"federation__oversample": 0.5}, "oversample=0.5"),
        ({"federation__keep_replies": "on"}, "keep_replies=on: a round that is done again would release the same replies"),
        ({"central__delta": 0.4}, "not below one over the 3 hospitals"),
        ({"central__adaptive": True, "central__noise_multiplier": 11.0}, "central.count_noise=5 is too little"),
    ]
    + [
        ({"federation__algorithm": name}, "more than add updates up")
        for name in ("median", "krum", "trimmed-mean", "norm-bound", "scaffold")
    ],
)
def test_what_would_let_one_hospital_count_for_more_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = central(**values)
    sites = Uniform(config)
    with pytest.raises(ConfigError, match=says):
        federate(sites.grid(), config, tmp_path / "run", lambda event: None)
    assert sites.turns == []


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fedbn", "fedper", "fedrep", "ditto"])
def test_mean_type_algorithms_get_the_noised_mean(name: str, tmp_path: Path) -> None:
    config = central(federation__algorithm=name, central__clip=100.0)
    start = {"a": torch.zeros(3), "b": torch.zeros(())}
    plain, wrapped = ({key: tensor.clone() for key, tensor in start.items()} for _ in range(2))
    inner = ALGORITHMS[name].fold(start, config)
    fold = CentralFold(ALGORITHMS[name].fold(start, config), start, config, Run(tmp_path))
    for values in ((0.1, 0.2, 0.6), (-0.3, 0.1, 0.2)):
        for each, weights in ((inner, plain), (fold, wrapped)):
            each.begin(3)
            for value in values:
                each.add(_update(value))
            each.finish(weights)
    torch.testing.assert_close(wrapped, plain, atol=1e-5, rtol=1e-4)
