"""What the server takes of a site's evaluation: the declared figures, and only if they can be combined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tmca_core.training.scores import ALWAYS, INTERVAL, MAY_BE_NEGATIVE, WITHOUT_REPORT, SiteSummary, of_targets


def declared(record: Mapping[str, Any], targets: int = 1) -> SiteSummary:
    """The numbers of a reply that `site_summary` declares for that many targets; whatever else is in it is dropped."""
    return {
        key: float(record[key])
        for key in (*ALWAYS, "dice_image", *of_targets(targets), *INTERVAL, *WITHOUT_REPORT)
        if isinstance(record.get(key), (int, float)) and not isinstance(record[key], bool)
    }


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
    return f"the evaluation's '{above}' is {summary[above]:g}, above the number of cases" if above else ""
