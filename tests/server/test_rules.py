"""Rules that are functions: the best round, stopping early, fairness, and the bound on an update's norm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.best import best_round, stalled
from server.fairness import fairness
from server.screening import FEWEST, REMEMBERED, mean_rate, screen
from tmca_core.config import Config
from tmca_core.errors import UpdateRejected


def history(*dice: float | None) -> list[dict[str, float | None]]:
    return [{"round": i + 1, "dice_image": value} for i, value in enumerate(dice)]


def test_the_best_round() -> None:
    assert best_round([]) is None
    assert best_round(history(None, None)) is None
    assert best_round(history(0.1, None, 0.5, 0.3, 0.5)) == 3


@pytest.mark.parametrize(
    ("dice", "patience", "gain", "stops"),
    [
        ((0.5, 0.4, 0.4), 2, 0.0, True),
        ((0.5, 0.4, 0.4), 3, 0.0, False),
        ((0.5, 0.4, 0.6), 2, 0.0, False),
        ((0.5, 0.5, 0.5), 2, 0.0, True),
        ((0.50, 0.51, 0.52), 2, 0.05, True),
        # Small gains add up against the last round that counted.
        ((0.50, 0.53, 0.56), 2, 0.05, False),
        ((None, None, None), 2, 0.0, False),
        ((0.5, None, None), 2, 0.0, True),
        ((0.5, 0.1, 0.1, 0.1), 0, 0.0, False),
        ((), 2, 0.0, False),
    ],
)
def test_stopping_early(dice: tuple[float | None, ...], patience: int, gain: float, stops: bool) -> None:
    assert stalled(history(*dice), patience, gain) is stops


def test_fairness_by_hand() -> None:
    found = fairness({"a": 0.9, "b": 0.5, "c": 0.7})
    assert (found["worst_site"], found["worst_dice"], found["worst_decile"]) == ("b", 0.5, 0.5)
    assert found["spread"] == pytest.approx((0.08 / 3) ** 0.5)
    # Of eleven sites the worst decile is two.
    assert fairness({f"s{i}": i / 10 for i in range(11)})["worst_decile"] == pytest.approx(0.05)
    assert set(fairness({}).values()) == {None}


def test_a_norm_is_bounded_from_the_fourth_update_on() -> None:
    accepted: list[float] = []
    for norm in (1.0, 500.0, 2.0):
        screen(norm, 1, accepted, 10)
    assert accepted == [1.0, 500.0, 2.0]
    screen(20.0, 1, accepted, 10)
    with pytest.raises(UpdateRejected, match=r"norm of 111 is 10\.1 times the median of the last 4.*max_norm_ratio") as raised:
        screen(111.0, 1, accepted, 10)
    assert raised.value.kind == "norm"
    assert len(accepted) == FEWEST + 1
    for hostile in (float("inf"), float("nan")):
        with pytest.raises(UpdateRejected):
            screen(hostile, 1, accepted, 10)
    screen(1e9, 1, accepted, 0)


def test_a_large_site_may_go_further() -> None:
    accepted = [1.0, 1.0, 1.0]
    screen(95.0, 100, accepted, 10)
    with pytest.raises(UpdateRejected):
        screen(95.0, 1, [1.0, 1.0, 1.0], 10)


def test_updates_of_zero_bound_nothing() -> None:
    screen(1.0, 1, [0.0, 0.0, 0.0], 10)


@given(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=2 * REMEMBERED))
def test_honest_sites_pass_and_only_the_last_are_remembered(norms: list[float]) -> None:
    accepted: list[float] = []
    for norm in norms:
        screen(norm, 4, accepted, 30)
    assert accepted == [norm / 2 for norm in norms[-REMEMBERED:]]


def test_a_warm_up_does_not_make_the_rounds_after_it_too_large() -> None:
    config = Config().with_values({"federation.rounds": 40, "training.steps": 1, "training.warmup": 0.05})
    accepted: list[float] = []
    for round in (1, 2, 3, 10, 40):
        rate = mean_rate(config, round, 1)
        for _ in range(3):  # Adam's steps are as long as the rate
            screen(5.0 * rate, 1, accepted, 30, rate=rate)
    assert len(accepted) == 15
    with pytest.raises(UpdateRejected):
        screen(5.0 * 31 * mean_rate(config, 10, 1), 1, accepted, 30, rate=mean_rate(config, 10, 1))
