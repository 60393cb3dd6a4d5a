"""One PNG that says what the project does: films with the truth, the mask for the report, and the mask for the swapped report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tmca_core.errors import ConfigError
from tmca_core.report.contours import outlines
from tmca_core.report.films import Film, load_films, read_mask
from tmca_core.run import Run, write_atomically

# Sizes in pixels of the finished picture; it is drawn twice as large and scaled down, which smooths the outlines.
_FILM, _GAP, _MARGIN, _HEAD, _OVER = 320, 16, 24, 34, 2
_PAGE, _INK, _SOFT = (16, 21, 27), (232, 237, 242), (154, 168, 183)
_COLOURS = {"truth": (255, 212, 59), "prediction": (53, 196, 245), "swapped": (255, 122, 184)}
_COLUMNS = (("truth", "True mask"), ("prediction", "Predicted from the report"), ("swapped", "Predicted after swapping left and right"))


def write_picture(run: Run, path: Path, *, rows: int = 1) -> Path:
    """Write a PNG with up to `rows` counterfactual examples of a run, one a row, three films each.

    Raises:
        ConfigError: the run holds no such example.
    """
    remarks: list[str] = []
    if not run.config_path.is_file():
        raise ConfigError(f"{run.folder} is not a run: it holds no config.toml. Give the folder that the command's --out named.")
    films = [film for film in load_films(run.folder / "examples", remarks) if film.kind == "counterfactual" and "swapped" in film.paths]
    if not films:
        why = f" ({' '.join(remarks)})" if remarks else ""
        raise ConfigError(
            f"{run.folder} holds no example with a swapped report{why}: run with evaluation.examples of 2 or more on one-sided reports."
        )
    chosen = _different_reports(films)[:rows]
    buffer = io.BytesIO()
    _draw(chosen).save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())
    return path


def _different_reports(films: Sequence[Film]) -> list[Film]:
    """Films in order, those whose report has been shown already last."""
    first: dict[str, Film] = {}
    for film in films:
        first.setdefault(film.report, film)
    return [*first.values(), *(film for film in films if film is not first[film.report])]


def _draw(films: Sequence[Film]) -> Image.Image:
    """All rows on one page."""
    o = _OVER
    body, small = ImageFont.load_default(15 * o), ImageFont.load_default(14 * o)
    width = 2 * _MARGIN + 3 * _FILM + 2 * _GAP
    texts = [[_wrap(f"“{text}”", body, _FILM * o) for text in (film.report, film.report, film.swapped_report)] for film in films]
    heights = [_film_height(film) + 30 + 22 * max(map(len, lines)) for film, lines in zip(films, texts, strict=True)]
    page = Image.new("RGB", (width * o, (2 * _MARGIN + _HEAD + sum(heights) + _GAP * (len(films) - 1)) * o), _PAGE)
    pen = ImageDraw.Draw(page)
    for k, (layer, heading) in enumerate(_COLUMNS):
        pen.text(((_MARGIN + k * (_FILM + _GAP)) * o, _MARGIN * o), heading, _COLOURS[layer], ImageFont.load_default(17 * o))
    top = _MARGIN + _HEAD
    for film, lines, height in zip(films, texts, heights, strict=True):
        scores = (
            "",
            f"Dice {film.dice:.2f}" if film.dice is not None else "",
            f"Dice {film.dice_swapped:.2f}" if film.dice_swapped is not None else "",
        )
        for k, (layer, _) in enumerate(_COLUMNS):
            left, below = _MARGIN + k * (_FILM + _GAP), top + _film_height(film) + 8
            layers = ("truth",) if layer == "truth" else ("truth", layer)
            page.paste(_film_picture(film, layers), (left * o, top * o))
            for n, line in enumerate(lines[k]):
                pen.text((left * o, (below + 22 * n) * o), line, _INK, body)
            pen.text((left * o, (below + 22 * len(lines[k])) * o), scores[k], _SOFT, small)
        top += height + _GAP
    return page.resize((page.width // o, page.height // o), Image.Resampling.LANCZOS)


def _film_height(film: Film) -> int:
    return round(_FILM * film.height / film.width)


def _film_picture(film: Film, layers: Sequence[str]) -> Image.Image:
    """One film with its outlines at drawing size; only the last layer is filled, and the truth is thin beside it."""
    with Image.open(film.file) as opened:
        source = opened.size
        picture = opened.convert("RGB")
    size = (_FILM * _OVER, _film_height(film) * _OVER)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    for layer in layers:
        shape, edge = Image.new("L", size), Image.new("L", size)
        inner, outer = ImageDraw.Draw(shape), ImageDraw.Draw(edge)
        masks = [read_mask(path, source, _FILM) for path in film.masks[layer]]
        height, width = masks[0].shape
        for curve in (curve for mask in masks for curve in outlines(mask)):
            points = [(x, y) for x, y in (curve * np.array([size[0] / width, size[1] / height])).tolist()]
            outer.line([*points, points[0]], 255, width=(3 if layer == layers[-1] else 2) * _OVER, joint="curve")
        if layer == layers[-1]:
            filled = Image.fromarray(np.any(masks, axis=0)).convert("L").resize(size, Image.Resampling.BICUBIC)
            inner.bitmap((0, 0), filled.point(lambda v: 255 * (v > 127)), 64)
        for stencil in (shape, edge):
            picture.paste(_COLOURS[layer], (0, 0), stencil)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(20 * _OVER)
    for letter, x, anchor in (("R", 0.03, "la"), ("L", 0.97, "ra")):
        pen.text((x * size[0], 0.02 * size[1]), letter, (225, 225, 225), font, anchor=anchor)
    return picture


def _wrap(text: str, font: Any, width: int, most: int = 3) -> list[str]:
    """Lines no wider than `width`; a text longer than `most` lines ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        last = lines[most - 1]
        while font.getlength(f"{last} …”") > width and " " in last:
            last = last.rpartition(" ")[0]
        lines = [*lines[: most - 1], f"{last} …”"]
    return lines
