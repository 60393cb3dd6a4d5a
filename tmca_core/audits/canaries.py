"""One-step canary runs: releases with and without one record, told apart by a threshold that was fixed before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tmca_core.audits.bounds import epsilon_of_mu, gdp_mu, threshold_epsilon
from tmca_core.audits.interface import Bound, Claim
from tmca_core.audits.scores import Numbers, Scores
from tmca_core.errors import AuditInvalid
from tmca_core.privacy.accounting import finite

BOUND, SIZE, CONTROL = 0.8, 0.01, 0.1
"""Shares of the error probability: the bound, the test of the noise's size, the negative control. Repeats are found without error."""

QUESTION = "Can somebody who sees one training step tell whether one patient took part, better than the noise allows?"
THREAT = (
    "Worst case: the attacker knows every other patient, the network, the place of a canary patient made to be found, and sees one whole "
    "release; only the noise is secret. Everybody is drawn, so no protection by sampling is counted."
)
SLACK = 1e-4  # of float32 sums
NAME = "canary runs, Clopper-Pearson μ-GDP"
NAME_OF_ANY = "canary runs, Clopper-Pearson (ε, δ)"
CANDIDATES = 41  # thresholds that a pilot chooses among


@dataclass(frozen=True)
class Test:
    """A release is called "with the canary" where its projection on `direction` passes `threshold`; fixed before the runs."""

    direction: Numbers
    threshold: float

    def score(self, release: Numbers) -> float:
        """A release's projection.

        Raises:
            AuditInvalid: it holds a number that is not finite.
        """
        value = float(self.direction @ release)
        if not np.isfinite(value):
            raise AuditInvalid("a release holds numbers that are not finite: nothing can be told from it.")
        return value


def run(release: Callable[[bool], Numbers], test: Test, runs: int) -> Scores:
    """Scores of `runs` fresh releases with the canary and as many without, in turns."""
    found = np.array([[test.score(release(True)), test.score(release(False))] for _ in range(runs)])
    return Scores(found[:, 0], found[:, 1])


def held_against(claim: Claim) -> tuple[float, float | None]:
    """The most that the claim allows, and the δ that goes with it: μ and None of a Gaussian mechanism, else ε and δ.

    An (ε, δ) claim promises nothing of μ: with a threshold half way, Laplace noise of ε = 1 is as easy to tell apart as Gaussian noise of
    μ = 1, whose ε at 1e-5 is 4.4.
    """
    return (claim.exact_mu, None) if claim.exact_mu is not None else (claim.epsilon, claim.delta)


def bound(scores: Scores, threshold: float, claim: float, beta: float, delta: float | None = None) -> Bound:
    """The bound that the errors at the threshold give, with the largest that so many runs could give.

    Args:
        claim: μ to be held against; ε where there is a `delta`.
        delta: bounds ε at this δ of any mechanism; None: μ of a Gaussian one.
    """
    members, others = len(scores.members), len(scores.others)
    false_alarms, misses = int((scores.others > threshold).sum()), int((scores.members <= threshold).sum())
    name, measure = (NAME, "μ") if delta is None else (NAME_OF_ANY, "ε")
    value = _bounded(false_alarms, others, misses, members, beta, delta)
    return Bound(name, measure, value, claim, attainable(members, others, beta, delta), confidence=1 - beta)


def attainable(members: int, others: int, beta: float, delta: float | None = None) -> float:
    """The bound of runs without any error."""
    return _bounded(0, others, 0, members, beta, delta)


def _bounded(false_alarms: int, others: int, misses: int, members: int, beta: float, delta: float | None) -> float:
    if delta is None:
        return gdp_mu(false_alarms, others, misses, members, beta)
    return threshold_epsilon(false_alarms, others, misses, members, delta, beta)


def enough(claim: float, beta: float, most: int, delta: float | None = None) -> int:
    """Fewest runs of either kind, doubling from 100 and at most `most`, in which a control without noise passes the claim clearly."""
    runs = 100
    while runs < most and attainable(runs, runs, beta, delta) < 1.1 * claim:
        runs *= 2
    return min(runs, most)


def pilot(release: Callable[[bool], Numbers], runs: int, delta: float | None = None) -> Test:
    """A test for a step about which nothing is known: the mean difference of pilot releases, which are not used again.

    Raises:
        AuditInvalid: there is no difference.
    """
    with_it, without = (np.stack([release(member) for _ in range(runs)]) for member in (True, False))
    difference = with_it.mean(0) - without.mean(0)
    length = float(np.linalg.norm(difference))
    if not (np.isfinite(length) and length > 0):
        raise AuditInvalid("pilot releases with and without the canary have the same mean, or numbers that are not finite.")
    direction = difference / length
    half = runs // 2  # the direction was fitted to all of them, so the threshold is only a guess: the runs decide
    return Test(direction, best_threshold(Scores(with_it[half:] @ direction, without[half:] @ direction), delta))


def exact(quiet: Callable[[bool], Numbers]) -> Test:
    """The test of a step whose noise can be switched off: along the canary's trace, half way.

    Raises:
        AuditInvalid: the canary leaves no trace.
    """
    without, with_it = quiet(False), quiet(True)
    length = float(np.linalg.norm(with_it - without))
    if not (np.isfinite(length) and length > 0):
        raise AuditInvalid("the canary leaves no trace in a step without noise: nothing could be found.")
    direction = (with_it - without) / length
    return Test(direction, float(direction @ (with_it + without)) / 2)


def best_threshold(scores: Scores, delta: float | None = None) -> float:
    """The threshold at which pilot scores give the largest bound, half way between the medians where none gives any.

    To be used on other scores only. Nothing is what honest scores give: the first of many equal candidates would then be the lowest, at
    which not even scores without privacy are told apart.
    """
    pooled = np.concatenate([scores.members, scores.others])
    middle = (np.median(scores.members) + np.median(scores.others)) / 2
    candidates = np.quantile(pooled, np.linspace(0, 1, CANDIDATES + 2)[1:-1])
    return float(max([middle, *candidates], key=lambda threshold: bound(scores, float(threshold), np.inf, 0.05, delta).value))


def beyond(trace: float) -> list[str]:
    """The alarm of a canary that moves the sum before noise by more than the clip that is accounted for."""
    return [f"the canary moves the sum before noise by {trace:.4g} clips, and 1 is accounted for"] if not trace <= 1 + SLACK else []


def figures(mu: float, claim: Claim, trace: float | None, numbers: int | None) -> dict[str, Any]:
    """What the report states beside the bound.

    Args:
        mu: bound on μ; for information only where the claim is not of a Gaussian mechanism.
        trace: how far the canary moves the sum before noise, clips; None where it is not known.
        numbers: of a release; None where only scores are known.
    """
    found: dict[str, Any] = {"ε of this μ at δ, at least": epsilon_of_mu(mu, claim.delta), "ε claimed": finite(claim.epsilon)}
    if claim.exact_mu is None:
        found = {"for information, μ if the mechanism were Gaussian, at least": mu, "ε claimed": finite(claim.epsilon)}
    if trace is not None:
        found["the canary's trace before noise, clips"] = trace
    if numbers is not None:
        found["numbers of a release"] = numbers
    return found
