"""The ROC of an attack on logarithmic axes, where it is read: at few false alarms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from markupsafe import Markup

from tmca_core.audits.interface import Claim
from tmca_core.audits.scores import Scores
from tmca_core.report.svg import picture, tag

WIDTH, HEIGHT = 520, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 48
POINTS = 240  # of a drawn curve


def roc_chart(scores: Scores, claim: Claim) -> Markup:
    """True-positive against false-positive rate, both logarithmic, with chance and the most that the claim allows at every rate."""
    decades = max(1, math.ceil(math.log10(max(len(scores.others), len(scores.members), 10))))
    low = 10.0**-decades

    def across(rate: float) -> float:
        return LEFT + (1 + math.log10(max(rate, low)) / decades) * (WIDTH - LEFT - RIGHT)

    def up(rate: float) -> float:
        return HEIGHT - BOTTOM - (1 + math.log10(max(rate, low)) / decades) * (HEIGHT - TOP - BOTTOM)

    def curve(points: Iterable[tuple[float, float]], label: str, style: str) -> Markup:
        places = dict.fromkeys(f"{across(x):.1f} {up(y):.1f}" for x, y in points)
        return tag("g", tag("title", label) + tag("path", d="M" + "L".join(places)), class_=f"line {style}")

    parts = []
    for k in range(decades + 1):
        rate = 10.0**-k
        told = f"{rate:g}"
        parts.append(tag("line", class_="grid", x1=across(rate), x2=across(rate), y1=TOP, y2=HEIGHT - BOTTOM))
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up(rate), y2=up(rate)))
        parts.append(tag("text", told, class_="tick", text_anchor="middle", x=across(rate), y=HEIGHT - BOTTOM + 17))
        parts.append(tag("text", told, class_="tick", text_anchor="end", x=LEFT - 8, y=up(rate) + 4))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(tag("text", "false-positive rate", class_="axis", text_anchor="middle", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8))
    turned = f"rotate(-90 14 {middle:.0f})"
    parts.append(tag("text", "true-positive rate", class_="axis", text_anchor="middle", x=14, y=middle, transform=turned))
    rates = [10.0 ** (-decades * (1 - k / POINTS)) for k in range(POINTS + 1)]
    parts.append(curve([(low, low), (1, 1)], "chance", "pooled"))
    if math.isfinite(claim.epsilon):
        parts.append(curve([(rate, allowed(rate, claim)) for rate in rates], "the most that the claim allows", "local"))
    measured = _staircase(scores.roc(), low)
    parts.append(curve(measured, "this attack", "federated"))
    at = scores.rate_at(0.01)
    told = f"AUC {scores.auc:.3f}" + ("" if at is None else f"; true-positive rate at 1 % false alarms {at:.3f}")
    return picture("chart roc", "ROC of the attack, logarithmic axes", told, WIDTH, HEIGHT, parts)


def allowed(rate: float, claim: Claim) -> float:
    """The largest true-positive rate at a false-positive rate under the claim: (ε, δ), and μ where the mechanism is known to be μ-GDP.

    Source: Kairouz, Oh and Viswanath 2015; Dong, Roth and Su 2022, definition 2.6.
    """
    from scipy.special import ndtr, ndtri

    factor = math.exp(min(claim.epsilon, 700.0))
    by_epsilon = min(1.0, factor * rate + claim.delta, 1 - (1 - claim.delta - rate) / factor)
    by_mu = float(ndtr(ndtri(rate) + claim.mu)) if claim.exact_mu is not None else 1.0
    return max(rate, min(by_epsilon, by_mu))


def _staircase(points: list[tuple[float, float]], low: float) -> list[tuple[float, float]]:
    """Corners of the steps, at most some hundreds: between thresholds the true-positive rate stays."""
    corners = []
    for (_, before), (rate, after) in itertools.pairwise(points):
        corners += [(max(rate, low), before), (max(rate, low), after)]
    stride = -(-len(corners) // (4 * POINTS))
    return [*corners[::stride], corners[-1]]
