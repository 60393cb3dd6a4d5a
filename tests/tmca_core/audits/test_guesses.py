"""Guesses from scores, counted by hand; and attacks that know what they look for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tmca_core.audits.attacks import by_attack, lira, rmia
from tmca_core.audits.bounds import epsilon_of_mu, fdp_mu, one_run_epsilon
from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.guesses import CONTROL, FDP, STEINKE, attainable, bounds, guesses_for, right, undecided
from tmca_core.audits.scores import Scores, area


def scores(members: list[float], others: list[float]) -> Scores:
    return Scores(np.array(members), np.array(others))


@pytest.mark.parametrize(
    ("members", "others", "guesses", "correct"),
    (
        ([3.0, 2.0], [1.0, 0.0], 4, 4),
        ([3.0, 0.0], [2.0, 1.0], 2, 1),  # the highest is a member; the lowest, said to be none, is one
        ([3.0, 0.0], [2.0, 1.0], 4, 2),
        ([2.0, 2.0], [1.0, 1.0], 4, 4),  # ties on one side of where guesses end change nothing
        ([5.0, 4.0, 3.0], [0.0], 3, 3),
    ),
)
def test_right_guesses(members: list[float], others: list[float], guesses: int, correct: int) -> None:
    assert right(scores(members, others), guesses) == correct


def test_lots_break_ties_once_for_the_same_scores_and_nobody_is_guessed_twice() -> None:
    found = []
    for _ in range(400):
        tied = scores([1.0] * 5, [1.0] * 5)
        found.append(right(tied, 10))
        assert right(tied, 10) == found[-1] and sorted(tied.order) == list(range(10))
    assert 4.7 < np.mean(found) < 5.3 and len(set(found)) > 1  # neither for nor against the attack
    assert undecided(scores([2.0, 1.0], [1.0, 0.0]), 2) == () == undecided(scores([2.0, 2.0], [1.0, 1.0]), 4)
    assert "2 scores are tied" in undecided(scores([2.0, 1.0], [1.0, 0.0]), 3)[0]


def test_a_claim_on_noise_that_need_not_be_gaussian_is_held_against_steinke_alone() -> None:
    clear = scores([float(i) for i in range(100, 150)], [float(i) for i in range(50)])
    (only,) = bounds(clear, 40, of_epsilon(2.0, 1e-5), 0.05, gaussian=False)
    assert only.value == only.attainable == pytest.approx(one_run_epsilon(100, 40, 40, 1e-5, (STEINKE + FDP) * 0.05))
    assert attainable(100, 40, 1e-5, 0.05, gaussian=False) == (only.attainable,)


def test_both_bounds_are_those_of_their_papers_at_their_shares_of_the_error() -> None:
    clear = scores([float(i) for i in range(100, 150)], [float(i) for i in range(50)])
    first, second = bounds(clear, 40, of_epsilon(2.0, 1e-5), 0.05)
    assert first.value == first.attainable == pytest.approx(one_run_epsilon(100, 40, 40, 1e-5, STEINKE * 0.05))
    assert second.value == pytest.approx(epsilon_of_mu(fdp_mu(100, 40, 40, FDP * 0.05), 1e-5)) and second.exceeds
    assert pytest.approx(1) == STEINKE + FDP + CONTROL


def test_as_many_guesses_as_could_refute_the_claim_and_no_more() -> None:
    few = guesses_for(400, of_epsilon(math.inf, 1e-5), 0.05)
    assert few == 120 == guesses_for(400, of_epsilon(0.5, 1e-5), 0.05)
    enough = guesses_for(400, of_epsilon(8.0, 1e-5), 0.05)
    assert few < enough < 400 and attainable(400, enough, 1e-5, 0.05)[1] >= 8.8 > attainable(400, enough - 20, 1e-5, 0.05)[1]
    assert guesses_for(100, of_epsilon(20.0, 1e-5), 0.05) == 100  # without power; the audit says so


def test_scores_that_know_nothing_pass_a_claim_of_nought_as_often_as_they_should() -> None:
    rng = np.random.default_rng(3)
    claim, flagged = of_epsilon(1e-3, 1e-5), 0
    for _ in range(200):
        inside = rng.random(100) < 0.5
        values = rng.normal(size=100)
        flagged += any(bound.exceeds for bound in bounds(Scores(values[inside], values[~inside]), 60, claim, 0.1))
    assert flagged <= 0.1 * 200 + 13  # 3 standard deviations


def made_up(models: int, cases: int, effect: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Signals (M, 2, N, 2) of cases with a difficulty of their own, the first signal raised in those who took part."""
    rng = np.random.default_rng(seed)
    coins = rng.random((models, cases)) < 0.5
    seen = 5 * rng.normal(size=(1, 1, cases, 2)) + rng.normal(size=(models, 2, cases, 2))
    seen[..., 0] += effect * coins[:, None]
    return seen, coins


def test_references_take_the_difficulty_of_cases_away() -> None:
    seen, coins = made_up(33, 400, 2.0, 0)
    found = by_attack(seen, coins, 0, list(range(1, 33)), ("loss", "text"))
    aucs = {name: area(values[coins[0]], values[~coins[0]]) for name, values in found.items()}
    # Two looks at a shift of 2 standard deviations: Φ(2·√2 / √2) = Φ(2) = 0.977 for a perfect attack.
    assert 0.94 < aucs["loss, LiRA"] < 0.995 and aucs["loss, threshold"] < 0.75
    assert abs(aucs["text, LiRA"] - 0.5) < 0.1 and aucs["all signals, LiRA"] > 0.9


def test_lira_needs_no_reference_on_either_side_of_every_case() -> None:
    seen, coins = made_up(4, 300, 3.0, 1)
    coins[1:, 0] = True  # nobody was trained without case 0
    values = lira(seen[0, ..., 0], seen[1:, ..., 0], coins[1:])
    assert np.isfinite(values).all() and area(values[coins[0]], values[~coins[0]]) > 0.8


def test_rmia_by_hand() -> None:
    target, others = np.log([[0.5, 0.2]]), np.log([[[0.25, 0.2]], [[0.75, 0.6]]])
    assert rmia(target, others) == pytest.approx([math.log(0.5 / 0.5), math.log(0.2 / 0.4)])
