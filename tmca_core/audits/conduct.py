"""Conducting an audit: fix it beforehand, measure three arms, judge."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tmca_core.audits import attempts
from tmca_core.audits.interface import EXIT_CODES, Arm, Audit, Bound, Evidence, Verdict
from tmca_core.errors import ConfigError, TmcaError
from tmca_core.run import write_atomically

ARMS: tuple[Arm, ...] = ("target", "positive", "negative")


@dataclass(frozen=True)
class Report:
    """The outcome of one audit.

    Attributes:
        name: of the audit.
        verdict: PASS, FAIL, NO POWER or INVALID.
        sentence: the verdict for a data-protection officer.
        reasons: what the verdict rests on, a sentence each.
        audit: what was conducted; None where the material did not even allow to begin.
        evidence: by arm; empty where nothing was measured.
        registration: sha256 of what was fixed beforehand.
        attempts: earlier ones in the same folder, oldest first, as `attempts.jsonl` has them.
        applies: False where the configuration leaves nothing for this audit to test: among several audits it is told and does not decide.
    """

    name: str
    verdict: Verdict
    sentence: str
    reasons: tuple[str, ...]
    audit: Audit | None = None
    evidence: Mapping[Arm, Evidence] = field(default_factory=dict)
    registration: str = ""
    attempts: tuple[Mapping[str, Any], ...] = ()
    applies: bool = True

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """As audit.json and `--json` have it."""
        target, audit = self.evidence.get("target", Evidence()), self.audit
        value: dict[str, Any] = {
            "schema": 1,
            "audit": self.name,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "attempt": len(self.attempts) + 1,
            "earlier_attempts": [dict(attempt) for attempt in self.attempts],
            "claim": audit.claim.to_json() if audit else {},
            "bounds": [bound.to_json() for bound in target.bounds],
            "controls": {arm: self._control(arm) for arm in ARMS[1:] if arm in self.evidence},
            "threat_model": audit.threat_model if audit else "",
            "beta": audit.beta if audit else None,
            "registered": {**audit.registered, "sha256": self.registration} if audit else {},
            "figures": dict(target.figures),
        }
        if target.scores:
            value["scores"] = target.scores.summary()
        return value

    def _control(self, arm: Arm) -> dict[str, Any]:
        evidence = self.evidence[arm]
        return {
            "flagged": evidence.flagged,
            "as_it_must": evidence.flagged == (arm == "positive") and not evidence.invalid,
            "bounds": [bound.to_json() for bound in evidence.bounds],
            "alarms": list(evidence.alarms),
            "invalid": list(evidence.invalid),
            **({"first_look": evidence.first_look} if evidence.first_look else {}),
            **({"scores": evidence.scores.summary()} if evidence.scores else {}),
        }


def conduct(audit: Audit, folder: Path) -> Report:
    """Write down what is fixed, measure target and controls, judge. Nothing but `registered.json` and `attempts.jsonl` is written.

    What goes wrong in one arm makes that arm invalid and no other: a control that breaks takes nothing from what the target showed.

    Raises:
        ConfigError: the folder holds another audit, fixed otherwise.
    """
    registration = register(audit, folder)
    begun = attempts.begin(audit.name, folder)
    try:
        evidence = {ARMS[0]: audit.measure(ARMS[0])}
    except TmcaError as error:
        return invalid(audit.name, str(error), folder, audit, registration, begun=begun)
    evidence |= {arm: _control(audit, arm) for arm in ARMS[1:]}
    verdict, reasons = judge(evidence, audit.blind)
    said = sentence(verdict, reasons, audit, evidence["target"])
    return _counted(Report(audit.name, verdict, said, reasons, audit, evidence, registration), folder, begun)


def _control(audit: Audit, arm: Arm) -> Evidence:
    """Evidence of a control; whatever breaks in it, memory and libraries too, makes it invalid and does not discard the target's.

    A negative control that is flagged is measured once more: what its share of β lets chance do is seldom done twice, and a control
    that is broken is flagged again.
    """
    try:
        found = audit.measure(arm)
        if arm == "negative" and found.flagged:
            return replace(audit.measure(arm), first_look=_flags(found))
        return found
    except Exception as error:
        return Evidence(invalid=(reason_of(error).rstrip("."),))


def reason_of(error: Exception) -> str:
    """An error as a reason; of one that is not the project's own its type is named, for its words alone say little."""
    return str(error) if isinstance(error, TmcaError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def invalid(
    name: str,
    reason: str,
    folder: Path | None,
    audit: Audit | None = None,
    registration: str = "",
    *,
    applies: bool = True,
    begun: int | None = None,
) -> Report:
    """The report of an audit whose material allows no measurement.

    Args:
        folder: whose list of attempts gets it; None: it was no attempt, for the folder belongs to something else.
        begun: line of the list that says that it began.
    """
    reason = reason.rstrip(".")
    said = sentence("INVALID", (reason,), audit, Evidence())
    report = Report(name, "INVALID", said, (reason,), audit, registration=registration, applies=applies)
    return _counted(report, folder, begun) if folder else report


def failed_before(name: str, folder: Path) -> Report | None:
    """The report of an audit that is not conducted now and failed in this folder before, or may have; None where it did not."""
    try:
        before = attempts.of(name, folder)
    except ConfigError as error:
        return invalid(name, str(error), None)
    failed = next(iter(attempts.numbers(before, "FAIL")), 0)
    if not failed:
        return None
    reason = f"attempt {failed} in this folder failed, and to leave this audit out now takes nothing back"
    return Report(name, "FAIL", f"{reason}. It said: {before[failed - 1]['sentence']}", (reason,), attempts=before)


def _counted(report: Report, folder: Path, begun: int | None = None) -> Report:
    """Append the attempt to the folder's list; from the second on the report says which it is, and one that failed stays failed.

    Every attempt draws coins and noise anew: without the list, a FAIL would be gone after a repetition or two. Where the target exceeded
    its claim and the controls were not as they must, nothing was refuted; but every later attempt says what it had found.

    Raises:
        ConfigError: the list is damaged.
    """
    before = attempts.of(report.name, folder, begun)
    failed = next(iter(attempts.numbers(before, "FAIL")), 0)
    unsettled = [
        f"attempt {k}, which was {line['verdict']}, had found: {line['exceeded']}"
        for k, line in enumerate(before, 1)
        if line.get("exceeded")
    ]
    target = report.evidence.get("target", Evidence())
    exceeded = _flags(target) if target.flagged and report.verdict != "FAIL" else ""
    attempts.end(report.name, folder, report.verdict, report.sentence, exceeded, begun)
    if not before:
        return report
    said, reasons, verdict = f"Attempt {len(before) + 1} in this folder. {report.sentence}", report.reasons, report.verdict
    if unsettled:
        kept = "what its controls could not confirm is not refuted by another draw: " + "; ".join(unsettled)
        said, reasons = f"{said} Beware: {kept}.", (*reasons, kept)
    if broken := attempts.numbers(before, attempts.BROKEN_OFF):
        kept = f"of attempts {', '.join(map(str, broken))}, which were broken off, nobody knows what they had found"
        said, reasons = f"{said} Beware: {kept}.", (*reasons, kept)
    if failed and verdict != "FAIL":
        kept = (
            f"attempt {failed} in this folder failed, and an audit that is repeated until it passes proves nothing; once the fault is "
            "mended, audit into another folder"
        )
        said = (
            f"FAIL, although this attempt by itself was {verdict}: {kept}. {said} Attempt {failed} said: {before[failed - 1]['sentence']}"
        )
        reasons, verdict = (kept, *reasons), "FAIL"
    return replace(report, verdict=verdict, sentence=said, reasons=reasons, attempts=before)


def register(audit: Audit, folder: Path) -> str:
    """Fix the audit on disk before anything is measured; gives its sha256.

    Raises:
        ConfigError: something else was fixed in this folder: a threshold chosen after a look at the scores proves nothing.
    """
    fixed = {"audit": audit.name, "claim": audit.claim.to_json(), "beta": audit.beta, "registered": dict(audit.registered)}
    try:
        text = json.dumps(fixed, indent=1, sort_keys=True, allow_nan=False) + "\n"
    except ValueError:
        odd = [name for name, value in audit.registered.items() if isinstance(value, float) and not math.isfinite(value)]
        raise ConfigError(f"{', '.join(odd) or 'a number'} of this audit is not finite: give a number.") from None
    path = folder / "registered.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} fixes another audit than this one. What an audit tests is fixed before anything is measured and not changed after: "
            "repeat the command as it was, or choose another --out."
        )
    write_atomically(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def judge(evidence: Mapping[Arm, Evidence], blind: str = "") -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons, the first that holds of:

    1. INVALID: the target's own measurement says that nothing follows from it.
    2. FAIL: the target has alarms. They are proofs, which need no control.
    3. INVALID: a control's measurement says that nothing follows, or the negative control was flagged.
    4. FAIL: a bound of the target exceeds its claim, and so does the bound of the same name in the positive control, or there is none:
       such a bound (of a run's released weights, which cannot be made without privacy) refutes at its confidence and clears nobody.
    5. INVALID: in some measure (ε, dB …) bounds that have their like in the positive control could have passed their claims, and it exceeds
       by none of them. Bounds in one measure stand for each other, those in different measures are of different secrets.
    6. INVALID: a bound of the target exceeds its claim, and the one of the same name in the positive control does not: nothing is refuted,
       and nobody is cleared. NO POWER: no bound that has its like in the positive control could have passed its claim.
    7. NO POWER: the audit is `blind`. PASS: none of these. It rests on the bounds that could have passed their claim and by whose name the
       positive control exceeds; of all others the reasons say that they are no part of it.
    """
    target, positive, negative = (evidence[arm] for arm in ARMS)
    if target.invalid:
        return "INVALID", target.invalid
    trouble = [f"{arm} control: {reason}" for arm in ARMS[1:] for reason in evidence[arm].invalid]
    if negative.flagged:
        trouble.append("the negative control, in which there is nothing to find, was flagged: " + _flags(negative))
    if target.alarms:
        return "FAIL", (*target.alarms, f"this needs no control; {'; '.join(trouble)}") if trouble else (_flags(target),)
    exceeds = (f"the target exceeded its claim, which without its controls refutes nothing: {_flags(target)}",) if target.flagged else ()
    if trouble:
        return "INVALID", (*trouble, *exceeds)
    controlled = {bound.name: bound.exceeds for bound in positive.bounds}
    if any(bound.exceeds and controlled.get(bound.name, True) for bound in target.bounds):
        return "FAIL", (_flags(target),)
    powerful = [bound for bound in target.bounds if bound.powerful and bound.name in controlled]
    seen = {bound.measure for bound in powerful if controlled[bound.name]}
    if unseen := [bound.name for bound in powerful if bound.measure not in seen]:
        why = f"the positive control, without privacy, was not flagged by {' or '.join(unseen)}: this audit does not see what it should"
        return "INVALID", (why, *exceeds)
    if blunt := [bound.name for bound in target.bounds if bound.exceeds]:
        return "INVALID", (f"the positive control, without privacy, was not flagged by {' or '.join(blunt)}, and the target was", *exceeds)
    if not powerful:
        told = "; ".join(
            f"{b.name}: at most {_number(b.attainable)} {b.measure}, claimed {_number(b.claim)}, found {_number(b.value)}"
            for b in target.bounds
        )
        return "NO POWER", (f"whatever the system did, no bound of this audit could have passed the claim ({told or 'there is no bound'})",)
    told = "; ".join(_told(bound, controlled.get(bound.name)) for bound in target.bounds)
    return ("NO POWER", (f"{blind} ({told})",)) if blind else ("PASS", (told,))


def _told(bound: Bound, controlled: bool | None) -> str:
    """What a bound that was not exceeded says, and why it says nothing where it does.

    Args:
        controlled: the positive control exceeds by the bound of this name; None: it has none.
    """
    why = "its own positive control did not exceed" if controlled is False else "there is no positive control of it"
    why = "" if controlled else f", which clears nobody, for {why}"
    why = why if bound.powerful else ", which could not have passed it"
    return f"{bound.name}: {_number(bound.value)} {bound.measure}, claimed {_number(bound.claim)}{why}"


def sentence(verdict: Verdict, reasons: tuple[str, ...], audit: Audit | None, target: Evidence) -> str:
    """The verdict as one sentence for a reader who knows no statistics."""
    promise, whom = "what was promised", "a person"
    if audit:
        epsilon = audit.claim.epsilon
        promise = f"the promise of ε = {epsilon:.3g} (δ = {audit.claim.delta:g})" if epsilon < math.inf else "the rules of the training"
        promise += f", {audit.claim.reservation}," if audit.claim.reservation else ""
        whom = f"a single {audit.claim.unit}"
    why, scope = "; ".join(reasons), f", {clause}," if (clause := target.scope or (audit.scope if audit else "")) else ""
    if verdict == "FAIL":
        return (
            f"More can be learnt about {whom} than {promise} allows, so nothing of it must leave the hospital until this is mended: {why}."
        )
    if verdict == "PASS":
        return (
            f"This attack{scope} learnt no more about {whom} than {promise} allows; that is a test passed and no proof, for another attack "
            f"might learn more ({why})."
        )
    if verdict == "NO POWER" and audit and math.isinf(audit.claim.epsilon):
        return f"Nothing is promised about {whom} in numbers, so nothing could be refuted, and this is no clearance: {why}."
    if verdict == "NO POWER":
        return f"This audit was too weak to say anything about {promise}: {why}."
    return f"This audit did not work, and nothing follows from it, good or bad: {why}."


def _flags(evidence: Evidence) -> str:
    bounds = [
        f"{b.name} gives at least {_number(b.value)} {b.measure}, where {_number(b.claim)} is claimed" for b in evidence.bounds if b.exceeds
    ]
    return "; ".join([*evidence.alarms, *bounds])


def _number(value: float) -> str:
    return f"{value:.4g}"
