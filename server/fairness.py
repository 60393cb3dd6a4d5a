"""How evenly a model serves the sites."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from tmca_core.training.scores import SiteSummary


def site_dice(found: Mapping[str, SiteSummary]) -> dict[str, float]:
    """Mean Dice of every site with cases that told it."""
    return {site: summary["dice_image"] for site, summary in found.items() if "dice_image" in summary}


def mean_dice(found: Mapping[str, SiteSummary]) -> float | None:
    """Mean over the cases of all sites; where a site keeps their number, over the sites that told theirs. None without a figure."""
    if any("cases" not in summary for summary in found.values()):
        dice = site_dice(found)
        return math.fsum(dice.values()) / len(dice) if dice else None
    cases = math.fsum(summary["cases"] for summary in found.values())
    return math.fsum(found[site]["dice_sum"] for site in sorted(found)) / cases if cases else None


def interval(summary: SiteSummary) -> list[float] | None:
    """A site's 95 % interval of its mean Dice, where it sent one."""
    return [summary["ci95_low"], summary["ci95_high"]] if "ci95_low" in summary else None


def fairness(dice: Mapping[str, float]) -> dict[str, Any]:
    """The worst site and the unevenness, every site counting the same.

    Returns:
        `worst_site`, `worst_dice`; `spread`, the standard deviation over these sites (of a population); `worst_decile`, the mean of the
        worst tenth of them, rounded up to whole sites. All None without a site.
    """
    if not dice:
        return dict.fromkeys(("worst_site", "worst_dice", "spread", "worst_decile"))
    order = sorted(dice, key=lambda site: (dice[site], site))
    lowest = [dice[site] for site in order[: -(-len(order) // 10)]]
    return {
        "worst_site": order[0],
        "worst_dice": dice[order[0]],
        "spread": statistics.pstdev(dice.values()),
        "worst_decile": statistics.fmean(lowest),
    }
