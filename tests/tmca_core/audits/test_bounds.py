"""Bounds against the published figures, slow oracles, and each other."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from tmca_core.audits.bounds import clopper_pearson_upper, epsilon_of_mu, fdp_mu, gdp_mu, mu_of_epsilon, one_run_epsilon, threshold_epsilon
from tmca_core.cli import main
from tmca_core.errors import ConfigError

# m, r, v, δ, β: ε (Steinke et al. 2023), μ and ε at δ (Mahloujifar et al. 2024)
GOLDEN = (
    (1000, 1000, 600, 1e-5, 0.05, 0.2972, 0.1638, 0.5835),
    (1000, 200, 150, 1e-5, 0.05, 0.8200, 0.3395, 1.2969),
    (1000, 100, 95, 1e-5, 0.05, 2.1652, 0.7868, 3.3233),
    (1000, 100, 100, 1e-5, 0.05, 3.4654, 1.2255, 5.5490),
    (100, 30, 28, 1e-5, 0.05, 1.4144, 0.6384, 2.6218),
    (200, 40, 40, 1e-4, 0.01, 1.9492, 0.7983, 2.9175),
)


@pytest.mark.parametrize(("m", "r", "v", "delta", "beta", "epsilon", "mu", "epsilon_fdp"), GOLDEN)
def test_published_figures(m: int, r: int, v: int, delta: float, beta: float, epsilon: float, mu: float, epsilon_fdp: float) -> None:
    assert one_run_epsilon(m, r, v, delta, beta) == pytest.approx(epsilon, abs=1e-4)
    found = fdp_mu(m, r, v, beta)
    assert found == pytest.approx(mu, abs=1e-4)
    assert epsilon_of_mu(found, delta) == pytest.approx(epsilon_fdp, abs=1e-3)


def slow_p(m: int, r: int, v: int, delta: float, epsilon: float) -> float:
    """The formula as it is written, sum by sum."""
    q = 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(r, x) * q**x * (1 - q) ** (r - x) for x in range(r + 1)]
    worst = max(sum(mass[v - i : v]) / i for i in range(1, v + 1))
    return sum(mass[v:]) + 2 * m * delta * worst


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 60), st.data())
def test_the_refuted_epsilon_is_where_the_formula_reaches_beta(r: int, data: st.DataObject) -> None:
    v, m = data.draw(st.integers(1, r)), data.draw(st.integers(r, 400))
    delta, beta = data.draw(st.sampled_from((0.0, 1e-6, 1e-4))), data.draw(st.sampled_from((0.01, 0.05, 0.2)))
    found = one_run_epsilon(m, r, v, delta, beta)
    if found == 0:
        assert slow_p(m, r, v, delta, 0.0) >= beta - 1e-9
    else:
        assert slow_p(m, r, v, delta, found) == pytest.approx(beta, abs=1e-5)
        assert slow_p(m, r, v, delta, 0.9 * found) < beta


def test_more_right_guesses_refute_more_and_chance_refutes_nothing() -> None:
    found = [(one_run_epsilon(200, 50, v, 1e-5, 0.05), fdp_mu(200, 50, v, 0.05)) for v in range(0, 51, 5)]
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(found))
    assert found[5] == (0.0, 0.0) and min(found[-1]) > 0.5


def test_without_delta_the_one_run_bound_is_the_exact_binomial_one() -> None:
    epsilon = one_run_epsilon(80, 80, 60, 0.0, 0.05)
    assert binom.sf(59, 80, 1 / (1 + math.exp(-epsilon))) == pytest.approx(0.05, abs=1e-6)


def test_the_one_run_bound_errs_as_seldom_as_it_says() -> None:
    # Randomised response with ε = 1 on every canary: the attacker is right with probability q, and no more can be had.
    q, rng = 1 / (1 + math.exp(-1.0)), np.random.default_rng(0)
    correct = rng.binomial(100, q, 400)
    refuted = {v: one_run_epsilon(100, 100, int(v), 0.0, 0.05) > 1.0 for v in np.unique(correct)}
    assert sum(refuted[v] for v in correct) <= binom.ppf(0.999, 400, 0.05)


def test_clopper_pearson_by_hand() -> None:
    assert clopper_pearson_upper(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))  # (1 − p)^n = β
    found = clopper_pearson_upper(7, 50, 0.025)
    assert binom.cdf(7, 50, found) == pytest.approx(0.025)
    assert clopper_pearson_upper(9, 9, 0.05) == 1.0


def test_mu_of_a_test_lies_below_the_truth_and_near_it() -> None:
    # N(0, 1) against N(1, 1) at the middle: both errors are Φ(−½).
    errors = round(20_000 * norm.cdf(-0.5))
    assert 0.95 < gdp_mu(errors, 20_000, errors, 20_000, 0.05) < 1.0
    assert gdp_mu(50, 100, 50, 100, 0.05) == 0.0
    assert gdp_mu(100, 100, 0, 100, 0.05) == 0.0  # always "with": no test at all
    largest = gdp_mu(0, 1000, 0, 1000, 0.05)
    assert largest == pytest.approx(2 * norm.ppf(1 - clopper_pearson_upper(0, 1000, 0.025)))


def test_epsilon_of_a_test_by_hand_and_below_the_truth_of_any_mechanism() -> None:
    # One error in a hundred on one side and half on the other: both rates bounded at 1 − β/2.
    few, half = clopper_pearson_upper(1, 100, 0.025), clopper_pearson_upper(50, 100, 0.025)
    expected = math.log((1 - 1e-5 - half) / few)
    assert threshold_epsilon(1, 100, 50, 100, 1e-5, 0.05) == pytest.approx(expected) == threshold_epsilon(50, 100, 1, 100, 1e-5, 0.05)
    assert threshold_epsilon(50, 100, 50, 100, 1e-5, 0.05) == 0.0 == threshold_epsilon(100, 100, 0, 100, 1e-5, 0.05)
    # Laplace noise of ε = 1 at the threshold 1: FPR = e⁻¹/2, FNR = ½, and the ratio is e. μ-GDP at that ε and δ = 1e-5 would be 0.268.
    positives, negatives = round(20_000 * math.exp(-1) / 2), 10_000
    assert 0.9 < threshold_epsilon(positives, 20_000, negatives, 20_000, 1e-5, 0.05) < 1.0
    assert gdp_mu(positives, 20_000, negatives, 20_000, 0.05) > 3 * mu_of_epsilon(1.0, 1e-5)


def test_epsilon_of_mu_is_the_gaussian_mechanisms() -> None:
    assert epsilon_of_mu(1.0, 1e-5) == pytest.approx(4.377, abs=1e-3)
    for mu in (0.01, 0.5, 3.0, 12.0):
        epsilon = epsilon_of_mu(mu, 1e-5)
        delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        assert delta == pytest.approx(1e-5 if epsilon else 2 * norm.cdf(mu / 2) - 1, rel=1e-3)
        if epsilon:
            assert mu_of_epsilon(epsilon, 1e-5) == pytest.approx(mu, rel=1e-6)
    assert epsilon_of_mu(0.0, 1e-5) == 0.0 and mu_of_epsilon(math.inf, 1e-5) == math.inf


def test_accountant_and_closed_form_agree_on_one_full_step() -> None:
    from tmca_core.privacy.accounting import NoisySteps, epsilon

    assert epsilon([NoisySteps(2.0, 1.0, 1)], 1e-5) == pytest.approx(epsilon_of_mu(0.5, 1e-5), abs=2e-3)


@pytest.mark.parametrize("numbers", ((10, 20, 5, 0.05), (100, 20, 21, 0.05), (100, 20, -1, 0.05), (100, 20, 5, 1.0), (100, 0, 0, 0.05)))
def test_numbers_that_do_not_go_together_are_refused(numbers: tuple[int, int, int, float]) -> None:
    m, r, v, beta = numbers
    for bound in (lambda: one_run_epsilon(m, r, v, 1e-5, beta), lambda: fdp_mu(m, r, v, beta)):
        with pytest.raises(ConfigError):
            bound()
    with pytest.raises(ConfigError):
        gdp_mu(3, 2, 0, 10, 0.05)
    with pytest.raises(ConfigError):
        threshold_epsilon(3, 2, 0, 10, 1e-5, 0.05)


def test_the_command_prints_what_the_interface_says(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--canaries 1000 --guesses 100 --correct 95 --delta 1e-5 --beta .05"
    with pytest.raises(SystemExit) as stop:
        main(["audit", "bound", *options.split(), "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"epsilon_one_run": 2.1652, "mu": 0.7868, "epsilon_fdp": 3.3233, "max_attainable": 3.4654}
    assert {key: round(found[key], 4) for key in expected} == expected
    with pytest.raises(SystemExit) as stop:
        main(["audit", "bound", "--canaries", "10", "--guesses", "20", "--correct", "3"])
    assert stop.value.code == 2 and "guesses lie between" in capsys.readouterr().err
