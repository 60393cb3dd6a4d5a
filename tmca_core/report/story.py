"""The words and key figures of a report: what came out, said in sentences that the numbers support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tmca_core.report.content import Content
from tmca_core.report.lenient import mapping, number

Tone = Literal["plain", "good", "bad"]

_SMALL = 0.005  # Dice differences below this are called equal


@dataclass(frozen=True)
class Tile:
    """One key figure: `value` is text, "–" where the run has none; `note` says what it is or why there is none."""

    label: str
    value: str
    note: str
    tone: Tone = "plain"


def headline(content: Content) -> str:
    """The first sentence: who trained, what it reaches, and against what."""
    final = mapping(content.summary.get("final"))
    dice = number(final.get("dice_image"))
    if dice is None and content.withheld:
        return "This run has ended, and its sites' policies withhold what the network reaches."
    if dice is None:
        done = max((x for points in content.curves.values() for x, _ in points), default=0)
        return f"This run has not ended: {done:.0f} of {content.config.federation.rounds} rounds are validated so far."
    if not content.federated:
        where = "one site's cases" if str(content.summary.get("arm", "")).startswith("local:") else "all cases in one place"
        return f"Trained on {where}, the network reaches a Dice of {dice:.3f} per image on held-out patients."
    count = len(content.sites)
    who = f"{_counted(count)} sites" if count != 1 else "One site"
    sentence = f"{who} that exchanged only weights reach a Dice of {dice:.3f} per image on held-out patients"
    pooled, local = number(mapping(content.summary.get("baselines")).get("pooled")), content.mean_local()
    parts = []
    if local is not None:
        parts.append(f"{_difference(dice - local)} what they reach alone")
    if pooled is not None:
        parts.append(f"{_difference(dice - pooled)} pooling all data in one place")
    return sentence + (f": {', and '.join(parts)}." if parts else ".")


def text_verdict(content: Content) -> tuple[str, Tone]:
    """Whether the mask follows the report, from the swap of left and right in one-sided reports."""
    true, swapped, cases = swap_figures(content)
    if content.withheld and (true is None or swapped is None):
        return "Whether the mask follows the report is withheld by the sites' policies.", "plain"
    if true is None or swapped is None:
        return "Whether the mask follows the report was not measured in this run.", "plain"
    counted = f" ({cases} one-sided reports)" if cases else ""
    figures = f"With left and right exchanged in the report, Dice against the true mask goes from {true:.3f} to {swapped:.3f}{counted}."
    if true < 0.2:
        return f"The network finds too little for the swap to tell whether it reads the report. {figures}", "bad"
    if swapped <= 0.4 * true:
        return f"The mask follows the report. {figures}", "good"
    if swapped <= 0.85 * true:
        return f"The mask follows the report in part. {figures}", "plain"
    return f"The mask does not follow the report's side. {figures}", "bad"


def swap_figures(content: Content) -> tuple[float | None, float | None, int | None]:
    """Dice with true and with swapped reports and the number of reports: of one-sided reports where known, else of all."""
    counter = mapping(content.summary.get("counterfactual"))
    sided = mapping(counter.get("one_sided"))
    if number(sided.get("true")) is not None and number(sided.get("swapped")) is not None:
        return number(sided.get("true")), number(sided.get("swapped")), int(number(sided.get("cases")) or 0)
    return number(counter.get("true")), number(counter.get("swapped")), None


def tiles(content: Content) -> list[Tile]:
    """Key figures in reading order."""
    final = mapping(content.summary.get("final"))
    dice, local = number(final.get("dice_image")), content.mean_local()
    gained = tone(None if dice is None or local is None else dice - local)
    result = [Tile("Federated Dice" if content.federated else "Dice", figure(dice), _dice_note(content), gained)]
    if content.federated:
        pooled = number(mapping(content.summary.get("baselines")).get("pooled"))
        result.append(Tile("Alone, on average", figure(local), "not trained" if local is None else "every site trains on its own cases"))
        result.append(Tile("Pooled", figure(pooled), "not trained" if pooled is None else "all cases in one place"))
    error, floor = number(final.get("laterality_error")), number(final.get("laterality_floor"))
    kept = "withheld by the sites' policies" if content.withheld else ""
    note = (error is None and kept) or _side_note(error, floor)
    result.append(Tile("Laterality error", percent(error), note, _side_tone(error, floor)))
    _, swapped, _ = swap_figures(content)
    note = kept or "not measured" if swapped is None else "Dice; low means the mask moved with the text"
    result.append(Tile("Sides swapped", figure(swapped), note, text_verdict(content)[1]))
    distance, undefined = number(final.get("hd95_px")), number(final.get("hd95_undefined"))
    if distance is not None:
        result.append(Tile("HD95", f"{distance:.1f} px", "boundary distance" + (f"; {undefined:.0f} cases have none" if undefined else "")))
    return result


def _side_note(error: float | None, floor: float | None) -> str:
    if error is None:
        return "no one-sided report"
    return "predicted area on the side not named" + ("" if floor is None else f"; true masks: {percent(floor)}")


def _side_tone(error: float | None, floor: float | None) -> Tone:
    """Good within three percent of the area above what the true masks have, bad from a fifth above it."""
    if error is None:
        return "plain"
    excess = error - (floor or 0.0)
    return "good" if excess <= 0.03 else "bad" if excess >= 0.2 else "plain"


def figure(value: object, decimals: int = 3) -> str:
    """A figure with so many decimals, or a dash."""
    known = number(value)
    return "–" if known is None else f"{known:.{decimals}f}"


def percent(value: object) -> str:
    """A share in percent with one decimal, or a dash."""
    known = number(value)
    return "–" if known is None else f"{100 * known:.1f} %"


def tone(difference: float | None) -> Tone:
    """Good or bad news, where a difference of Dice is large enough to be news."""
    return "plain" if difference is None or abs(difference) < _SMALL else "good" if difference > 0 else "bad"


def signed(value: float | None) -> str:
    """A difference with its sign, or a dash."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def size(value: object) -> str:
    """Bytes for people: decimal units."""
    known = number(value)
    if known is None:
        return "–"
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while known >= 1000 and power < len(units) - 1:
        known, power = known / 1000, power + 1
    return f"{known:.2f} {units[power]}" if power else f"{known:.0f} B"


def duration(value: object) -> str:
    """Seconds for people."""
    known = number(value)
    if known is None:
        return "–"
    if known < 120:
        return f"{known:.1f} s"
    minutes, seconds = divmod(round(known), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _dice_note(content: Content) -> str:
    final = mapping(content.summary.get("final"))
    notes = []
    interval = final.get("ci95")
    if isinstance(interval, list) and len(interval) == 2:
        notes.append(f"95 % CI {figure(interval[0])} to {figure(interval[1])}")
    if number(final.get("dice_pooled")) is not None:
        notes.append(f"pooled over pixels {figure(final.get('dice_pooled'))}")
    kept = content.withheld and number(final.get("dice_image")) is None
    return "; ".join(notes) or ("withheld by the sites' policies" if kept else "per image")


def _difference(value: float) -> str:
    if abs(value) < _SMALL:
        return "level with"
    return f"{abs(value):.3f} {'above' if value > 0 else 'below'}"


def _counted(count: int) -> str:
    names = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
    return names[count] if count < len(names) else str(count)
