"""What a coordinator wants to know of a site's data before anything trains: figures between 0 and 1, each a mean over patients.

A patient's value of a figure is the mean over those of the patient's cases that have one. So every figure is bounded, its denominator
is a number of patients, and one patient more or less moves it by a known amount at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from tmca_core.cases.case import CaseTensors
from tmca_core.cases.laterality import one_sided
from tmca_core.cases.sizes import stored_size
from tmca_core.text.screen import LANGUAGES
from tmca_core.text.screen.names import split

PREFIX = "data."
SIZE_BITS = 13  # images have at most 2^13 pixels a side here; larger ones count as that large
MOST_WORDS = 250
CHUNK = 256  # images at a time, as floats

COUNTS = (f"{PREFIX}patients", f"{PREFIX}cases", f"{PREFIX}skipped")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: as policies allow it.
        group: patients that it is a mean over: those with a case ("case"), a report, a one-sided report with a mask ("sided"), or a
            mask of a target that is not empty ("mask" or "mask:NAME").
        unit: of what `shown` gives; "" for a share.
        most: what 1 stands for, in that unit; of sizes, the binary logarithm of it.
    """

    name: str
    group: str
    unit: str = ""
    most: float = 1.0

    def shown(self, value: float) -> float:
        """A value between 0 and 1 in the figure's unit; sizes are on a logarithmic scale, so that small films are told as well as large."""
        return float(round(2.0 ** (self.most * value))) if self.unit == "px" else round(self.most * value, 6)


@lru_cache(maxsize=8)
def figures_of(targets: tuple[str, ...]) -> dict[str, Figure]:
    """Every figure of a run with these targets, by name, in the order of a table."""
    several = [f":{name}" for name in targets] if len(targets) > 1 else [""]
    found = [
        Figure("image_width", "case", "px", SIZE_BITS),
        Figure("image_height", "case", "px", SIZE_BITS),
        Figure("intensity_mean", "case"),
        Figure("intensity_deviation", "case", "", 0.5),
        Figure("missing_reports", "case"),
        Figure("report_words", "report", "words", MOST_WORDS),
        *(Figure(f"language_{name}", "report") for name in LANGUAGES.names()),
        Figure("one_sided", "case"),
        Figure("sides_patient", "sided"),
        Figure("sides_image", "sided"),
        *(Figure(f"prevalence{suffix}", "case") for suffix in several),
        *(Figure(f"mask_area{suffix}", f"mask{suffix}") for suffix in several),
    ]
    return {f"{PREFIX}{one.name}": Figure(f"{PREFIX}{one.name}", one.group, one.unit, one.most) for one in found}


def values_of(data: Sequence[CaseTensors], targets: tuple[str, ...]) -> tuple[list[str], NDArray[np.float64]]:
    """Every patient's value of every figure.

    Args:
        data: a site's decoded cases, in parts; an image that is no file is as large as its tensor.
        targets: of the masks' channels.

    Returns:
        Ids of the patients, and (patients, figures) values between 0 and 1; NaN where a patient has no case with such a value.

    Raises:
        ImageError: an image's file cannot be read any more.
    """
    cases = [case for part in data for case in part.cases]
    by_case = np.concatenate([_of_part(part, targets) for part in data if len(part)]) if cases else np.empty((0, len(figures_of(targets))))
    rows: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        rows.setdefault(case.patient_id, []).append(i)
    found = np.full((len(rows), by_case.shape[1]), np.nan)
    for k, mine in enumerate(rows.values()):
        told = ~np.isnan(by_case[mine])
        with np.errstate(invalid="ignore"):  # 0/0 is "no value", as wanted
            found[k] = np.where(told, by_case[mine], 0.0).sum(0) / told.sum(0)
    return list(rows), found


def _of_part(part: CaseTensors, targets: tuple[str, ...]) -> NDArray[np.float64]:
    """(cases, figures), NaN where a case has no such value; in the order of `figures_of`."""
    number, side = len(part), part.images.shape[-1]
    sizes = np.array([stored_size(case.image) if case.image.is_file() else (side, side) for case in part.cases], np.float64)
    size_N2 = np.clip(np.log2(sizes) / SIZE_BITS, 0, 1)
    pixels = [part.images[i : i + CHUNK].flatten(1).float() / 255 for i in range(0, number, CHUNK)]
    mean, deviation = (torch.cat(one).double().numpy() for one in zip(*((p.mean(1), p.std(1, correction=0)) for p in pixels), strict=True))
    written = np.array([bool(case.report) for case in part.cases])
    words, languages = zip(*(_read(case.report) for case in part.cases), strict=True)
    named, offset, speaks = (one.numpy() for one in one_sided(part.cases, part.masks))
    area_NC = part.masks.flatten(2).float().mean(2).double().numpy()

    def only(values: NDArray[np.float64] | NDArray[np.bool_], where: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.where(where, values.astype(np.float64), np.nan)

    columns = [
        size_N2[:, 1],
        size_N2[:, 0],
        mean,
        np.clip(2 * deviation, 0, 1),
        ~written,
        only(np.clip(np.array(words) / MOST_WORDS, 0, 1), written),
        *(only(np.array([found == name for found in languages]), written) for name in LANGUAGES.names()),
        named != 0,
        only(named * offset == 1, speaks),
        only(named * offset == -1, speaks),
        *(area_NC[:, k] > 0 for k in range(len(targets))),
        *(only(area_NC[:, k], area_NC[:, k] > 0) for k in range(len(targets))),
    ]
    return np.stack([np.asarray(column, np.float64) for column in columns], 1)


@lru_cache(maxsize=4096)
def _read(report: str) -> tuple[int, str]:
    """Number of words of a report, and the language whose small words it has most of; "" where it has none of any."""
    keys = [word.key for word in split(report)]
    counts = {name: sum(key in marks for key in keys) for name, marks in _marks().items()}
    best = max(counts, key=lambda name: counts[name])
    return len(keys), best if counts[best] else ""


@lru_cache(maxsize=1)
def _marks() -> dict[str, frozenset[str]]:
    return {name: LANGUAGES[name]().marks for name in LANGUAGES.names()}
