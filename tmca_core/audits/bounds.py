"""Lower bounds on ε and μ from what an attacker got right, with a stated confidence.

A mechanism is μ-GDP if telling its two neighbouring outputs apart is at least as hard as telling N(0, 1) from N(μ, 1) (Dong, Roth and
Su 2022). One step of the Gaussian mechanism with noise multiplier σ, without sampling, is exactly 1/σ-GDP, so nothing is lost there.
"""

from __future__ import annotations

import math

from tmca_core.errors import ConfigError

LARGEST_EPSILON = 700.0  # e^ε is still a number
LARGEST_MU = 36.0  # Φ of anything beyond is 1 in float64


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, beta: float) -> float:
    """The largest ε that `correct` right guesses refute, at confidence 1 − β; 0 where they refute none.

    Source: Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), theorem 5.2. X ~ Bin(r, 1/(1 + e^−ε)):
    p(ε) = P[X ≥ v] + 2mδ · max_{1 ≤ i ≤ v} P[v > X ≥ v − i] / i, and ε is refuted if p(ε) < β.

    Args:
        canaries: m, each included by an independent fair coin in the one training.
        guesses: r ≤ m, fixed beforehand; on the other canaries the attacker abstains.
        correct: v ≤ r.

    Raises:
        ConfigError: the numbers do not go together.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    _check(canaries, guesses, correct, delta, beta)
    if correct == 0:
        return 0.0
    import numpy as np

    steps = np.arange(1, correct + 1)

    def excess(epsilon: float) -> float:
        below = binom.cdf(np.arange(-1, correct), guesses, 1 / (1 + math.exp(-epsilon)))  # P[X ≤ k − 1], k = 0…v
        drop = float(((below[-1] - below[correct - steps]) / steps).max())
        return float(binom.sf(correct - 1, guesses, 1 / (1 + math.exp(-epsilon)))) + 2 * canaries * delta * drop - beta

    if excess(0.0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def fdp_mu(canaries: int, guesses: int, correct: int, beta: float) -> float:
    """The largest μ for which μ-GDP is refuted by `correct` right guesses, at confidence 1 − β; 0 where none is.

    Source: Mahloujifar, Melis and Chaudhuri 2024 (arXiv 2410.22235), algorithm 3, with the trade-off curve of μ-GDP.

    Raises:
        ConfigError: the numbers do not go together.
    """
    _check(canaries, guesses, correct, 0.0, beta)

    def refuted(mu: float) -> bool:
        return _least_share(canaries, guesses, correct, beta, mu) > guesses / canaries

    if correct == 0 or not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
        if high > LARGEST_MU:
            return low
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _least_share(canaries: int, guesses: int, correct: int, beta: float, mu: float) -> float:
    """R + H of the recursion: if it passes r/m, so many right guesses are rarer than β under μ-GDP."""
    from scipy.special import ndtr, ndtri

    right, wrong = beta * correct / canaries, beta * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least = max(wrong, float(ndtr(ndtri(right) - mu)))
        right = min(1.0, right + i / (guesses - i) * (least - wrong))
        wrong = least
    return right + wrong


def clopper_pearson_upper(count: int, trials: int, beta: float) -> float:
    """Upper end of the one-sided exact interval of a binomial share, confidence 1 − β.

    Source: Clopper and Pearson 1934.
    """
    from scipy.stats import beta as distribution

    return 1.0 if count >= trials else float(distribution.ppf(1 - beta, count + 1, trials - count))


def gdp_mu(false_positives: int, negatives: int, false_negatives: int, positives: int, beta: float) -> float:
    """The largest μ that a test with a threshold fixed beforehand refutes, at confidence 1 − β; 0 where it refutes none.

    Each error rate is bounded from above at 1 − β/2: μ = Φ⁻¹(1 − FPR⁺) − Φ⁻¹(FNR⁺). Source: Nasr et al. 2023 (arXiv 2302.07956).

    Args:
        false_positives: of `negatives` independent runs without the canary, those that were called "with".
        false_negatives: of `positives` independent runs with it, those that were called "without".

    Raises:
        ConfigError: the numbers do not go together.
    """
    from scipy.special import ndtri

    false_alarm, miss = _error_rates(false_positives, negatives, false_negatives, positives, beta)
    return max(0.0, float(ndtri(1 - false_alarm) - ndtri(miss)))


def threshold_epsilon(false_positives: int, negatives: int, false_negatives: int, positives: int, delta: float, beta: float) -> float:
    """The largest ε at δ that a test with a threshold fixed beforehand refutes for any mechanism, at confidence 1 − β; 0 where none is.

    Each error rate is bounded from above at 1 − β/2: ε is the larger of ln((1 − δ − FPR⁺)/FNR⁺) and ln((1 − δ − FNR⁺)/FPR⁺).
    Source: Kairouz, Oh and Viswanath 2015, theorem 2.1; Nasr et al. 2021 (arXiv 2101.04535).

    Args:
        false_positives, negatives, false_negatives, positives: as `gdp_mu` has them.

    Raises:
        ConfigError: the numbers do not go together.
    """
    false_alarm, miss = _error_rates(false_positives, negatives, false_negatives, positives, beta)
    largest = max((1 - delta - false_alarm) / miss, (1 - delta - miss) / false_alarm)
    return math.log(max(1.0, largest))


MOST_MU = 1e6
"""Beyond it δ(ε) is not told from 1, and nothing is kept of anybody."""


def epsilon_of_mu(mu: float, delta: float) -> float:
    """ε of μ-GDP at δ, exactly: δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2) (Dong, Roth and Su 2022, corollary 2.13)."""
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    if not (0 <= mu <= MOST_MU and 0 < delta < 1):
        raise ConfigError(f"μ = {mu:g} and δ = {delta:g}: μ lies between 0 and {MOST_MU:g}, above which nothing is kept, δ in (0, 1).")
    if mu == 0:
        return 0.0

    def excess(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu)) - math.exp(min(0.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)))) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """The μ whose ε at δ is `epsilon`: the Gaussian mechanism with the same guarantee; ∞ for ∞."""
    from scipy.optimize import brentq

    if not math.isfinite(epsilon):
        return math.inf
    high = 1.0
    while epsilon_of_mu(high, delta) < epsilon:
        high *= 2
    return float(brentq(lambda mu: epsilon_of_mu(mu, delta) - epsilon, 0.0, high, xtol=1e-10))


def _error_rates(false_positives: int, negatives: int, false_negatives: int, positives: int, beta: float) -> tuple[float, float]:
    """Upper ends of the false-positive and false-negative rate, together at confidence 1 − β."""
    if not (0 <= false_positives <= negatives and 0 <= false_negatives <= positives and negatives and positives and 0 < beta < 1):
        raise ConfigError(
            f"{false_positives} of {negatives} and {false_negatives} of {positives} errors at β = {beta:g} are no test: counts lie between "
            "0 and the number of runs, and β between 0 and 1."
        )
    return clopper_pearson_upper(false_positives, negatives, beta / 2), clopper_pearson_upper(false_negatives, positives, beta / 2)


def _check(canaries: int, guesses: int, correct: int, delta: float, beta: float) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ConfigError(
            f"{correct} right of {guesses} guesses on {canaries} canaries: guesses lie between 1 and the canaries, right ones between "
            "0 and the guesses."
        )
    if not (0 <= delta < 1 and 0 < beta < 1):
        raise ConfigError(f"δ = {delta:g} and β = {beta:g}: δ is at least 0 and below 1, β lies between 0 and 1.")
