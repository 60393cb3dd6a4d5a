"""Examples of a run as a page or a picture draws them: the image, and the outlines of its masks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tmca_core.report.contours import outlines, svg_path
from tmca_core.report.lenient import mapping, number, objects
from tmca_core.report.panels import Panel, panels

LAYERS = ("truth", "prediction", "swapped")
_BUDGET = 3_000_000  # bytes of images and outlines in a page, so that it stays below 5 MB with everything else


@dataclass(frozen=True)
class Film:
    """One example, ready to draw.

    Attributes:
        image: data URI of `width` × `height` pixels; `file` is the PNG that it was made from.
        targets: names, in the order of paths and masks.
        paths: by layer, an SVG outline a target.
        masks: by layer, the PNG a target.
        panels: the network's own maps, where it returned any.
    """

    id: str
    case_id: str
    site: str
    report: str
    swapped_report: str
    kind: str
    dice: float | None
    dice_swapped: float | None
    image: str
    width: int
    height: int
    file: Path
    targets: Sequence[str]
    paths: Mapping[str, Sequence[str]]
    masks: Mapping[str, Sequence[Path]]
    panels: Sequence[Panel]

    @property
    def size(self) -> int:
        """Bytes in the page, about."""
        return len(self.image) + sum(len(path) for paths in self.paths.values() for path in paths) + sum(p.size for p in self.panels)


def load_films(folder: Path, remarks: list[str]) -> list[Film]:
    """The examples of a run; what cannot be shown is said in `remarks`."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        remarks.append(f"examples/index.json could not be read ({error}); no example is shown.")
        return []
    entries = objects(mapping(index).get("examples"))[:24]
    side = 320 if len(entries) <= 12 else 224
    films: list[Film] = []
    spent = 0
    for entry in entries:
        try:
            film = _film(folder, entry, side)
        except (OSError, ValueError, KeyError, TypeError, Image.DecompressionBombError) as error:
            remarks.append(f"Example {entry.get('id', '?')} is not shown: {type(error).__name__}: {error}.")
            continue
        spent += film.size
        if spent > _BUDGET:
            remarks.append(f"{len(entries) - len(films)} examples are not shown: the page would grow too large.")
            break
        films.append(film)
    return films


def _film(folder: Path, entry: Mapping[str, Any], side: int) -> Film:
    names = {str(k): str(v) for k, v in entry["files"].items()}
    if any(Path(name).name != name for name in names.values()):
        raise ValueError("a file lies outside of the examples' folder")
    files = {what: folder / name for what, name in names.items()}
    targets = [str(target) for target in entry.get("targets") or ["lesion"]]
    with Image.open(files["image"]) as opened:
        picture = opened.convert("L" if opened.mode in ("1", "L", "I", "I;16") else "RGB")
    full = picture.size
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    masks = {
        layer: [files[layer if len(targets) == 1 else f"{layer}/{target}"] for target in targets]
        for layer in LAYERS
        if any(what.partition("/")[0] == layer for what in files)
    }
    read = {layer: [read_mask(path, full, side // 2) for path in paths] for layer, paths in masks.items()}
    predicted = np.any(read["prediction"], axis=0)
    scale = picture.width / predicted.shape[1]
    return Film(
        id=str(entry["id"]),
        case_id=str(entry.get("case_id", "")),
        site=str(entry.get("site", "")),
        report=str(entry.get("report", "")),
        swapped_report=str(entry.get("swapped_report", "")),
        kind=str(entry.get("kind", "")),
        dice=number(entry.get("dice")),
        dice_swapped=number(entry.get("dice_swapped")),
        image="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        width=picture.width,
        height=picture.height,
        file=files["image"],
        targets=targets,
        paths={layer: [svg_path(outlines(mask), scale) for mask in found] for layer, found in read.items()},
        masks=masks,
        panels=panels(files, mapping(entry.get("maps")), predicted, scale),
    )


def read_mask(path: Path, size: tuple[int, int], most: int) -> npt.NDArray[np.bool_]:
    """(H, W) mask from an 8-bit PNG, scaled down so that its longer side is at most `most` pixels.

    Raises:
        ValueError: it is not of the image's size (width, height).
    """
    with Image.open(path) as opened:
        if opened.size != size:
            raise ValueError(f"{path.name} is {opened.size}, its image {size}")
        mask = opened.convert("L")
    mask.thumbnail((most, most), Image.Resampling.BOX)
    return np.asarray(mask) > 127
