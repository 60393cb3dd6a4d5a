"""The page: rendered here, on the server, from what is known; the browser's script only asks for the part that changes."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from server.watch import telling
from server.watch.sight import KINDS, Sight, SiteSight
from tmca_core.pages.look import environment, spark
from tmca_core.report.charts import ticks

MOST_ROWS, MOST_FAULTS = 200, 50


def _kind(kind: str) -> str:
    return KINDS.get(kind, f"not usable: {telling.short(kind)}")


_TEMPLATES = environment(Path(__file__).parent)
_TEMPLATES.filters |= {"short": telling.short, "turn": telling.seconds_of, "kind": _kind}


def render(sight: Sight, folder: str, *, whole: bool) -> str:
    """The page, or (`whole` false) the part of it that changes.

    Args:
        sight: what is shown.
        folder: name of the run's folder, for the head of the page.
    """
    rows = sight.sites
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: row.tone not in ("bad", "wait"))[:MOST_ROWS]
    every = [dice for row in rows for dice in row.news.dice.values()]
    marks = ticks(min(every, default=0.0), max(every, default=1.0))

    def curve(row: SiteSight) -> Markup:
        points = [(float(round), dice) for round, dice in sorted(row.news.dice.items())]
        return spark(f"Validation Dice of {telling.short(row.news.name)} by round", points, marks[0], marks[-1])

    return _TEMPLATES.get_template("page.html.j2" if whole else "news.html.j2").render(
        s=sight,
        folder=folder,
        headline=telling.headline(sight),
        sentence=telling.sentence(sight),
        mood=telling.mood(sight),
        tiles=telling.tiles(sight),
        chart=telling.chart(sight),
        rows=rows,
        curve=curve,
        scale=(marks[0], marks[-1]),
        away=sight.away[:MOST_ROWS],
        faults=list(sight.news.faults)[: -MOST_FAULTS - 1 : -1],
        private=bool(sight.config and sight.config.privacy.enabled),
        upto=max(sight.news.done, default=0),
        last=sight.at,
    )
