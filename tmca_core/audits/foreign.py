"""The mechanism audit of what others made: any callable step, or a file of scores."""

from __future__ import annotations

import hashlib
from functools import cache, partial
from pathlib import Path

import numpy as np

from tmca_core.audits import canaries, repeats
from tmca_core.audits.canaries import BOUND, CONTROL, QUESTION, THREAT
from tmca_core.audits.external import NO_CONTROL, NO_POSITIVE, Step, as_vector, distribution_check, read_scores
from tmca_core.audits.interface import Arm, Audit, Bound, Claim, Evidence, Fixed
from tmca_core.audits.scores import FEWEST, Numbers, Scores, dealt_anew
from tmca_core.errors import AuditInvalid

ERRORS = 5  # standard errors by which the canary's trace in the runs may fall short of the one without noise
NO_QUIET = (
    "nothing shows that this audit would see the canary in this step, for there is no positive control: name the same step without noise "
    "by --quiet"
)


def of_step(
    step: Step, claim: Claim, *, runs: int, beta: float, quiet: Step | None = None, clip: float = 0.0, name: str = "a step"
) -> Audit:
    """The audit of any callable step.

    Direction and threshold come from `quiet`, the same step without noise; where there is none, from pilot releases, a quarter of the
    runs, that are not used again, and the audit is blind: its positive control is membership itself as the score, which says that so
    many runs could refute the claim and nothing about the step.
    With `clip`, the clipping norm in the units of a release, the trace and (where σ is claimed) the noise's size are measured as well.
    A release of many numbers needs `quiet`: pilots find the direction of a trace of one clip only where √(numbers / pilots) is small.
    """
    controls = canaries.enough(claim.mu, BOUND * beta, runs)
    pilots = 0 if quiet else max(2, runs // 4)

    sizes: set[int] = set()

    def release(member: bool, of: Step = step) -> Numbers:
        value = as_vector(of(member))
        sizes.add(value.size)
        if len(sizes) > 1 or not np.isfinite(value).all():
            raise AuditInvalid("the step's releases hold numbers that are not finite, or are not always as long: they cannot be compared.")
        return value

    def silent(member: bool) -> Numbers:
        return release(member, quiet) if quiet else np.array([float(member)])

    test = cache(lambda: canaries.exact(silent) if quiet else canaries.pilot(release, pilots))
    again = cache(lambda: repeats.repeated(partial(release, False)))

    def measure(arm: Arm) -> Evidence:
        if arm == "positive":
            scores = canaries.run(silent, canaries.exact(silent), controls)
            return Evidence((canaries.bound(scores, canaries.exact(silent).threshold, claim.mu, BOUND * beta),), scores=scores)
        if alarm := again():  # runs would fit the one noise that there is
            largest = canaries.attainable(runs, runs, BOUND * beta)
            nothing = Bound(canaries.NAME, "μ", 0.0, claim.mu, largest, 1 - BOUND * beta)
            return Evidence((nothing,), (alarm,)) if arm == "target" else Evidence()
        if arm == "negative":
            scores = canaries.run(lambda member: release(False), test(), controls)
            return Evidence((canaries.bound(scores, test().threshold, 0.0, CONTROL * beta),), scores=scores)
        numbers, alarms, trace = len(test().direction), [], None
        if clip and quiet:
            trace = float(np.linalg.norm(silent(True) - silent(False))) / clip
            alarms += canaries.beyond(trace)
        if clip and claim.exact_mu:
            small = repeats.too_small(partial(release, False), clip / claim.exact_mu, [("a release", numbers)], canaries.SIZE * beta)
            alarms += [small] if small else []
        scores = canaries.run(release, test(), runs)
        bound = canaries.bound(scores, test().threshold, claim.mu, BOUND * beta)
        told = canaries.figures(bound.value, claim, trace, numbers)
        found = Evidence((bound,), tuple(alarms), scores=scores, figures=told)
        if quiet and not found.flagged and (other := _elsewhere(scores, float(np.linalg.norm(silent(True) - silent(False))))):
            return Evidence(invalid=(other,), scores=scores, figures=told)
        return found

    registered: dict[str, Fixed] = {
        "step": name,
        "runs_each": runs,
        "pilot_runs_each": pilots,
        "control_runs_each": controls,
        "threshold": "half way between two releases without noise" if quiet else "of the pilot",
        "positive_control": "the step without noise" if quiet else NO_CONTROL,
        "clip": clip or "not given",
        "share_of_error_bound": BOUND,
        "share_of_error_noise_size": canaries.SIZE if clip else 0.0,
        "share_of_error_negative_control": CONTROL,
    }
    return Audit("mechanism", QUESTION, THREAT, claim, beta, registered, measure, blind="" if quiet else NO_QUIET)


def _elsewhere(scores: Scores, trace: float) -> str:
    """Why the runs are not of the step that was shown without noise: the canary moves them clearly less; empty where it does not."""
    moved = float(scores.members.mean() - scores.others.mean())
    error = float(np.sqrt(scores.members.var() / len(scores.members) + scores.others.var() / len(scores.others)))
    if moved >= trace - ERRORS * error:
        return ""
    return (
        f"the canary moves the step by {moved:.3g} ± {error:.2g} along its trace and the step without noise by {trace:.3g}: --quiet is not "
        "this step, so what it shows of the audit's power does not hold"
    )


def of_scores(path: Path, claim: Claim, *, beta: float, threshold: float | None = None) -> Audit:
    """The audit of scores from files; without a threshold every second score of either kind chooses it, the others are judged.

    Raises:
        ConfigError: no such files.
        AuditInvalid: scores from which nothing follows.
    """
    tables = read_scores(path)
    made = {arm: table.scores() for arm, table in tables.items()}
    target = made["target"]
    if threshold is None:
        fixed = canaries.best_threshold(Scores(target.members[::2], target.others[::2]))
        groups = [None if names is None else names[1::2] for names in (target.member_groups, target.other_groups)]
        target = Scores(target.members[1::2], target.others[1::2], *groups).insist(FEWEST // 2)
    else:
        fixed = threshold

    def measure(arm: Arm) -> Evidence:
        if arm == "target":
            bound = canaries.bound(target, fixed, claim.mu, BOUND * beta)
            told = canaries.figures(bound.value, claim, None, None) | distribution_check(tables["target"])
            return Evidence((bound,), scores=target, figures=told)
        if arm in made:
            scores, at = made[arm], fixed
        elif arm == "positive":
            scores, at = Scores(np.ones(len(target.members)), np.zeros(len(target.others))), 0.5
        else:
            scores, at = dealt_anew(target), fixed
        limit, share = (claim.mu, BOUND) if arm == "positive" else (0.0, CONTROL)
        return Evidence((canaries.bound(scores, at, limit, share * beta),), scores=scores)

    registered: dict[str, Fixed] = {
        "scores": path.name,
        "scores_sha256": hashlib.sha256(target.members.tobytes() + target.others.tobytes()).hexdigest(),
        "threshold": fixed,
        "threshold_from": "given" if threshold is not None else "every second score, which is not judged",
        "positive_control": "from the files" if "positive" in made else NO_CONTROL,
        "negative_control": "from the files" if "negative" in made else "membership dealt anew by independent coins",
    }
    threat, blind = "The attack that made these scores, as its makers describe it.", "" if "positive" in made else NO_POSITIVE
    return Audit("mechanism", QUESTION, threat, claim, beta, registered, measure, blind=blind)
