"""Panels that show why a mask is where it is: a network's maps laid over its film, each with a sentence for the reader."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tmca_core.report.contours import outlines, svg_path
from tmca_core.report.lenient import number, objects

MOST_WORDS = 4  # that are shown of a report
_PHRASES = {"descriptive": "What it looks like", "diagnostic": "What it may be", "left": "What lies left", "right": "What lies right"}
_EVEN = 0.4  # half of an even spread lies on half of the image; above this a map is called even
_FLAT = 0.05  # a map in [0, 1] that varies less is called even
_PEAK = 8.0  # times the mean; a map whose peak is lower is drawn fainter, so that an even one does not look like a finding
_SIDE = 140  # pixels; the prior is drawn and outlined at this size

# Heat: transparent, then red to yellow, brighter and more opaque with the value. Told apart from the outlines by its hue.
_STOPS = np.array(
    [[0, 160, 20, 60, 0], [64, 200, 30, 60, 60], [128, 235, 80, 45, 125], [192, 250, 150, 50, 170], [255, 255, 240, 140, 200]]
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One map over a film.

    Attributes:
        title: in words, without markup.
        told: how to read it, one sentence.
        overlay: data URI of an RGBA picture over the whole film; "" for none.
        outline: SVG path in the film's pixels; "" for none.
    """

    kind: Literal["guidance", "enhancement", "word", "phrase"]
    title: str
    told: str
    overlay: str = ""
    outline: str = ""

    @property
    def size(self) -> int:
        """Bytes in the page, about."""
        return len(self.overlay) + len(self.outline) + len(self.told)


def panels(files: Mapping[str, Path], facts: Mapping[str, Any], predicted: npt.NDArray[np.bool_], scale: float) -> list[Panel]:
    """A film's panels in reading order; [] where its network returned no maps.

    Args:
        files: the example's pictures by name.
        facts: the index's entry on its maps.
        predicted: (H, W), all targets together.
        scale: pixels of the film a pixel of `predicted`.

    Raises:
        OSError: a picture cannot be read.
        ValueError: a strip is not of the number of maps that the index says.
    """
    found = []
    if "guidance" in files:
        found.append(_guidance(_read(files["guidance"]) / 255, number(facts.get("certainty")) or 1.0, predicted, scale))
    levels = [_read(files[name]) / 255 for name in sorted(files) if name.startswith("enhancement/")]
    if levels:
        found.append(_enhancement(levels))
    words, phrases = objects(facts.get("words")), objects(facts.get("phrases"))
    if "words" in files and words:
        maps = _cut(_read(files["words"]), len(words))
        found += [_pointing("word", f"“{words[k].get('text', '')}”", words[k], maps[k]) for k in most_telling(words)]
    if "phrases" in files and phrases:
        for phrase, values in zip(phrases, _cut(_read(files["phrases"]), len(phrases)), strict=True):
            kind = str(phrase.get("kind", ""))
            side = {"side": kind} if kind in ("left", "right") else {}
            found.append(_pointing("phrase", _PHRASES.get(kind, kind), {**phrase, **side}, values))
    return found


def most_telling(words: Sequence[Mapping[str, Any]]) -> list[int]:
    """At most four of a report's words, none twice: those that name a side first, then other words of phrases, in each those whose mass
    is most concentrated; of all words where no phrase has any.
    """

    def rank(k: int) -> tuple[bool, bool, float, int]:
        spread = number(words[k].get("half_area"))
        return not words[k].get("side"), (number(words[k].get("kind")) or 0) < 2, 1.0 if spread is None else spread, k

    speaking = [k for k in range(len(words)) if not rank(k)[0] or not rank(k)[1]] or range(len(words))
    chosen: dict[str, int] = {}
    for k in sorted(speaking, key=rank):
        chosen.setdefault(str(words[k].get("text", "")).lower(), k)
    return list(chosen.values())[:MOST_WORDS]


def _guidance(prior: Floats, certainty: float, predicted: npt.NDArray[np.bool_], scale: float) -> Panel:
    """The prior as it was used; the line is round the zones, as if the report were certain."""
    title = "Where the report lets it look"
    if prior.min() > 1 - _FLAT:
        return Panel("guidance", title, "The report names no place that could be held to, so the network looked everywhere.")
    height, width = predicted.shape
    drawn = (max(1, round(_SIDE * height / max(predicted.shape))), max(1, round(_SIDE * width / max(predicted.shape))))
    fine = _resize(prior, drawn)
    shade = np.zeros((*drawn, 4), dtype=np.uint8)
    shade[..., 3] = np.round(190 * (1 - fine))
    edge = 1 - certainty / 2  # a doubted place lifts the prior outside of it
    told = "The report places the finding in the bright part"
    told += ", but with doubt, so the rest is darkened less" if certainty < 1 else ""
    told += "; a mask in the dark part is not forbidden."
    if predicted.any():
        inside = float((_resize(prior, (height, width)) >= edge)[predicted].mean())
        told += f" {_percent(inside)} of the predicted mask lies inside of the line."
    return Panel("guidance", title, told, _uri(shade), svg_path(outlines(fine >= edge), scale * width / drawn[1]))


def _enhancement(levels: Sequence[Floats]) -> Panel:
    title = "Where image and report agree"
    largest = max((level.shape for level in levels), key=lambda shape: shape[0])
    values = np.mean([_resize(level, (largest[0], largest[1])) for level in levels], axis=0)
    told = f"The brighter, the better the film matches the report's words there (at most {values.max():.2f} of 1)"
    if values.max() - values.min() < _FLAT:
        told += "; here the match is even over the whole film."
    else:
        told += ", and the more the network strengthens that place; bright places without a mask are worth a second look."
    return Panel("enhancement", title, told, _uri(_heat(values)))


def _pointing(kind: Literal["word", "phrase"], title: str, facts: Mapping[str, Any], values: npt.NDArray[np.uint8]) -> Panel:
    """A word or a phrase: where its mass goes."""
    spread, share = number(facts.get("half_area")), number(facts.get("side_share"))
    if spread is not None and spread > _EVEN:
        told = "Spread evenly: it points nowhere in particular."
    else:
        told = "It points at the bright places." if spread is None else f"Half of its weight lies on {_percent(spread)} of the film."
    if share is not None and facts.get("side"):
        told += f" {_percent(share)} of it lies on the patient's {facts['side']}."
    density = values / max(float(values.mean()), 1e-9)  # an even spread is 1 everywhere
    return Panel(kind, title, told, _uri(_heat(density / max(float(density.max()), _PEAK))))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if share < 0.095 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L"))


def _cut(strip: npt.NDArray[np.uint8], count: int) -> list[npt.NDArray[np.uint8]]:
    if strip.shape[0] % count:
        raise ValueError(f"a strip of {strip.shape[0]} rows holds no {count} maps")
    return np.split(strip, count)


def _resize(values: Floats, shape: tuple[int, int]) -> Floats:
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float64)


def _heat(values: Floats) -> npt.NDArray[np.uint8]:
    """(h, w) in [0, 1] → RGBA."""
    return np.stack([np.interp(values * 255, _STOPS[:, 0], _STOPS[:, k]) for k in (1, 2, 3, 4)], axis=-1).round().astype(np.uint8)


def _uri(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
