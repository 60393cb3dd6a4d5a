"""audit.json and audit.html: one file that needs nothing else, for a data-protection officer first and a statistician second."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from tmca_core import __version__
from tmca_core.audits.conduct import Report
from tmca_core.audits.interface import EXIT_CODES, Evidence, Verdict
from tmca_core.audits.roc import roc_chart
from tmca_core.run import write_atomically

MOST_LEDGER = 20  # entries of a ledger that are printed
TONES: Mapping[Verdict, str] = {"PASS": "good", "FAIL": "bad", "NO POWER": "", "INVALID": "bad"}


def write(folder: Path, reports: Sequence[Report], *, together: bool, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Write audit.json and audit.html of one audit, or of several `together`; gives what audit.json holds.

    Args:
        left_out: audits of the same run that were not made.
    """
    value = summary(reports, left_out) if together else reports[0].to_json()
    write_atomically(folder / "audit.json", json.dumps(value, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "audit.html", render(reports, left_out))
    return value


def summary(reports: Sequence[Report], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Several audits as one: the worst verdict, the claim of the first that has one, and every report whole."""
    verdict, silent = worst(reports), told_only(reports)
    said = [report.sentence for report in reports if report.verdict == verdict and report.name not in silent]
    return {
        "schema": 1,
        "audit": "all",
        "verdict": verdict,
        "sentence": " ".join([*said, *silent_sentences(reports, left_out)]),
        "claim": next((report.audit.claim.to_json() for report in reports if report.audit), {}),
        "bounds": [{"audit": r.name, **b.to_json()} for r in reports for b in r.evidence.get("target", Evidence()).bounds],
        "controls": {report.name: report.to_json()["controls"] for report in reports},
        "audits": {report.name: report.to_json() for report in reports},
    }


def worst(reports: Sequence[Report]) -> Verdict:
    """FAIL before INVALID before NO POWER before PASS, of those that hold something against a promise."""
    order: tuple[Verdict, ...] = ("FAIL", "INVALID", "NO POWER", "PASS")
    silent = told_only(reports)
    return min((report.verdict for report in reports if report.name not in silent), key=order.index)


def told_only(reports: Sequence[Report]) -> list[str]:
    """Audits that are told and do not decide over the others: those that the configuration does not allow, and those that hold nothing
    against a promise. Where none is left to decide, the latter do; where no audit applies, all do, and the verdict is INVALID."""
    absent = [report.name for report in reports if not report.applies and report.verdict != "FAIL"]
    free = [report.name for report in reports if report.audit and report.audit.informs_only and report.verdict != "FAIL"]
    return next((silent for silent in ([*absent, *free], absent) if len(silent) < len(reports)), [])


def silent_sentences(reports: Sequence[Report], left_out: Sequence[str] = ()) -> list[str]:
    """What the page and the sentence of several audits say of those that do not decide, and of those that were not made."""
    silent = [report for report in reports if report.name in told_only(reports)]
    free, absent = (", ".join(report.name for report in silent if report.applies == applies) for applies in (True, False))
    said = f"Told without a say in this verdict, for nothing is promised that it could be held against: {free}."
    no_say = f"Without a say in this verdict, for there is nothing of the kind in this configuration: {absent}."
    not_made = f"Not made, so that this verdict says nothing of what they would find: {', '.join(left_out)}."
    return [*([said] if free else []), *([no_say] if absent else []), *([not_made] if left_out else [])]


def render(reports: Sequence[Report], left_out: Sequence[str] = ()) -> str:
    """The page. Names, reasons and figures are escaped; charts and pictures are markup made here."""
    room = files("tmca_core.audits")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "told": told}
    template = environment.from_string((room / "audit.html.j2").read_text(encoding="utf-8"))
    return template.render(
        css=(files("tmca_core.report") / "report.css").read_text(encoding="utf-8"),
        version=__version__,
        verdict=worst(reports),
        tones=TONES,
        exit_codes=EXIT_CODES,
        reports=[(report, _sections(report)) for report in reports],
        most_ledger=MOST_LEDGER,
        silent=silent_sentences(reports, left_out),
    )


def _sections(report: Report) -> dict[str, Any]:
    target, audit = report.evidence.get("target", Evidence()), report.audit
    return {
        "target": target,
        "controls": report.to_json()["controls"],
        "roc": roc_chart(target.scores, audit.claim) if audit and target.scores else "",
        "scores": target.scores.summary() if target.scores else {},
    }


def figure(value: float | None) -> str:
    """A number as the page prints it."""
    if value is None or not math.isfinite(value):
        return "∞" if value is not None else "–"
    return f"{value:.4g}"


def told(value: Any) -> str:
    """Any JSON scalar or list for a table's cell."""
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, list | tuple):
        return ", ".join(told(part) for part in value)
    return "–" if value is None else str(value)
