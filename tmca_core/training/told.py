"""What a site tells of an evaluation where its policy keeps sums and counts: means by name, some of them or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tmca_core.training.metrics import COUNTERFACTUALS
from tmca_core.training.scores import SiteSummary, combine

MEANS = ("dice_image", "dice_pooled", "iou_image", "iou_pooled", "hd95_px", "laterality_error", "loss")
ENDS = ("ci95_low", "ci95_high")
CASES = {
    **dict.fromkeys((*MEANS, *ENDS), "cases"),
    "hd95_px": "hd95_cases",
    "laterality_error": "laterality_cases",
    "loss": "loss_cases",
    **{name: f"{name}_cases" for name in ("true", *COUNTERFACTUALS)},
}
"""Every figure that may be told, and the figure of a site summary that says over how many cases it is."""
UNBOUNDED = ("hd95_px", "loss")
"""All others lie between 0 and 1."""


def means(summary: SiteSummary) -> dict[str, float]:
    """The figures of a site summary by name; those that have no meaning (no such case) are not there."""
    final, counterfactual = combine({"": summary})
    low, high = final["per_site"][""]["ci95"] or (None, None)
    found = {**{name: final[name] for name in MEANS}, **counterfactual, "ci95_low": low, "ci95_high": high}
    return {name: float(found[name]) for name in CASES if found.get(name) is not None}


def wrong(told: Mapping[str, float]) -> str:
    """Why figures cannot be used; "" where they can."""
    for name, value in told.items():
        if not math.isfinite(value):
            return f"the evaluation's '{name}' is not finite"
        if value < 0 and name != "loss":
            return f"the evaluation's '{name}' is {value:g}, below 0"
        if value > 1 and name not in UNBOUNDED:
            return f"the evaluation's '{name}' is {value:g}, above 1"
    return ""


def combine_told(summaries: Mapping[str, SiteSummary], targets: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json's `final` and `counterfactual` from summaries some of which are means only.

    Where every site sent whole summaries this is `combine`. Else nobody knows over how many cases the figures are: every one is the
    mean over the sites that told it, each counting the same (`mean_over` says so), and what only sums could give is None.
    `withheld` names the sites that kept something, and in an entry of `per_site` the figures that were kept.
    """
    whole = {site: summary for site, summary in summaries.items() if "cases" in summary}
    final, counterfactual = combine(whole, targets)
    if len(whole) == len(summaries):
        return final, counterfactual
    told = {site: means(summary) if site in whole else summary for site, summary in summaries.items()}

    def mean(name: str) -> float | None:
        values = [figures[name] for figures in told.values() if name in figures]
        return math.fsum(values) / len(values) if values else None

    per_site = {site: final["per_site"][site] if site in whole else _entry(figures) for site, figures in told.items()}
    dice = {site: figures["dice_image"] for site, figures in told.items() if "dice_image" in figures}
    final = {
        **dict.fromkeys(final),
        **{name: mean(name) for name in MEANS},
        "per_site": per_site,
        "worst_site": min(dice, key=lambda site: (dice[site], site)) if dice else None,
        "mean_over": "sites",
        "withheld": sorted(summaries.keys() - whole.keys()),
    }
    others = {name: mean(name) for name in ("true", *COUNTERFACTUALS)}
    return final, others if any(value is not None for value in others.values()) else {}


def _entry(told: SiteSummary) -> dict[str, Any]:
    interval = [told[end] for end in ENDS] if all(end in told for end in ENDS) else None
    kept = [name for name in (*MEANS, *ENDS) if name not in told]
    return {**{name: told.get(name) for name in MEANS}, "ci95": interval, "cases": None, "patients": None, "withheld": kept}
