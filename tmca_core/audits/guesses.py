"""From scores of records whose membership was dealt by independent coins to what one training leaks: guesses, counted and bounded.

The highest scores are guessed "took part", as many of the lowest "did not", and on those between nothing is said. How many guesses
are made is fixed beforehand, from the claim alone.
"""

from __future__ import annotations

import math

import numpy as np

from tmca_core.audits.bounds import epsilon_of_mu, fdp_mu, one_run_epsilon
from tmca_core.audits.interface import Bound, Claim
from tmca_core.audits.scores import Scores

STEINKE, FDP, CONTROL = 0.45, 0.45, 0.1
"""Shares of the error probability: either bound, and the negative control (halved between both)."""

FEW, MARGIN = 0.3, 1.1
"""Share of the canaries that is guessed where nothing is promised, and what the largest bound must be in parts of the claim."""


def guesses_for(canaries: int, claim: Claim, beta: float) -> int:
    """How many guesses to make: few, for the surest are the rightest, but so many that all right would refute the claim with ease.

    Where even a guess on every canary could not, that many: the audit then says that it has no power.
    """
    guesses = max(2, round(FEW * canaries))
    if math.isfinite(claim.epsilon):
        while guesses < canaries and attainable(canaries, guesses, claim.delta, beta)[1] < MARGIN * claim.epsilon:
            guesses = min(canaries, guesses + max(1, canaries // 20))
    return guesses


def attainable(canaries: int, guesses: int, delta: float, beta: float) -> tuple[float, float]:
    """The largest ε by either bound, every guess right."""
    return _both(canaries, guesses, guesses, delta, STEINKE * beta, FDP * beta)


def right(scores: Scores, guesses: int) -> int:
    """How many of `guesses` guesses are right: the highest ⌈r/2⌉ scores are called members and the lowest ⌊r/2⌋ non-members.

    Ties are ordered so that they count against the attack.
    """
    pooled = np.concatenate([scores.members, scores.others])
    member = np.r_[np.ones(len(scores.members), bool), np.zeros(len(scores.others), bool)]
    guesses = min(guesses, len(pooled))
    most, least = -(-guesses // 2), guesses // 2
    top, bottom = np.lexsort((member, -pooled))[:most], np.lexsort((~member, pooled))[:least]
    return int(member[top].sum() + (~member[bottom]).sum())


def bounds(scores: Scores, guesses: int, claim: Claim, beta: float, *, limit: float | None = None) -> tuple[Bound, Bound]:
    """Both bounds on ε from one training.

    Args:
        claim: gives δ, and the ε that is held against.
        beta: of the whole audit, or what of it is spent here.
        limit: ε to be held against in the place of the claim's.
    """
    canaries = len(scores.members) + len(scores.others)
    guesses = min(guesses, canaries)
    found = _both(canaries, guesses, right(scores, guesses), claim.delta, STEINKE * beta, FDP * beta)
    top = attainable(canaries, guesses, claim.delta, beta)
    held = claim.epsilon if limit is None else limit
    names = ("one run (Steinke et al. 2023)", "one run, f-DP (Mahloujifar et al. 2024)")
    first, second = (
        Bound(name, "ε", value, held, most, 1 - share * beta)
        for name, value, most, share in zip(names, found, top, (STEINKE, FDP), strict=True)
    )
    return first, second


def _both(canaries: int, guesses: int, correct: int, delta: float, beta_steinke: float, beta_fdp: float) -> tuple[float, float]:
    mu = fdp_mu(canaries, guesses, correct, beta_fdp)
    return one_run_epsilon(canaries, guesses, correct, delta, beta_steinke), epsilon_of_mu(mu, delta)
