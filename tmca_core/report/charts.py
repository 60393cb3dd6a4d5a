"""Line, range and bar charts as inline SVG: no plotting library, colours from the page's style sheet, readable without colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tmca_core.report.svg import picture, tag

_MOST_POINTS = 240  # a line; more would only thicken it


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: shown on hover and read out.
        points: (x, y) in data units, x rising.
        style: class of the style sheet: `federated`, `pooled`, `local` or `single`.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Range:
    """One row of a range chart: a dot with its interval, and what it is compared to."""

    label: str
    value: float | None
    interval: tuple[float, float] | None = None
    other: float | None = None


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`.

    Example:
        >>> ticks(0.13, 0.86)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    width: int = 720,
    height: int = 280,
    y_range: tuple[float, float] | None = None,
    small: bool = False,
) -> Markup:
    """A chart of curves; lines without points are left out. Empty where no line has any."""
    drawn = [(line, _thinned(line.points)) for line in lines if line.points]
    if not drawn:
        return Markup("")
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    y_ticks = ticks(*(y_range or (min(ys), max(ys))), about=3 if small else 5)
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    left, right, top, bottom = (46, 10, 8, 24) if small else (60, 14, 12, 40)
    floor, middle = height - bottom, (top + height - bottom) / 2

    def across(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def up(y: float) -> float:
        return floor - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (floor - top)

    parts = []
    for y in y_ticks:
        parts.append(tag("line", class_="grid", x1=left, x2=width - right, y1=up(y), y2=up(y)))
        parts.append(tag("text", f"{y:g}", class_="tick", text_anchor="end", x=left - 8, y=up(y) + 4))
    for x in _whole_ticks(min(xs), max(xs), 4 if small else 8):
        parts.append(tag("text", f"{x:g}", class_="tick", text_anchor="middle", x=across(x), y=floor + 17))
    if not small:
        parts.append(tag("text", x_label, class_="axis", text_anchor="middle", x=(left + width - right) / 2, y=height - 5))
        turned = f"rotate(-90 11 {middle:.0f})"
        parts.append(tag("text", y_label, class_="axis", text_anchor="middle", x=11, y=middle, transform=turned))
    for line, points in drawn:
        places = [(across(x), up(y)) for x, y in points]
        shapes = [tag("title", line.label), tag("path", d="M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in places))]
        if len(places) <= (16 if small else 30):
            shapes += [tag("circle", cx=u, cy=v, r=2 if small else 3) for u, v in places]
        parts.append(tag("g", Markup("").join(shapes), class_=f"line {line.style}"))
    told = "; ".join(f"{line.label}: from {points[0][1]:.3f} to {points[-1][1]:.3f}" for line, points in drawn)
    return picture("chart", title, told, width, height, parts)


def range_chart(title: str, rows: Sequence[Range], *, x_label: str, value_label: str, other_label: str, width: int = 720) -> Markup:
    """One row an entry: a dot with its 95 % interval and, hollow, what it is compared to; a thin bar joins the two."""
    shown = [(row, row.value) for row in rows if row.value is not None]
    if not shown:
        return Markup("")
    values = [v for row, value in shown for v in (value, row.other, *(row.interval or ())) if v is not None]
    marks = ticks(min(values), max(values), about=6)
    left, right, top, step = min(240, 24 + 7 * max(len(row.label) for row, _ in shown)), 20, 8, 30
    height = top + step * len(shown) + 40

    def at(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - right)

    parts, told = [], []
    for mark in marks:
        parts.append(tag("line", class_="grid", x1=at(mark), x2=at(mark), y1=top, y2=height - 38))
        parts.append(tag("text", f"{mark:g}", class_="tick", text_anchor="middle", x=at(mark), y=height - 23))
    parts.append(tag("text", x_label, class_="axis", text_anchor="middle", x=(left + width - right) / 2, y=height - 5))
    for k, (row, value) in enumerate(shown):
        y = top + step * (k + 0.5)
        name = row.label if len(row.label) <= 32 else row.label[:31] + "…"
        parts.append(tag("text", name, class_="row", text_anchor="end", x=left - 12, y=y + 4))
        if row.interval:
            parts.append(tag("line", class_="interval", x1=at(row.interval[0]), x2=at(row.interval[1]), y1=y, y2=y))
        told.append(f"{row.label}: {value_label} {value:.3f}")
        if row.other is not None:
            hover = f"{row.label}, {other_label}: {row.other:.3f}"
            parts.append(tag("line", class_="gain", x1=at(row.other), x2=at(value), y1=y, y2=y))
            parts.append(tag("circle", tag("title", hover), class_="dot other", cx=at(row.other), cy=y, r=5))
            told[-1] += f", {other_label} {row.other:.3f}"
        parts.append(tag("circle", tag("title", f"{row.label}, {value_label}: {value:.3f}"), class_="dot value", cx=at(value), cy=y, r=6))
    return picture("chart", title, "; ".join(told), width, height, parts)


def bar_chart(title: str, bars: Sequence[tuple[str, float, str]], *, width: int = 720) -> Markup:
    """Horizontal bars of values 0..1: (label, value, style class)."""
    if not bars:
        return Markup("")
    left, right, step = 190, 56, 34
    full = width - left - right
    parts = []
    for k, (label, value, style) in enumerate(bars):
        y = k * step + 6
        parts.append(tag("text", label, class_="row", text_anchor="end", x=left - 12, y=y + 16))
        parts.append(tag("rect", class_="track", x=left, y=y, width=full, height=22, rx=4))
        parts.append(tag("rect", class_=f"bar {style}", x=left, y=y, width=max(2.0, min(1.0, value) * full), height=22, rx=4))
        parts.append(tag("text", f"{value:.3f}", class_="row figure", x=width - right + 10, y=y + 16))
    return picture("chart", title, "; ".join(f"{label}: {value:.3f}" for label, value, _ in bars), width, step * len(bars) + 6, parts)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    stride = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:stride], points[-1]] if stride > 1 else points


def _whole_ticks(low: float, high: float, about: int) -> list[float]:
    """Whole numbers inside [low, high], rounds having no fractions."""
    step = max(1.0, ticks(0, max(high - low, 1), about)[1])
    return [x for k in range(math.ceil(low / step), math.floor(high / step) + 1) if low <= (x := k * step) <= high]
