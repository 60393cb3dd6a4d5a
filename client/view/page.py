"""The hospital's page, rendered from its own folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from client.standing import Standing, read_standing
from client.view.accounts import Account, Books, in_words
from client.view.runs import RunSight, dice_of, known_runs, site_names
from tmca_core.errors import SiteAway
from tmca_core.pages.look import environment, meter
from tmca_core.report.charts import Line, line_chart
from tmca_core.report.story import figure

MOST_RUNS, MOST_ROWS = 50, 100


@dataclass(frozen=True)
class SiteSight:
    """What is shown.

    Attributes:
        name: of the site, as far as its folders tell; "".
        standing: None where its file cannot be read; then `fault` says why, and nothing is answered.
        alone: Dice of the site's own model, trained on its cases alone; `together`: of the federated one on the same cases, where
            somebody has measured it; else it is the last run's own test.
    """

    name: str
    standing: Standing | None
    accounts: Sequence[Account]
    runs: Sequence[RunSight]
    alone: float | None = None
    together: float | None = None
    fault: str = ""

    @property
    def federated(self) -> float | None:
        """The federated model's Dice on the site's test cases, where known."""
        return self.together if self.together is not None else next((run.tested for run in self.runs if run.tested is not None), None)

    @property
    def gain(self) -> float | None:
        """What taking part brings."""
        return None if self.alone is None or self.federated is None else self.federated - self.alone


@dataclass
class Desk:
    """Where to look.

    Attributes:
        state: the site's state folder.
        alone, together: folders for `dice_of`.
    """

    state: Path
    policies: Sequence[Path] = ()
    alone: Path | None = None
    together: Path | None = None
    books: Books = field(init=False)

    def __post_init__(self) -> None:
        self.books = Books(self.policies)

    def look(self) -> SiteSight:
        """Everything as it is now.

        Raises:
            ConfigError: `alone` or `together` holds no measured model.
        """
        standing, fault = None, ""
        try:
            standing = read_standing(self.state)
        except SiteAway as error:
            fault = str(error)
        accounts = self.books.look()
        names = site_names(self.state)
        name = names[0] if len(names) == 1 else ""
        alone = dice_of(self.alone, name) if self.alone else None
        together = dice_of(self.together, name) if self.together else None
        return SiteSight(name, standing, accounts, known_runs(self.state, accounts, standing or Standing()), alone, together, fault)


def _own_chart(run: RunSight, alone: float | None) -> Markup:
    points = [(float(round), dice) for round, dice in sorted(run.dice.items())]
    lines = [Line("the shared model on our validation cases", points, "federated")]
    if alone is not None and points:
        lines.append(Line("our own model, trained alone", [(points[0][0], alone), (points[-1][0], alone)], "local"))
    return line_chart(
        "The shared model on our own validation cases, by round", lines, x_label="round", y_label="Dice per image", height=220
    )


def _since(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _bar(account: Account) -> Markup:
    if account.budget is None:
        return Markup("")
    beside = f", beside {account.plain} plain updates, which no ε covers" if account.plain else ""
    return meter(f"ε spent of {account.budget.epsilon:g}{beside}", account.spent / account.budget.epsilon)


_TEMPLATES = environment(Path(__file__).parent)
_TEMPLATES.filters |= {"words": in_words, "since": _since}


def render(sight: SiteSight, *, whole: bool, token: str, said: str = "") -> str:
    """The page, or (`whole` false) the part of it that changes.

    Args:
        token: that a button's request has to bring along.
        said: what has just been done; "".
    """
    curve = next((run for run in sight.runs if run.dice), None)
    rows = [(entry, account) for account in sight.accounts for entry in account.entries]
    rows.sort(key=lambda row: str(row[0].get("time", "")), reverse=True)
    return _TEMPLATES.get_template("site.html.j2" if whole else "site_news.html.j2").render(
        s=sight,
        headline=headline(sight),
        token=token,
        said=said,
        runs=sight.runs[:MOST_RUNS],
        here=[run for run in sight.runs[:MOST_RUNS] if not run.left],
        curve=curve,
        chart=_own_chart(curve, sight.alone) if curve else "",
        bar=_bar,
        entries=rows[:MOST_ROWS],
        several=len(sight.accounts) > 1,
        figure=figure,
    )


def headline(sight: SiteSight) -> str:
    """Whether the site takes part, in a few words."""
    name = sight.name or "This site"
    if sight.standing is None:
        return f"{name} answers nothing: its standing cannot be read"
    return f"{name} is paused" if sight.standing.paused else f"{name} takes part"
