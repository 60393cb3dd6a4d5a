"""SVG elements as escaped markup: the only place where tags are put together."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup


def tag(name: str, content: str | Markup = "", **attributes: str | float) -> Markup:
    """One element. Content (unless it is markup) and attribute values are escaped; `class_` is class, `text_anchor` text-anchor.

    Example:
        >>> tag("text", "a < b", x=1.25, text_anchor="end")
        Markup('<text x="1.2" text-anchor="end">a &lt; b</text>')
    """
    written = Markup("")
    for key, value in attributes.items():
        text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        written += Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), text)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, content)


def picture(kind: str, title: str, description: str, width: int, height: int, parts: Iterable[Markup]) -> Markup:
    """An `svg` element of class `kind` that says what it shows: `title` is its name, `description` its content in words."""
    told = tag("title", title) + tag("desc", description[:2000])
    opening = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(kind, width, height, title)
    return opening + told + Markup("").join(parts) + Markup("</svg>")
