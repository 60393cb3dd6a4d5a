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


STEINKE_NAME, FDP_NAME = "one run (Steinke et al. 2023)", "one run, f-DP (Mahloujifar et al. 2024)"


def guesses_for(canaries: int, claim: Claim, beta: float, *, gaussian: bool = True) -> int:
    """How many guesses to make: few, for the surest are the rightest, but so many that all right would refute the claim with ease.

    Where even a guess on every canary could not, that many: the audit then says that it has no power. `gaussian` as `bounds` has it.
    """
    guesses = max(2, round(FEW * canaries))
    if math.isfinite(claim.epsilon):
        while guesses < canaries and attainable(canaries, guesses, claim.delta, beta, gaussian=gaussian)[-1] < MARGIN * claim.epsilon:
            guesses = min(canaries, guesses + max(1, canaries // 20))
    return guesses


def attainable(canaries: int, guesses: int, delta: float, beta: float, *, gaussian: bool = True) -> tuple[float, ...]:
    """The largest ε by every bound that is held against the claim, every guess right."""
    return tuple(value for _, value, _ in _found(canaries, guesses, guesses, delta, beta, gaussian))


def right(scores: Scores, guesses: int) -> int:
    """How many of `guesses` guesses are right: the highest ⌈r/2⌉ scores are called members and the lowest ⌊r/2⌋ non-members.

    Which of equal scores is guessed is a matter of lots (`Scores.order`): right by chance, and valid as any guess is.
    """
    guesses = min(guesses, len(scores.order))
    most, least = -(-guesses // 2), guesses // 2
    member = scores.order < len(scores.members)
    return int(member[len(member) - most :].sum() + (~member[:least]).sum())


def undecided(scores: Scores, guesses: int) -> tuple[str, ...]:
    """Why a low number of right guesses does not speak for the system: lots, not scores, chose who is guessed. Empty where none did."""
    guesses = min(guesses, len(scores.order))
    most, least = -(-guesses // 2), guesses // 2
    values = np.concatenate([scores.members, scores.others])[scores.order]
    tied = sum(
        int((values == values[end]).sum())
        for end in {least, len(values) - most}
        if 0 < end < len(values) and values[end - 1] == values[end]
    )
    if not tied:
        return ()
    return (
        f"{tied} scores are tied where guesses end, so lots chose some of the {guesses} that were guessed, and an attack that tells these "
        "apart may find more. Score with more digits",
    )


def bounds(
    scores: Scores, guesses: int, claim: Claim, beta: float, *, limit: float | None = None, gaussian: bool = True
) -> tuple[Bound, ...]:
    """The bounds on ε from one training: of any mechanism, and of a Gaussian one.

    Args:
        claim: gives δ, and the ε that is held against.
        beta: of the whole audit, or what of it is spent here.
        limit: ε to be held against in the place of the claim's.
        gaussian: the noise is known to be Gaussian, as the project's own is. Otherwise the f-DP bound, whose null hypothesis is μ-GDP,
            would refute honest mechanisms of other noise: it is left out, and the first has its share of β as well.
    """
    canaries = len(scores.members) + len(scores.others)
    guesses = min(guesses, canaries)
    found = _found(canaries, guesses, right(scores, guesses), claim.delta, beta, gaussian)
    top = attainable(canaries, guesses, claim.delta, beta, gaussian=gaussian)
    held = claim.epsilon if limit is None else limit
    return tuple(Bound(name, "ε", value, held, most, 1 - share) for (name, value, share), most in zip(found, top, strict=True))


def as_if_gaussian(scores: Scores, guesses: int, claim: Claim, beta: float) -> float:
    """ε by the f-DP bound at its share of β: valid where the noise is Gaussian, and for information elsewhere."""
    canaries = len(scores.members) + len(scores.others)
    guesses = min(guesses, canaries)
    return epsilon_of_mu(fdp_mu(canaries, guesses, right(scores, guesses), FDP * beta), claim.delta)


def _found(canaries: int, guesses: int, correct: int, delta: float, beta: float, gaussian: bool) -> list[tuple[str, float, float]]:
    """Name, ε and share of β of every bound."""
    share = (STEINKE if gaussian else STEINKE + FDP) * beta
    found = [(STEINKE_NAME, one_run_epsilon(canaries, guesses, correct, delta, share), share)]
    if gaussian:
        found.append((FDP_NAME, epsilon_of_mu(fdp_mu(canaries, guesses, correct, FDP * beta), delta), FDP * beta))
    return found
