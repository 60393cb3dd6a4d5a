"""ε against published figures, closed forms, a hand-written RDP, and itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp
from scipy.stats import norm

from tmca_core.errors import ConfigError
from tmca_core.privacy.accounting import (
    NoisyFigures,
    NoisySteps,
    Spend,
    epsilon,
    epsilons,
    gathered,
    spend_from_json,
    spend_to_json,
)

# (σ, q, steps, δ) → Opacus RDP, Opacus PRV, PLD
TABLE = [
    (1.0, 0.01, 1000, 1e-5, 2.1014, 1.8384, 1.8282),
    (1.0, 0.032, 3100, 1e-5, 13.4987, 12.4840, 12.4734),
    (1.1, 256 / 60000, 14062, 1e-5, 2.5966, 2.3917, 2.3817),
    (0.8, 0.05, 400, 1e-5, 11.9507, 10.7433, 10.7327),
    (2.0, 0.032, 3100, 1e-5, 4.5447, 4.2022, 4.1920),
    (0.6, 0.01, 500, 1e-6, 8.1035, 6.9453, 6.9348),
]
MIXED = [NoisySteps(1.0, 0.032, 1550), NoisySteps(2.0, 0.05, 1000), NoisySteps(1.5, 0.032, 310)]


def rdp_by_hand(s: NoisySteps, order: int) -> float:
    """Mironov, Talwar and Zhang 2019, section 3.3: Rényi divergence of sampled Gaussian steps at an integer order."""
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-s.sample_rate)
        + k * math.log(s.sample_rate)
        + (k * k - k) / (2 * s.noise_multiplier**2)
        for k in range(order + 1)
    ]
    return s.steps * float(logsumexp(terms)) / (order - 1)


def epsilon_by_hand(composition: list[NoisySteps], delta: float) -> float:
    """Its least ε over integer orders, by Balle et al. 2020, theorem 21."""
    return min(
        sum(rdp_by_hand(s, order) for s in composition) + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order in range(2, 128)
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8: δ(ε) of one Gaussian of sensitivity over deviation μ, turned round."""
    return float(brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e + log_ndtr(-mu / 2 - e / mu)) - delta, 0, mu * mu + 10 * mu))


def one_sampled_step(sigma: float, rate: float, eps: float) -> float:
    """δ of one sampled step, the larger of adding and removing, from the crossing of the two densities."""
    worst = 0.0
    if (odds := (math.exp(eps) - 1 + rate) / rate) > 0:  # removing: mixture against Gaussian
        x = sigma**2 * math.log(odds) + 0.5
        mixture = (1 - rate) * norm.sf(x / sigma) + rate * norm.sf((x - 1) / sigma)
        worst = max(worst, mixture - math.exp(eps) * norm.sf(x / sigma))
    if (odds := (math.exp(-eps) - 1 + rate) / rate) > 0:  # adding: Gaussian against mixture
        x = sigma**2 * math.log(odds) + 0.5
        mixture = (1 - rate) * norm.cdf(x / sigma) + rate * norm.cdf((x - 1) / sigma)
        worst = max(worst, norm.cdf(x / sigma) - math.exp(eps) * mixture)
    return worst


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "rdp", "prv", "pld"),
    [pytest.param(*row, marks=[] if row[0] >= 1 and row[1] != 0.01 else [pytest.mark.slow]) for row in TABLE],
)
def test_the_published_figures(sigma: float, rate: float, steps: int, delta: float, rdp: float, prv: float, pld: float) -> None:
    found = epsilons([NoisySteps(sigma, rate, steps)], delta)
    assert found.pld == pytest.approx(pld, abs=2e-4)
    assert (found.prv, found.rdp) == (pytest.approx(prv, abs=2e-4), pytest.approx(rdp, abs=2e-4))
    assert found.prv is not None and found.rdp is not None
    assert found.pld <= found.prv <= found.pld + 0.0125 and found.prv <= found.rdp  # PRV allows itself an error of 0.01
    assert found.pld < found.replace_one < 2.5 * found.pld
    # Integer orders alone lose a little against Opacus' orders; at the same orders nothing.
    by_hand = epsilon_by_hand([NoisySteps(sigma, rate, steps)], delta)
    assert found.rdp <= by_hand * (1 + 1e-9) and by_hand <= 1.07 * found.rdp
    orders = [2, 3, 5, 8, 13, 32, 60]
    theirs = compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
    assert theirs == pytest.approx([rdp_by_hand(NoisySteps(sigma, rate, steps), order) for order in orders], rel=1e-9)
    coarse = epsilon([NoisySteps(sigma, rate, steps)], delta, coarse=True)
    assert found.pld - 1e-6 <= coarse <= found.pld + 0.01


def test_the_mixed_ledger_and_the_two_relations() -> None:
    found = epsilons(MIXED, 1e-5)
    assert found.pld == pytest.approx(9.7449, abs=0.01) and found.pld < sum(epsilon([s], 1e-5) for s in MIXED)
    assert found.rdp == pytest.approx(epsilon_by_hand(MIXED, 1e-5), rel=0.07)
    assert epsilon([NoisySteps(1.0, 0.032, 3100)], 1e-5, "replace-one") == pytest.approx(22.2398, abs=1e-3)


def test_a_fresh_accountant_every_round_would_understate() -> None:
    round = NoisySteps(1.0, 0.032, 31)
    found, fresh = epsilons([round] * 100, 1e-5), epsilons([round], 1e-5)
    assert found == epsilons([NoisySteps(1.0, 0.032, 3100)], 1e-5)
    assert found.rdp == pytest.approx(13.4987, abs=1e-3) and fresh.rdp is not None and fresh.rdp < 3.0


def test_the_central_limit_would_understate() -> None:
    sigma, rate, steps, delta = 0.6, 0.01, 500, 1e-6
    mu = rate * math.sqrt(steps * math.expm1(sigma**-2))
    assert gaussian_epsilon(mu, delta) < 0.7 * epsilon([NoisySteps(sigma, rate, steps)], delta)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (5.0, 1), (10.0, 100), (2.0, 900)])
def test_without_sampling_the_closed_form(sigma: float, steps: int) -> None:
    mu = math.sqrt(steps) / sigma
    found = epsilon([NoisySteps(sigma, 1.0, steps)], 1e-5)
    exact = gaussian_epsilon(mu, 1e-5)
    assert exact - 1e-6 <= found <= exact + 1e-3 + 1e-4 * exact
    replaced, exact = epsilon([NoisySteps(sigma, 1.0, steps)], 1e-5, "replace-one"), gaussian_epsilon(2 * mu, 1e-5)
    assert exact - 1e-6 <= replaced <= exact + 1e-3 + 1e-3 * exact  # a large loss has a coarse grid


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.1), (0.5, 0.01), (2.0, 0.5), (0.7, 0.9)])
def test_one_sampled_step_by_its_integral(sigma: float, rate: float) -> None:
    exact = float(brentq(lambda e: one_sampled_step(sigma, rate, e) - 1e-4, 0, 100))
    assert exact - 1e-6 <= epsilon([NoisySteps(sigma, rate, 1)], 1e-4) <= exact + 1e-3


spends = st.lists(
    st.one_of(
        st.builds(NoisySteps, st.sampled_from([0.8, 1.0, 3.0]), st.sampled_from([0.01, 0.2, 1.0]), st.integers(0, 60)),
        st.builds(NoisyFigures, st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([0.0, 1e-7])),
    ),
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(spends, st.randoms(use_true_random=False))
def test_order_plays_no_part_and_more_costs_more(composition: list[Spend], rng: object) -> None:
    found = epsilon(composition, 1e-5, coarse=True)
    shuffled = sorted(composition, key=lambda _: rng.random())  # type: ignore[attr-defined]
    assert epsilon(shuffled, 1e-5, coarse=True) == found and gathered(shuffled) == gathered(composition)
    assert epsilon([*composition, NoisySteps(1.0, 0.2, 10)], 1e-5, coarse=True) > found - 1e-9
    assert epsilon([*composition, NoisyFigures(0.1)], 1e-5, coarse=True) >= found - 1e-3  # another grid may serve
    assert epsilon(composition, 1e-6, coarse=True) >= found
    assert [spend_from_json(spend_to_json(s)) for s in composition] == composition


def test_figures_with_their_own_epsilon() -> None:
    assert epsilon([NoisyFigures(0.5)], 1e-9) == pytest.approx(0.5, abs=1e-3)
    assert epsilon([NoisyFigures(0.5)] * 2, 1e-9) == pytest.approx(1.0, abs=1e-3)
    assert epsilon([NoisyFigures(0.5)], 1e-9, "replace-one") == pytest.approx(1.0, abs=1e-3)
    assert math.isinf(epsilon([NoisyFigures(0.5, 1e-6)] * 10, 1e-5))
    steps = NoisySteps(1.0, 0.05, 50)
    found = epsilons([steps, NoisyFigures(0.3, 1e-6)], 1e-5)
    alone = epsilons([steps], 1e-5 - 1e-6)
    assert found.rdp == pytest.approx((alone.rdp or 0) + 0.3) and alone.pld < found.pld <= alone.pld + 0.3 + 1e-3
    assert epsilons([steps, NoisyFigures(0.3, 1e-5)], 1e-5).rdp is None
    assert (epsilon([], 1e-5), epsilon([NoisySteps(1.0, 0.1, 0)], 1e-5)) == (0.0, 0.0)


def test_dropping_surplus_patients_is_accounted_for() -> None:
    free = epsilon([NoisySteps(1.0, 0.1, 20)], 1e-5, coarse=True)
    capped = epsilons([NoisySteps(1.0, 0.1, 20, cap=4, patients=20)], 1e-5)
    assert capped.pld > free + 0.05 and (capped.prv, capped.rdp) == (None, None)  # not covered by the others
    roomy = epsilon([NoisySteps(1.0, 0.1, 20, cap=14, patients=20)], 1e-5, coarse=True)
    assert free - 1e-3 <= roomy <= free + 0.01
    assert NoisySteps(1.0, 0.1, 50, cap=100, patients=100).cap == 0
    with pytest.raises(ConfigError, match="below twice the mean"):
        NoisySteps(1.0, 0.032, 50, cap=40, patients=1000)
    with pytest.raises(ConfigError, match="cap"):
        NoisySteps(1.0, 0.032, 50, cap=40)


def test_extremes_end_in_a_number() -> None:
    loud = epsilons([NoisySteps(0.05, 0.1, 100)], 1e-5)
    assert loud.prv is None and loud.rdp is not None and 1000 < loud.pld <= loud.rdp
    assert 3e4 < epsilon([NoisySteps(1.0, 1.0, 100_000)], 1e-5) < 6e4
    assert epsilon([NoisySteps(5.0, 0.001, 1_000_000)], 1e-5, coarse=True) == pytest.approx(0.734, abs=0.02)
    assert epsilon([NoisySteps(1.0, 1e-6, 1)], 1e-5) == 0.0
    assert epsilon([NoisySteps(1000.0, 0.01, 10)], 1e-5) < 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoisySteps(0.0, 0.1, 1),
        lambda: NoisySteps(math.nan, 0.1, 1),
        lambda: NoisySteps(math.inf, 0.1, 1),
        lambda: NoisySteps(1.0, 0.0, 1),
        lambda: NoisySteps(1.0, 1.1, 1),
        lambda: NoisySteps(1.0, math.nan, 1),
        lambda: NoisySteps(1.0, 0.1, -1),
        lambda: NoisyFigures(math.inf),
        lambda: NoisyFigures(-1.0),
        lambda: epsilon([], 0.0),
        lambda: epsilon([], 1.0),
        lambda: epsilon([], math.nan),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
