"""What makes one phantom hospital differ from another: its scanner, its patients and how its radiologists write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tmca_core.cases.case import Laterality
from tmca_core.seeds import numpy_rng

Kind = Literal["consolidation", "ground-glass", "patchy", "nodule", "effusion", "band"]
Style = Literal["terse", "narrative", "structured", "negated"]

KINDS: dict[Kind, float] = {"consolidation": 0.36, "ground-glass": 0.24, "patchy": 0.20, "nodule": 0.07, "effusion": 0.10, "band": 0.03}
STYLES: tuple[Style, ...] = ("structured", "terse", "narrative", "negated")
NEGATIVE = 0.05  # share of films without any opacity, before site shift


@dataclass(frozen=True)
class Site:
    """One hospital.

    Attributes:
        laterality: side convention of its reports.
        negative: share of films without opacities.
        size: factor on the diameter of opacities.
        kinds: probability of each kind of opacity.
        styles: probability of each report style, in the order of `STYLES`.
        typos: share of reports with a slip of the keyboard.
        supine: share of AP films.
        window: (low, high) attenuation shown as black and white.
        gamma: of the display curve; below 1 is brighter.
        film: saturation of dense parts, 1 / attenuation.
        blur: standard deviation of the unsharpness, image fractions.
        grain: standard deviation of the noise, share of the grey range.
        tilt: largest brightness slope over the film, share of the grey range.
        collimated: share of films with a visible collimation border.
        marker: side letter that is laid on the film.
        marker_height: image fraction.
    """

    name: str
    laterality: Laterality
    negative: float
    size: float
    kinds: dict[Kind, float]
    styles: tuple[float, ...]
    typos: float
    supine: float
    window: tuple[float, float]
    gamma: float
    film: float
    blur: float
    grain: float
    tilt: float
    collimated: float
    marker: Literal["L", "R"]
    marker_height: float


def site_name(index: int) -> str:
    """Name of the site at `index`: "phantom-00"."""
    return f"phantom-{index:02d}"


def make_site(seed: int, index: int, shift: float) -> Site:
    """The site at `index`: a function of these three alone. With `shift` 0 all sites are alike."""
    z = np.clip(numpy_rng(seed, "phantom", index, "site").standard_normal(20), -2, 2) * shift
    kinds = {kind: weight * float(np.exp(0.35 * z[i])) for i, (kind, weight) in enumerate(KINDS.items())}
    total = sum(kinds.values())
    habits = [1 + (5 * shift if i == index % len(STYLES) else 0) for i in range(len(STYLES))]
    return Site(
        name=site_name(index),
        laterality="image" if shift > 0 and index % 4 == 3 else "patient",
        negative=float(np.clip(NEGATIVE * np.exp(0.4 * z[6]), 0, 0.2)),
        size=float(np.exp(0.06 * z[7])),
        kinds={kind: weight / total for kind, weight in kinds.items()},
        styles=tuple(h / sum(habits) for h in habits),
        typos=min(0.06 + (0.2 * shift if index % 4 == 2 else 0), 0.5),
        supine=float(np.clip(0.3 + 0.15 * z[8], 0.05, 0.9)),
        window=(0.09 + 0.025 * float(z[9]), 1.30 + 0.06 * float(z[10])),
        gamma=float(np.exp(0.13 * z[11])),
        film=0.95 + 0.22 * float(z[12]),
        blur=0.0026 * float(np.exp(0.3 * z[13])),
        grain=0.016 * float(np.exp(0.35 * z[14])),
        tilt=0.06 * float(np.exp(0.3 * z[15])),
        collimated=float(np.clip(0.25 + 0.2 * z[16], 0, 1)),
        marker="L" if z[17] >= 0 else "R",
        marker_height=0.050 * float(np.exp(0.15 * z[18])),
    )
