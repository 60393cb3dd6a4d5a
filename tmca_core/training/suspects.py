"""Sites whose reports say left where the others say right: told from the figures that leave a site anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tmca_core.training.scores import SiteSummary

FEWEST_CASES = 3
MARGIN = 0.1


def swapped_sides(test: Mapping[str, SiteSummary]) -> list[dict[str, Any]]:
    """Sites whose one-sided reports explain their own masks better with left and right exchanged.

    Every site sends, of its test cases with a one-sided report, the mean Dice with the report (t) and with its sides exchanged (s).
    Where a network follows the text and the text is right, t is far above s. A site with at least `FEWEST_CASES` such cases is named
    where s − t > `MARGIN` at this site while t − s > `MARGIN` at all other sites together: the network follows the text, and
    elsewhere the text is right.

    A network that does not read (t = s everywhere) and one that has learnt the wrong side everywhere name nobody. A federation in
    which most sites are swapped names the others: the rule tells who differs, not who is right.

    Args:
        test: figures of the test cases by site, as `site_summary` gives them with counterfactuals.

    Returns:
        {"site", "reason", "dice_true", "dice_swapped", "others_true", "others_swapped", "laterality_error", "cases"} a site, names
        ascending.
    """
    found = []
    for site in sorted(test):
        own, others = _dice([test[site]]), _dice([summary for name, summary in test.items() if name != site])
        if own is None or others is None or test[site]["sided_true_cases"] < FEWEST_CASES:
            continue
        if own[1] - own[0] > MARGIN and others[0] - others[1] > MARGIN:
            cases, wrong = int(test[site]["sided_true_cases"]), test[site]["laterality_cases"]
            found.append(
                {
                    "site": site,
                    "reason": (
                        f"its reports fit its masks better with left and right exchanged (Dice {own[1]:.2f} against {own[0]:.2f} over "
                        f"{cases} one-sided cases; the other sites: {others[1]:.2f} against {others[0]:.2f}). Check its side convention."
                    ),
                    "dice_true": own[0],
                    "dice_swapped": own[1],
                    "others_true": others[0],
                    "others_swapped": others[1],
                    "laterality_error": test[site]["laterality_sum"] / wrong if wrong else None,
                    "cases": cases,
                }
            )
    return found


def _dice(summaries: list[SiteSummary]) -> tuple[float, float] | None:
    """Mean Dice of one-sided cases with the own and with the exchanged report; None where there is no such case."""
    cases = math.fsum(summary["sided_true_cases"] for summary in summaries)
    if not cases:
        return None
    true, swapped = (math.fsum(summary[f"sided_{kind}_sum"] for summary in summaries) / cases for kind in ("true", "swapped"))
    return true, swapped
