"""Films as SVG: the image, the outlines of its masks, and the network's own maps over it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from tmca_core.report.films import Film
from tmca_core.report.panels import Panel
from tmca_core.report.svg import picture, tag

COLOURS = 8  # of targets in the style sheet; further targets begin again
_SHOWN = {"truth": "true mask", "prediction": "predicted mask", "swapped": "mask predicted with the swapped report"}


def draw_film(film: Film, layers: Sequence[str], *, again: bool = False) -> Markup:
    """An image with outlines of the named layers. `again` reuses pixels and outlines of an earlier drawing of the same film with the
    layers truth and prediction.
    """
    told = f"Case {film.case_id} of {film.site} with outlines: {', '.join(_SHOWN[layer] for layer in layers)}{_of_targets(film)}."
    parts = [_pixels(film, again), *(path for layer in layers for path in _outlines(film, layer, again)), *_letters(film)]
    return picture("film", told, f"Report: {film.report}", film.width, film.height, parts)


def draw_panel(film: Film, panel: Panel) -> Markup:
    """One of the network's maps over a film that was drawn before with truth and prediction; the predicted mask is outlined."""
    parts = [_pixels(film, again=True)]
    if panel.overlay:
        parts.append(tag("image", href=panel.overlay, width=film.width, height=film.height, preserveAspectRatio="none"))
    if panel.outline:
        parts.append(tag("path", class_="zone", d=panel.outline))
    parts += [tag("g", Markup("").join(_outlines(film, "prediction", again=True)), class_="edge"), *_letters(film)]
    name = (
        f"Case {film.case_id} of {film.site}, {panel.title}: map over the image with the outline of the predicted mask{_of_targets(film)}."
    )
    return picture("film", name, panel.told, film.width, film.height, parts)


def _of_targets(film: Film) -> str:
    return f" of {', '.join(film.targets)}" if len(film.targets) > 1 else ""


def _key(film: Film) -> str:
    return "film-" + re.sub(r"\W", "-", film.id)


def _pixels(film: Film, again: bool) -> Markup:
    if again:
        return tag("use", href=f"#{_key(film)}")
    return tag("image", id=_key(film), href=film.image, width=film.width, height=film.height, preserveAspectRatio="none")


def _outlines(film: Film, layer: str, again: bool) -> list[Markup]:
    """One path a target, or a reference to it; swapped masks are drawn once only."""
    paths = [(f"{_key(film)}-{layer}-{k}", k, path) for k, path in enumerate(film.paths.get(layer, ())) if path]
    if again and layer != "swapped":
        return [tag("use", href=f"#{key}") for key, _, _ in paths]
    several = len(film.targets) > 1
    return [tag("path", id=key, class_=f"{layer} t{k % COLOURS}" if several else layer, d=path) for key, k, path in paths]


def _letters(film: Film) -> list[Markup]:
    """R and L, the patient's."""
    letter = film.height / 12
    return [
        tag("text", side, class_="side", text_anchor=anchor, x=x * film.width, y=letter * 1.05, font_size=letter)
        for side, x, anchor in (("R", 0.03, "start"), ("L", 0.97, "end"))
    ]
