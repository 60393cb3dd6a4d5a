"""What the server takes of a site's evaluation: the declared figures, and only if they can be combined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from tmca_core.messages import METRICS, SETTINGS, WITHHELD, part_of
from tmca_core.training.scores import ALWAYS, INTERVAL, MAY_BE_NEGATIVE, WITHOUT_REPORT, SiteSummary, of_targets
from tmca_core.training.told import CASES, wrong

UNBOUNDED = ("loss_sum", "hd95_sum")
# Of areas, which is part of which.
PARTS = {"intersection": "predicted", "laterality_wrong": "laterality_area", "laterality_area": "predicted"}


def read_summary(content: RecordDict, cases: int | None, targets: int) -> tuple[SiteSummary, str]:
    """A site's figures, and why they cannot be used ("" where they can). Of a site that withholds some they are means only.

    Args:
        content: of the reply.
        cases: what the site's hello announced for the split; None: nothing.
        targets: how many the run has.
    """
    record: Mapping[str, Any] = part_of(content, METRICS, MetricRecord) or {}
    settings: Mapping[str, Any] = part_of(content, SETTINGS, ConfigRecord) or {}
    if settings.get(WITHHELD) is True:
        told = _numbers(record, tuple(CASES))
        return told, wrong(told)
    summary = declared(record, targets)
    if cases is None:
        return summary, "the evaluation holds sums, but the site announced no number of cases"
    return summary, check_summary(summary, cases, targets)


def declared(record: Mapping[str, Any], targets: int = 1) -> SiteSummary:
    """The numbers of a reply that `site_summary` declares for that many targets; whatever else is in it is dropped."""
    return _numbers(record, (*ALWAYS, "dice_image", *of_targets(targets), *INTERVAL, *WITHOUT_REPORT))


def _numbers(record: Mapping[str, Any], names: Sequence[str]) -> SiteSummary:
    return {key: float(record[key]) for key in names if isinstance(record.get(key), (int, float)) and not isinstance(record[key], bool)}


def check_summary(summary: SiteSummary, cases: int, targets: int = 1) -> str:
    """Why a site's figures cannot be combined; "" where they can.

    Args:
        summary: as `declared` gives it.
        cases: what the site's hello announced for the split; above 0.
        targets: how many the run has.
    """
    optional = [key for group in (INTERVAL, WITHOUT_REPORT) if any(key in summary for key in group) for key in group]
    for key in (*ALWAYS, "dice_image", *of_targets(targets), *optional):
        if key not in summary:
            return f"the evaluation lacks '{key}'"
        value = summary[key]
        if not math.isfinite(value):
            return f"the evaluation's '{key}' is not finite"
        if value < 0 and key not in MAY_BE_NEGATIVE:
            return f"the evaluation's '{key}' is {value:g}, below 0"
    if summary["cases"] != cases:
        return f"the evaluation is of {summary['cases']:g} cases, but the site announced {cases}"
    counted = [key for key in summary if key.endswith("_cases") or key.rpartition(":")[2].startswith("empty_")]
    counts = ("patients", *counted, "laterality_empty")
    above = next((key for key in counts if summary[key] > cases), None)
    return f"the evaluation's '{above}' is {summary[above]:g}, above the number of cases" if above else _beyond(summary)


def _beyond(summary: SiteSummary) -> str:
    """Which figure is larger than it can be; "" where none is. Shares and Dice are at most 1 a case, parts at most the whole."""
    for key in summary:
        prefix, name = key.rpartition(":")[::2]
        before = prefix and f"{prefix}:"
        if name.endswith("_sum") and name not in UNBOUNDED:
            # A target has no count of its own for these: they are of all cases.
            most = summary.get(f"{key.removesuffix('_sum')}_cases", summary["cases"])
            if summary[key] > most:
                return f"the evaluation's '{key}' is {summary[key]:g}, of {most:g} cases that have 1 at most"
        elif name in PARTS and summary[key] > summary[f"{before}{PARTS[name]}"]:
            return f"the evaluation's '{key}' is {summary[key]:g}, above '{before}{PARTS[name]}'"
        elif name in ("dice_image", *INTERVAL) and summary[key] > 1:
            return f"the evaluation's '{key}' is {summary[key]:g}, above 1"
    mean = summary["dice_sum"] / summary["cases"]
    if not math.isclose(summary["dice_image"], mean, abs_tol=1e-6):
        return f"the evaluation's 'dice_image' is {summary['dice_image']:g}, and the mean of its cases {mean:g}"
    if "ci95_low" in summary and summary["ci95_low"] > summary["ci95_high"]:
        return f"the evaluation's interval from {summary['ci95_low']:g} to {summary['ci95_high']:g} is none"
    return ""
