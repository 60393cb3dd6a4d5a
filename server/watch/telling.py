"""What the page says of a federation, in words that a clinician reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from server.watch.sight import Sight, SiteSight
from tmca_core.report import story
from tmca_core.report.charts import Line, line_chart
from tmca_core.report.lenient import mapping, number

MOST_LINES = 12
MOST_NAME = 60


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    label: str
    value: str
    note: str


def short(name: object) -> str:
    """A name as it fits a table: a hostile site may call itself anything, at any length."""
    text = " ".join(str(name).split())
    return text if len(text) <= MOST_NAME else text[: MOST_NAME - 1] + "…"


def headline(sight: Sight) -> str:
    """The state in a few words."""
    news = sight.news
    of = f" of {sight.rounds}" if sight.rounds else ""
    at = f"in round {news.round}{of}" if news.round else "before the first round"
    return {
        "empty": "No run here yet",
        "waiting": "Waiting for sites",
        "running": "The last test" if news.phase == "test" else f"Round {max(1, news.round)}{of}",
        "silent": f"No news {at}",
        "ended": f"Finished after {len(news.done)} {'round' if len(news.done) == 1 else 'rounds'}",
        "stopped": f"Stopped {at}",
    }[sight.state]


def sentence(sight: Sight) -> str:
    """What is happening, or what to do."""
    news, asked = sight.news, len(sight.news.asked)
    if sight.state == "empty":
        return "This folder holds no run. The page shows one as soon as it begins."
    if sight.state == "waiting":
        needed = max(1, sight.config.federation.min_sites) if sight.config else 1
        there = len(news.present)
        return f"{there} {'site is' if there == 1 else 'sites are'} there, {needed} {'is' if needed == 1 else 'are'} needed to begin."
    if sight.state == "silent":
        return (
            f"The last event is older than {story.duration(sight.patience)}. The server may have died: repeat its command, and it goes on "
            "from the last round that is kept."
        )
    if sight.state == "stopped":
        return news.stopped
    if sight.state == "ended":
        final = mapping(sight.summary.get("final"))
        dice = number(final.get("dice_image"))
        if dice is None:
            return "Every round is done. No site has told how well the model does."
        return f"Every round is done. On held-out patients the model reaches a Dice of {dice:.3f} per image."
    done = len(news.answered & news.asked)
    doing = {"train": "Sites train on their own cases", "val": "Sites validate the round's model", "test": "Sites test the final model"}
    if not news.phase:
        return "Between two rounds."
    return f"{doing.get(news.phase, 'Sites are asked')}: {done} of {asked} {'has' if done == 1 else 'have'} answered."


def mood(sight: Sight) -> Literal["live", "wait", "bad", "done", ""]:
    """The colour of the state."""
    if sight.state in ("silent", "stopped"):
        return "bad"
    if sight.state == "running":
        return "live"
    return {"waiting": "wait", "ended": "done"}.get(sight.state, "")  # type: ignore[return-value]


def tiles(sight: Sight) -> list[Tile]:
    """Key figures in reading order."""
    news, last = sight.news, sight.last
    at = f"after round {last.get('round')}" if last else "no round is validated yet"
    worst = last.get("worst_site")
    there = len(sight.sites) - len(sight.away)
    up, down = sum(site.up for site in news.sites.values()), sum(site.down for site in news.sites.values())
    seconds = number(news.done[max(news.done)].get("seconds")) if news.done else None
    made = [
        Tile("Rounds done", f"{len(news.done)}{f' of {sight.rounds}' if sight.rounds else ''}", f"last one {story.duration(seconds)}"),
        Tile("Dice, all sites", story.figure(last.get("dice_image")), f"validation, {at}"),
        Tile("Dice, worst site", story.figure(last.get("worst_dice")), short(worst) if worst else at),
        Tile("Sites taking part", f"{there} of {len(sight.sites)}", "all well" if there == len(sight.sites) else "see below"),
    ]
    spent = [site.epsilon for site in sight.sites if site.epsilon is not None]
    if sight.config and sight.config.privacy.enabled:
        target = sight.config.privacy.target_epsilon
        note = f"the most of any site; the run's limit is {target:g}" if target else "the most of any site, in this run"
        made.append(Tile("Privacy spent, ε", f"{max(spent):.2f}" if spent else "–", note if spent else "nothing released yet"))
    made.append(Tile("Data moved", story.size(up + down), f"{story.size(up)} from sites, {story.size(down)} to them; weights only"))
    return made


def chart(sight: Sight) -> Markup:
    """Validation Dice by round: every site thin, the mean bold, the worst site beside it."""
    done = sorted(sight.news.done.items())
    mean = [(float(k), v) for k, record in done if (v := number(record.get("dice_image"))) is not None]
    worst = [(float(k), v) for k, record in done if (v := number(record.get("worst_dice"))) is not None]
    low = sorted((site for site in sight.sites if site.news.dice), key=lambda site: site.dice or 0.0)[:MOST_LINES]
    lines = [Line(short(site.news.name), [(float(k), v) for k, v in sorted(site.news.dice.items())], "single") for site in low]
    lines += [Line("worst site", worst, "local"), Line("all sites", mean, "federated")]
    return line_chart("Validation Dice by round", lines, x_label="round", y_label="Dice per image, validation", height=260)


def seconds_of(site: SiteSight) -> float | None:
    """Seconds of its last turn in training."""
    turns = site.news.seconds
    return turns[max(turns)] if turns else None
