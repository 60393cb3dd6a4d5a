"""What the members of a federation look at besides Dice: who is served how well, who was slow, refused or suspected, who matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tmca_core.report.charts import Line, line_chart
from tmca_core.report.lenient import mapping, number, objects

MOST_TURNS = 100
"""Rows of the table of sites' turns."""


@dataclass(frozen=True)
class Member:
    """One site's conduct; None and "" where the run does not say.

    Attributes:
        turns: answers that were folded. `median_seconds`: of them.
        late: answers that came too late. `refused`: "3 norm, 1 replay".
        contribution: Dice gained by having the site.
    """

    name: str
    turns: int
    median_seconds: float | None
    late: int
    refused: str
    contribution: float | None

    @property
    def remarkable(self) -> bool:
        """Something was not as it should be."""
        return bool(self.late or self.refused)


@dataclass(frozen=True)
class Consortium:
    """The page's part on the federation as such.

    Attributes:
        suspects: (site, reason).
        members: by name, remarkable ones first.
        spread, worst_decile: of the final Dice over sites.
        chart: mean, worst site and worst decile by round; empty where no round has them.
        ending: how training ended, where the run says.
    """

    suspects: Sequence[tuple[str, str]]
    members: Sequence[Member]
    spread: float | None
    worst_decile: float | None
    chart: Markup
    ending: str

    @property
    def contributes(self) -> bool:
        """Whether contributions were measured."""
        return any(member.contribution is not None for member in self.members)

    def __bool__(self) -> bool:
        return bool(self.suspects or self.members or self.spread is not None)


def consortium(summary: Mapping[str, Any]) -> Consortium:
    """From run.json; whatever a run lacks is left out."""
    fairness = mapping(summary.get("fairness"))
    suspects = [(str(one["site"]), str(one.get("reason", ""))) for one in objects(summary.get("suspects")) if "site" in one]
    return Consortium(
        suspects,
        _members(summary),
        number(fairness.get("spread")),
        number(fairness.get("worst_decile")),
        _chart(fairness),
        _ending(summary),
    )


def _members(summary: Mapping[str, Any]) -> list[Member]:
    stragglers, rejections, gains = (mapping(summary.get(key)) for key in ("stragglers", "rejections", "contribution"))
    members = []
    for name in sorted({*map(str, stragglers), *map(str, rejections), *map(str, gains)}):
        own = mapping(stragglers.get(name))
        turns = own.get("turns")
        counts = [(str(kind), count) for kind, n in mapping(rejections.get(name)).items() if (count := number(n))]
        members.append(
            Member(
                name,
                len(turns) if isinstance(turns, list) else 0,
                number(own.get("median_seconds")),
                int(number(own.get("late")) or 0),
                ", ".join(f"{count:g} {kind}" for kind, count in counts),
                number(gains.get(name)),
            )
        )
    return sorted(members, key=lambda member: not member.remarkable)[:MOST_TURNS]


def _chart(fairness: Mapping[str, Any]) -> Markup:
    styles = {
        "dice_image": ("mean over cases", "federated"),
        "worst_decile": ("worst tenth of the sites", "pooled"),
        "worst_dice": ("worst site", "local"),
    }
    lines = []
    for key, (label, style) in styles.items():
        points = [
            (x, y)
            for one in objects(fairness.get("rounds"))
            if (x := number(one.get("round"))) is not None and (y := number(one.get(key))) is not None
        ]
        lines.append(Line(label, points, style))
    return line_chart(
        "Validation Dice by round: mean, worst tenth, worst site", lines, x_label="round", y_label="Dice per image", height=220
    )


def _ending(summary: Mapping[str, Any]) -> str:
    stopped, best, tested = (number(summary.get(key)) for key in ("stopped_early", "best_round", "tested_round"))
    parts = []
    if stopped is not None:
        parts.append(f"Training stopped early, after round {stopped:.0f}: validation had stopped rising.")
    if best is not None and tested is not None:
        which = "which was tested" if best == tested else f"round {tested:.0f} was tested"
        parts.append(f"Validation was best in round {best:.0f}; {which}.")
    return " ".join(parts)
