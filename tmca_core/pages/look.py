"""How the pages look: the reports' style sheet with what a page adds, templates, and small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tmca_core.report import story
from tmca_core.report.svg import picture, tag


def style() -> str:
    """The style sheet."""
    report = (files("tmca_core.report") / "report.css").read_text(encoding="utf-8")
    return report + (files("tmca_core.pages") / "page.css").read_text(encoding="utf-8")


def environment(folder: Path) -> Environment:
    """Templates of a folder and of this one. Everything that comes from a run is escaped: names of sites are data, never markup."""
    made = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "figure": story.figure,
        "signed": story.signed,
        "size": story.size,
        "duration": story.duration,
        "moment": moment,
    }
    return made


def moment(seconds: float | None) -> Markup:
    """A moment (seconds since 1970) as the page's script can turn it into "12 s ago"; a dash where there is none."""
    if seconds is None:
        return Markup("–")
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(at.isoformat(timespec="seconds"), f"{at:%d %b %H:%M:%S}")


def spark(title: str, points: Sequence[tuple[float, float]], low: float, high: float, width: int = 100, height: int = 30) -> Markup:
    """A curve the size of a word, of values from `low` to `high`; one point is a dot. Empty without any."""
    if not points:
        return Markup("")
    first, last = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 1.0
        return 4 + across * (width - 8), height - 4 - min(1.0, max(0.0, (y - low) / (high - low))) * (height - 8)

    places = [place(x, y) for x, y in points]
    end = places[-1]
    parts = [
        tag("line", class_="grid", x1=4, x2=width - 4, y1=height - 4, y2=height - 4),
        tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)),
        tag("circle", cx=end[0], cy=end[1], r=3),
    ]
    told = f"from {points[0][1]:.3f} in round {first:g} to {points[-1][1]:.3f} in round {last:g}"
    return picture("spark", title, told, width, height, parts)


def meter(title: str, share: float, width: int = 720, height: int = 18) -> Markup:
    """A bar that is filled to a share of 0 to 1."""
    full = min(1.0, max(0.0, share)) * width
    kind = "full" if share >= 0.9 else "some"
    parts = [
        tag("rect", class_="track", width=width, height=height, rx=9),
        tag("rect", class_=f"spent {kind}", width=full, height=height, rx=9),
    ]
    return picture("meter", title, f"{share:.0%}", width, height, parts)
