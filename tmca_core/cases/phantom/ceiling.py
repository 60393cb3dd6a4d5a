"""How far an image-only network can get on the phantom: it sees every opacity and cannot know which are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tmca_core.cases.phantom.films import BATCH, plan_site, render
from tmca_core.cases.phantom.lesions import target_prior
from tmca_core.config import PhantomSettings


@dataclass(frozen=True)
class Ceiling:
    """Mean per-image Dice (empty against empty counts 1) of oracles that know all opacities but not the report.

    Attributes:
        best: of the subset of opacities with the largest expected Dice, chosen anew for each film: the ceiling.
        union: of all opacities of the film.
        largest: of the largest opacity alone.
        cases: films measured.
        median_area: median share of the image that the named opacities fill, films without any aside.
    """

    best: float
    union: float
    largest: float
    cases: int
    median_area: float


def image_only_ceiling(settings: PhantomSettings, *, size: int = 128) -> Ceiling:
    """Measure the ceiling on the films of `settings`.

    The named opacities are drawn evenly among a film's opacities, so that the best image-only prediction maximises the
    expected Dice under that draw; it is searched over all subsets of whole opacities (at most 16).
    """
    scores: dict[str, list[float]] = {"best": [], "union": [], "largest": []}
    named_areas: list[float] = []
    for index in range(settings.sites):
        site, films = plan_site(settings, index)
        for start, (_, masks) in zip(range(0, len(films), BATCH), render(settings, index, site, films, size), strict=True):
            for film, each in zip(films[start : start + BATCH], masks, strict=True):
                named = tuple(i for i, opacity in enumerate(film.opacities) if opacity.named)
                areas = each.flatten(1).sum(1).double().numpy()[: len(film.opacities)]
                for rule, chosen in _rules(areas).items():
                    scores[rule].append(dice(areas, chosen, named))
                if named:
                    named_areas.append(float(areas[list(named)].sum()) / size**2)
    means: Mapping[str, float] = {rule: float(np.mean(values)) for rule, values in scores.items()}
    return Ceiling(**means, cases=len(scores["best"]), median_area=float(np.median(named_areas)) if named_areas else 0.0)


def dice(areas: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]], chosen: Sequence[int], named: Sequence[int]) -> float:
    """Dice of two unions of disjoint opacities, from their areas; 1 where both are empty."""
    both = sum(areas[i] for i in chosen if i in named)
    total = sum(areas[i] for i in chosen) + sum(areas[i] for i in named)
    return float(2 * both / total) if total else 1.0


def _rules(areas: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[str, tuple[int, ...]]:
    """What each oracle predicts for one film."""
    count = len(areas)
    everything = tuple(range(count))
    if not count:
        return {"best": (), "union": (), "largest": ()}
    prior = target_prior(count)
    subsets = [tuple(i for i in everything if bits >> i & 1) for bits in range(1, 2**count)]
    expected = [sum(share * dice(areas, subset, named) for named, share in prior.items()) for subset in subsets]
    return {"best": subsets[int(np.argmax(expected))], "union": everything, "largest": (int(np.argmax(areas)),)}
