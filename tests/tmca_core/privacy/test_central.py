"""Central differential privacy: clipping, the adaptive bound's sign, its noise, and ε by the true draws."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tmca_core.config import CentralSettings
from tmca_core.errors import ConfigError
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.central import Draw, adapted, central_epsilons, clipping, drawn_secretly, split_noise, with_noise
from tmca_core.privacy.randomness import SecureStream


class Zeros:
    """A stream whose Gaussian numbers are known: u₁ is the smallest above 0, the angle 0."""

    def read(self, size: int) -> bytes:
        return b"\xff" * size  # u₁ = 1: the radius, and so the noise, is 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), st.floats(1e-6, 1e6))
def test_no_clipped_update_is_longer_than_the_bound(values: list[float], clip: float) -> None:
    update = {"a": torch.tensor(values), "b": torch.tensor(values[:1])}
    factor, within = clipping(update, clip)
    norm = math.hypot(*values, values[0])
    moved = torch.cat([tensor.double() * factor for tensor in update.values()])
    assert float(torch.linalg.vector_norm(moved)) <= clip
    assert within == (norm <= clip) or norm == pytest.approx(clip, rel=1e-12)
    assert factor == 1 if within else factor == pytest.approx(clip / norm, rel=1e-9)


def test_zeros_are_within_and_what_is_not_finite_counts_as_nothing() -> None:
    assert clipping({"a": torch.zeros(3)}, 1.0) == (1.0, True)
    for bad in (math.nan, math.inf, -math.inf):
        assert clipping({"a": torch.tensor([1.0, bad])}, 1.0) == (0.0, False)
    assert clipping({"a": torch.full((2,), 3e38)}, 1.0)[0] > 0  # float32's own norm would overflow


def test_the_adaptive_bound_by_hand_and_in_the_right_direction() -> None:
    rule = CentralSettings(adaptive=True, quantile=0.5, clip_rate=0.2)
    # all ten unclipped: b̄ = 1, C · exp(−0.2 · 0.5)
    assert adapted(2.0, 10, 10, 10, rule, Zeros()) == pytest.approx(2 * math.exp(-0.1))
    assert adapted(2.0, 0, 10, 10, rule, Zeros()) == pytest.approx(2 * math.exp(0.1))
    assert adapted(2.0, 5, 10, 10, rule, Zeros()) == pytest.approx(2.0)
    # four of ten did not answer, the six who did were unclipped: b̄ = (6 + 2) / 10
    assert adapted(2.0, 6, 6, 10, rule, Zeros()) == pytest.approx(2 * math.exp(-0.2 * 0.3))


def test_the_adaptive_bound_finds_the_quantile() -> None:
    norms = np.random.default_rng(0).lognormal(1.0, 0.5, 200)
    clip, rule = 50.0, CentralSettings(adaptive=True, quantile=0.3, count_noise=5.0)
    trail = []
    for _ in range(300):
        clip = adapted(clip, int((norms <= clip).sum()), 200, 200, rule, SecureStream())
        trail.append(clip)
    assert np.median(trail[150:]) == pytest.approx(np.quantile(norms, 0.3), rel=0.05)


def test_the_counts_noise_is_paid_for() -> None:
    # z = 1, σ_b = 1: 1 / √(1 − ¼)
    assert split_noise(1.0, 1.0) == pytest.approx(1.1547005)
    for z, b in [(2.0, 1.5), (8.0, 4.1)]:
        part = split_noise(z, b)
        # The two Gaussians one after the other, the count with a sensitivity of ½, cost as much as one of multiplier z.
        both = epsilon([NoisySteps(part, 1.0, 20), NoisySteps(2 * b, 1.0, 20)], 1e-3)
        assert both == pytest.approx(epsilon([NoisySteps(z, 1.0, 20)], 1e-3), rel=1e-3)
    with pytest.raises(ConfigError, match="too little"):
        split_noise(2.0, 1.0)


def test_noise_has_the_size_it_claims() -> None:
    sums = {"a": torch.full((200, 100), 7.0, dtype=torch.float64), "b": torch.zeros(())}
    noisy = with_noise({"a": sums["a"], "b": sums["b"].double()}, 3.0, SecureStream())
    assert noisy["a"].shape == (200, 100) and noisy["b"].shape == ()
    assert stats.kstest((noisy["a"].numpy().ravel() - 7) / 3, "norm").pvalue > 1e-6


def test_draws_are_of_the_size_asked_for_and_all_alike() -> None:
    seen = Counter(tuple(drawn_secretly(5, 2, SecureStream())) for _ in range(3000))
    assert set(seen) == set(combinations(range(5), 2))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-6


def test_a_hospital_among_few_costs_what_the_table_says() -> None:
    found = central_epsilons([Draw(10, 10)] * 100, 1.0, 1e-3)
    assert found.epsilon == found.draws_known == pytest.approx(80.03, abs=0.01) and found.relation == "add/remove"
    assert central_epsilons([Draw(10, 10)] * 100, 10.0, 1e-3).epsilon == pytest.approx(3.14, abs=0.01)
    with pytest.raises(ConfigError, match="cannot be drawn"):
        Draw(10, 11)


def test_a_cohort_of_fixed_size_is_never_accounted_for_too_low() -> None:
    """Held against the exact ε of one round without replacement, replace-one: a mixture of N(±1·2C …) against its neighbour."""
    sites, asked, sigma, delta = 20, 5, 4.0, 1e-3
    found = central_epsilons([Draw(sites, asked)], sigma, delta)
    assert found.relation == "replace-one"
    assert found.epsilon >= _exact_replace_one(asked / sites, sigma, delta)
    assert found.epsilon <= found.draws_known * 2.5
    # More rounds, a larger share or fewer sites never cost less.
    costs = [central_epsilons(draws, sigma, delta).epsilon for draws in ([Draw(20, 5)] * 40, [Draw(20, 10)] * 40)]
    assert found.epsilon < costs[0] < costs[1]
    mixed = central_epsilons([Draw(20, 5)] * 39 + [Draw(5, 5)], sigma, delta).epsilon
    assert mixed > costs[0]


def _exact_replace_one(rate: float, sigma: float, delta: float) -> float:
    """Least ε of one round along one direction: the exchanged hospital has +C where its neighbour has −C, and is drawn with rate q."""
    x = np.linspace(-12 * sigma, 12 * sigma, 400_001)
    base = stats.norm.pdf(x, 0, sigma)
    # The others add up to 0 here; who takes the place of the exchanged one adds nothing.
    first = rate * stats.norm.pdf(x, 1, sigma) + (1 - rate) * base
    second = rate * stats.norm.pdf(x, -1, sigma) + (1 - rate) * base
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        excess = np.trapezoid(np.maximum(first - math.exp(middle) * second, 0), x)
        low, high = (middle, high) if excess > delta else (low, middle)
    return high
