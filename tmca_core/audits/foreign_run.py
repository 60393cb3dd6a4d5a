"""The one-run audit of what others made: any callable training, or files of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmca_core.audits.external import NO_CONTROL, NO_POSITIVE, as_vector, digest, distribution_check, read_scores
from tmca_core.audits.guesses import CONTROL, attainable, bounds, guesses_for
from tmca_core.audits.interface import Arm, Audit, Claim, Evidence, Fixed
from tmca_core.audits.onerun import QUESTION, evidence, figures
from tmca_core.audits.scores import FEWEST, TURN, Scores, dealt_anew, turned_round
from tmca_core.audits.subjects import fair_coins
from tmca_core.errors import AuditInvalid, ConfigError

Training = Callable[[NDArray[np.bool_]], Any]
"""`training(inside)`, (m,) bool: trains once with the canaries that are True, and scores all m, higher where one seems to have been in."""

NO_QUIET = "nothing shows that these scores see a leak, for there is no positive control: name the same training without privacy by --quiet"


def of_step(
    training: Training,
    claim: Claim,
    *,
    canaries: int,
    guesses: int,
    beta: float,
    quiet: Training | None = None,
    name: str = "a training",
    quiet_name: str = "given",
) -> Audit:
    """The audit of any training: coins are dealt here, one training is made with the canaries they choose, and its scores are guessed by.

    Args:
        claim: as of `of_scores`.
        quiet: the same training without privacy, called once under coins of its own; without it the audit can refute and not pass. That
            it is the same in all else is its makers' word.

    Raises:
        ConfigError: more guesses than canaries.
        AuditInvalid: too few canaries.
    """
    if canaries < 2 * FEWEST:
        raise AuditInvalid(f"{canaries} canaries are too few: about half take part, and {FEWEST} of either kind are needed at least.")

    def trained(of: Training) -> Scores:
        inside = fair_coins(canaries)
        given = of(inside.copy())
        if isinstance(given, Mapping):
            raise AuditInvalid("the training gave a mapping: return one score for each canary, in the order of their coins.")
        scores = as_vector(given)
        if scores.size != canaries:
            raise AuditInvalid(f"the training gave {scores.size} scores for {canaries} canaries: return one for each, in their order.")
        return Scores(scores[inside], scores[~inside]).insist()

    own: dict[Arm, Callable[[], Scores]] = {"target": cache(lambda: trained(training))}
    if quiet:
        own["positive"] = cache(lambda: trained(quiet))
    registered: dict[str, Fixed] = {"step": name, "membership": "independent fair coins of the operating system"}
    registered["positive_control"] = f"the training without privacy: {quiet_name}" if quiet else NO_CONTROL
    threat = "The attack that scores the canaries, as the makers of this training describe it; each took part by a fair coin of its own."
    return _held(own, canaries, claim, guesses, beta, registered, threat, {}, "" if quiet else NO_QUIET)


def of_scores(path: Path, claim: Claim, *, guesses: int, beta: float) -> Audit:
    """The audit of canaries' scores from files, whose memberships were dealt by independent fair coins.

    Args:
        claim: with an `exact_mu` where the noise is known to be Gaussian; otherwise f-DP is told and holds nothing against it.

    Raises:
        ConfigError: no such files, or more guesses than canaries.
        AuditInvalid: scores of the target from which nothing follows; a control's make that control invalid when it is measured.
    """
    tables = read_scores(path)
    target = tables["target"].scores()
    own: dict[Arm, Callable[[], Scores]] = {arm: table.scores for arm, table in tables.items()} | {"target": lambda: target}
    registered: dict[str, Fixed] = {"scores": path.name, "scores_sha256": digest(path)}
    registered["positive_control"] = "from the files" if "positive" in tables else NO_CONTROL
    threat = "The attack that made these scores, as its makers describe it; memberships were dealt by independent fair coins."
    blind = "" if "positive" in tables else NO_POSITIVE
    count = len(target.members) + len(target.others)
    return _held(own, count, claim, guesses, beta, registered, threat, distribution_check(tables["target"]), blind)


def _held(
    own: Mapping[Arm, Callable[[], Scores]],
    canaries: int,
    claim: Claim,
    guesses: int,
    beta: float,
    registered: dict[str, Fixed],
    threat: str,
    told: dict[str, str],
    blind: str,
) -> Audit:
    """Scores by arm against a claim; a control that nobody has is membership itself, or membership dealt anew."""
    gaussian = claim.exact_mu is not None
    count = guesses or guesses_for(canaries, claim, beta, gaussian=gaussian)
    if count > canaries:
        raise ConfigError(f"--guesses {count} is more than the {canaries} canaries.")

    def measure(arm: Arm) -> Evidence:
        scores = own[arm]() if arm in own else own["target"]()
        if arm == "negative":
            dealt = scores if arm in own else dealt_anew(scores)
            return Evidence(bounds(dealt, count, claim, CONTROL * beta, limit=0.0, gaussian=gaussian), scores=dealt)
        if arm not in own:
            outside = len(scores.others)
            scores = Scores(np.arange(float(len(scores.members))) + outside, np.arange(float(outside)))
        limit = 0.0 if arm == "positive" and math.isinf(claim.epsilon) else None
        found = bounds(scores, count, claim, beta, limit=limit, gaussian=gaussian)
        made = evidence(scores, count, found, figures(scores, {}, count, claim, beta, gaussian=gaussian) | told)
        return replace(made, invalid=(*made.invalid, *turned_round(scores, TURN * beta)))

    fixed: dict[str, Fixed] = {
        **registered,
        "canaries": canaries,
        "guesses": count,
        "threshold": f"the {-(-count // 2)} highest scores took part, the {count // 2} lowest did not",
        "largest_attainable_epsilon": round(max(attainable(canaries, count, claim.delta, beta, gaussian=gaussian)), 6),
        "negative_control": "from the files" if "negative" in own else "membership dealt anew by independent coins",
        "share_of_error_negative_control": CONTROL,
        "share_of_error_turned_round": TURN,
    }
    return Audit("one-run", QUESTION, threat, claim, beta, fixed, measure, blind=blind)
