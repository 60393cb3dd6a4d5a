"""The mechanism audit of what others made: any callable step, or a file of scores."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from tmca_core.audits import canaries, repeats
from tmca_core.audits.canaries import BOUND, CONTROL, QUESTION, THREAT
from tmca_core.audits.external import NO_CONTROL, NO_POSITIVE, Step, as_vector, digest, distribution_check, read_scores
from tmca_core.audits.interface import Arm, Audit, Claim, Evidence, Fixed
from tmca_core.audits.scores import FEWEST, TURN, Numbers, Scores, dealt_anew, turned_round
from tmca_core.errors import AuditInvalid

ERRORS = 5  # standard errors by which the canary's trace in the runs may fall short of the one without noise
CLEARLY = 2.33  # standard errors by which it must lie above 0: runs of a canary that moves them elsewhere do so once in a hundred audits
NO_QUIET = (
    "nothing shows that this audit would see the canary in this step, for there is no positive control: name the same step without noise "
    "by --quiet"
)


def of_step(
    step: Step,
    claim: Claim,
    *,
    runs: int,
    beta: float,
    quiet: Step | None = None,
    clip: float = 0.0,
    name: str = "a step",
    quiet_name: str = "given",
) -> Audit:
    """The audit of any callable step.

    Direction and threshold come from `quiet`, the same step without noise; where there is none, from pilot releases, a quarter of the
    runs, that are not used again, and the audit is blind: its positive control is membership itself as the score, which says that so
    many runs could refute the claim and nothing about the step. Of an (ε, δ) claim the threshold comes from pilots in any case, for which
    one is best depends on the noise.
    With `clip`, the clipping norm in the units of a release, the trace and (where σ is claimed) the noise's size are measured as well.
    A release of many numbers needs `quiet`: pilots find the direction of a trace of one clip only where √(numbers / pilots) is small.
    """
    limit, delta = canaries.held_against(claim)
    controls = canaries.enough(limit, BOUND * beta, runs, delta)
    pilots = 0 if quiet and delta is None else max(2, runs // 4)

    sizes: set[int] = set()

    def release(member: bool, of: Step = step) -> Numbers:
        value = as_vector(of(member))
        sizes.add(value.size)
        if len(sizes) > 1 or not np.isfinite(value).all():
            raise AuditInvalid("the step's releases hold numbers that are not finite, or are not always as long: they cannot be compared.")
        return value

    def silent(member: bool) -> Numbers:
        return release(member, quiet) if quiet else np.array([float(member)])

    @cache
    def test() -> canaries.Test:
        if not quiet:
            return canaries.pilot(release, pilots, delta)
        along = canaries.exact(silent)
        if delta is None:
            return along
        return replace(along, threshold=canaries.best_threshold(canaries.run(release, along, pilots), delta))

    again = cache(lambda: repeats.repeated(partial(release, False)))

    def measure(arm: Arm) -> Evidence:
        if arm == "positive":
            scores = canaries.run(silent, canaries.exact(silent), controls)
            return Evidence((canaries.bound(scores, canaries.exact(silent).threshold, limit, BOUND * beta, delta),), scores=scores)
        if alarm := again():  # runs would fit the one noise that there is
            nothing = canaries.bound(Scores(np.zeros(runs), np.zeros(runs)), 0.0, limit, BOUND * beta, delta)
            return Evidence((nothing,), (alarm,)) if arm == "target" else Evidence()
        if arm == "negative":
            scores = canaries.run(lambda member: release(False), test(), controls)
            return Evidence((canaries.bound(scores, test().threshold, 0.0, CONTROL * beta, delta),), scores=scores)
        numbers, alarms, trace = len(test().direction), [], None
        if clip and quiet:
            trace = float(np.linalg.norm(silent(True) - silent(False))) / clip
            alarms += canaries.beyond(trace)
        if clip and claim.exact_mu:
            small = repeats.too_small(partial(release, False), clip / claim.exact_mu, [("a release", numbers)], canaries.SIZE * beta)
            alarms += [small] if small else []
        scores = canaries.run(release, test(), runs)
        bound = canaries.bound(scores, test().threshold, limit, BOUND * beta, delta)
        told = canaries.figures(canaries.bound(scores, test().threshold, limit, BOUND * beta).value, claim, trace, numbers)
        found = Evidence((bound,), tuple(alarms), scores=scores, figures=told)
        if quiet and bound.powerful and not found.flagged:
            return replace(found, invalid=_not_shown(scores, float(np.linalg.norm(silent(True) - silent(False)))))
        return found

    registered: dict[str, Fixed] = {
        "step": name,
        "runs_each": runs,
        "pilot_runs_each": pilots,
        "control_runs_each": controls,
        "threshold": "of the pilot" if pilots else "half way between two releases without noise",
        "positive_control": f"the step without noise: {quiet_name}" if quiet else NO_CONTROL,
        "clip": clip or "not given",
        "share_of_error_bound": BOUND,
        "share_of_error_noise_size": canaries.SIZE if clip else 0.0,
        "share_of_error_negative_control": CONTROL,
    }
    return Audit("mechanism", QUESTION, THREAT, claim, beta, registered, measure, blind="" if quiet else NO_QUIET)


def _not_shown(scores: Scores, trace: float) -> tuple[str, ...]:
    """Why the runs do not show the canary where the step without noise has it, so that a leak elsewhere would pass; empty where they do.

    They must show both: a movement along the trace, and not clearly less of it.
    """
    moved = float(scores.members.mean() - scores.others.mean())
    error = float(np.sqrt(scores.members.var() / len(scores.members) + scores.others.var() / len(scores.others)))
    seen = f"the canary moves the step by {moved:.3g} ± {error:.2g} along its trace and the step without noise by {trace:.3g}"
    if moved < trace - ERRORS * error:
        return (f"{seen}: --quiet is not this step, so what it shows of the audit's power does not hold",)
    if moved < CLEARLY * error:
        runs = len(scores.members) * max(2, math.ceil((2 * CLEARLY * error / trace) ** 2))
        return (
            f"{seen}: so few runs do not show that the canary moves this step there at all, and a leak elsewhere would not be seen. Take "
            f"{runs} --runs",
        )
    return ()


def of_scores(path: Path, claim: Claim, *, beta: float, threshold: float | None = None) -> Audit:
    """The audit of scores from files; without a threshold every second patient of either kind chooses it, the others are judged.

    Raises:
        ConfigError: no such files.
        AuditInvalid: scores of the target from which nothing follows; a control's make that control invalid when it is measured.
    """
    tables = read_scores(path)
    most, delta = canaries.held_against(claim)

    @cache
    def judged(arm: Arm) -> tuple[Scores, float]:
        scores = tables[arm].scores()
        return (scores, threshold) if threshold is not None else _halved(scores, delta)

    target, fixed = judged("target")
    thresholds: dict[str, Fixed] = {}
    for control in tables.keys() - {"target"}:
        with suppress(Exception):  # an unusable control has no threshold, and says why when it is measured
            thresholds[f"threshold_of_{control}_control"] = judged(control)[1]

    def measure(arm: Arm) -> Evidence:
        if arm == "target":
            bound = canaries.bound(target, fixed, most, BOUND * beta, delta)
            told = canaries.figures(canaries.bound(target, fixed, most, BOUND * beta).value, claim, None, None)
            told |= distribution_check(tables["target"])
            return Evidence((bound,), invalid=turned_round(target, TURN * beta), scores=target, figures=told)
        if arm in tables:
            scores, at = judged(arm)
        elif arm == "positive":
            scores, at = Scores(np.ones(len(target.members)), np.zeros(len(target.others))), 0.5
        else:
            scores, at = dealt_anew(target), fixed
        limit, share = (most, BOUND) if arm == "positive" else (0.0, CONTROL)
        return Evidence((canaries.bound(scores, at, limit, share * beta, delta),), scores=scores)

    registered: dict[str, Fixed] = {
        "scores": path.name,
        "scores_sha256": digest(path),
        "threshold": fixed,
        "threshold_from": "given" if threshold is not None else "every second patient, who is not judged",
        "positive_control": "from the files" if "positive" in tables else NO_CONTROL,
        **thresholds,
        "negative_control": "from the files" if "negative" in tables else "membership dealt anew by independent coins",
    }
    threat, blind = "The attack that made these scores, as its makers describe it.", "" if "positive" in tables else NO_POSITIVE
    return Audit("mechanism", QUESTION, threat, claim, beta, registered, measure, blind=blind)


def _halved(scores: Scores, delta: float | None) -> tuple[Scores, float]:
    """Every second patient of either kind chooses the threshold, by which the others are judged.

    Controls go the target's way by themselves: without noise, scores lie elsewhere.
    """
    fixed = canaries.best_threshold(Scores(scores.members[::2], scores.others[::2]), delta)
    return Scores(scores.members[1::2], scores.others[1::2]).insist(FEWEST // 2), fixed
