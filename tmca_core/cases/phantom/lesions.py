"""Opacities: which a film has, which of them the report names, and how they look.

Each opacity is a soft-edged level set f > 0 in image fractions, clipped to the aerated lung of its side, that takes part of
the air away. The named ones are drawn evenly among all, so that the image alone cannot tell them from the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from tmca_core.cases.case import ZONES
from tmca_core.cases.phantom.anatomy import Box, Chest, Noise, Parameters, bump, pixels, spline_basis, step
from tmca_core.cases.phantom.sites import Kind, Site

MOST = 4  # opacities a film
CELLS = 20  # a side, of outline and texture noise
COUNTS = {1: 0.03, 2: 0.26, 3: 0.43, 4: 0.28}  # opacities of a film that has any
# How many of them the report names; which ones is drawn evenly.
NAMED: dict[int, dict[int, float]] = {1: {1: 1.0}, 2: {1: 1.0}, 3: {1: 0.90, 2: 0.10}, 4: {1: 0.75, 2: 0.25}}
SPANNING = 0.14  # share of opacities that fill two neighbouring zones, where there is room
# Centre of an opacity by height: y range; distance from the midline on the patient's right; the same on the left.
PLACES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "U": ((0.240, 0.275), (0.140, 0.190), (0.145, 0.190)),
    "M": ((0.430, 0.460), (0.170, 0.230), (0.180, 0.235)),
    "L": ((0.615, 0.650), (0.180, 0.240), (0.235, 0.270)),
}
# Half axes (across, up), strength (share of air lost) and roughness of the outline.
LOOKS: dict[Kind, tuple[tuple[float, float], tuple[float, float], tuple[float, float], float]] = {
    "consolidation": ((0.105, 0.145), (0.080, 0.105), (0.78, 0.95), 0.10),
    "ground-glass": ((0.110, 0.150), (0.082, 0.105), (0.46, 0.60), 0.09),
    "patchy": ((0.110, 0.150), (0.082, 0.105), (0.66, 0.86), 0.12),
    "nodule": ((0.055, 0.078), (0.055, 0.078), (0.80, 0.95), 0.05),
    "effusion": ((0.200, 0.200), (0.030, 0.110), (0.92, 1.00), 0.04),
    "band": ((0.120, 0.145), (0.026, 0.034), (0.75, 0.90), 0.05),
}


@dataclass(frozen=True)
class Opacity:
    """One opacity in the patient's frame (see `anatomy`).

    Attributes:
        zones: names of `cases.case.ZONES` that it fills, one or two.
        named: whether the report speaks of it, i.e. whether it belongs to the mask.
        x, y: centre; x is positive on the patient's left.
        across, up: half axes; for an effusion `up` is its level above the dome.
        angle: of the ellipse, radians.
        strength: share of the air that it takes, 0 to 1.
        noise: (2, CELLS, CELLS) draws for outline and texture.
    """

    kind: Kind
    zones: tuple[str, ...]
    named: bool
    x: float
    y: float
    across: float
    up: float
    angle: float
    strength: float
    noise: Noise

    @property
    def side(self) -> str:
        """The patient's "left" or "right"."""
        return "left" if self.zones[0][0] == "L" else "right"


def target_prior(count: int) -> dict[tuple[int, ...], float]:
    """Probability of each subset of a film's opacities being the named one: all that an image can tell."""
    subsets: dict[tuple[int, ...], float] = {}
    for size, share in NAMED[count].items():
        equal = list(itertools.combinations(range(count), size))
        subsets.update({subset: share / len(equal) for subset in equal})
    return subsets


def plan(site: Site, position: Parameters, rng: Generator) -> list[Opacity]:
    """The opacities of one film; none on a negative one."""
    if rng.random() < site.negative:
        return []
    count = int(rng.choice(list(COUNTS), p=list(COUNTS.values())))
    groups = _places(count, rng)
    subsets = target_prior(count)
    named = list(subsets)[int(rng.choice(len(subsets), p=list(subsets.values())))]
    taken = {zone for group in groups for zone in group}
    return [_opacity(group, i in named, taken, site, position, rng) for i, group in enumerate(groups)]


def _places(count: int, rng: Generator) -> list[tuple[str, ...]]:
    """Zones of each opacity: all different, and on both sides as soon as there are two."""
    while True:
        zones = [ZONES[i] for i in rng.permutation(len(ZONES))[:count]]
        if count == 1 or len({zone[0] for zone in zones}) == 2:
            break
    groups: list[tuple[str, ...]] = []
    for zone in zones:
        # Two neighbours at once, only where nothing else lies on that side.
        alone = sum(other[0] == zone[0] for other in zones) == 1
        if alone and rng.random() < 2 * SPANNING:
            groups.append((zone[0] + "U", zone[0] + "M") if zone[1] == "U" else (zone[0] + "M", zone[0] + "L"))
        else:
            groups.append((zone,))
    return groups


def _opacity(zones: tuple[str, ...], named: bool, taken: set[str], site: Site, position: Parameters, rng: Generator) -> Opacity:
    kinds = dict(site.kinds)
    if zones[0][1] != "L" or len(zones) > 1:
        kinds.pop("effusion")  # lies at the base
    if len(zones) > 1:
        kinds.pop("nodule")
        kinds.pop("band")
    weights = np.array(list(kinds.values()))
    kind = list(kinds)[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    across_range, up_range, strength, _ = LOOKS[kind]
    heights = [PLACES[zone[1]] for zone in zones]
    sign, column = (1, 2) if zones[0][0] == "L" else (-1, 1)
    y = float(np.mean([rng.uniform(*place[0]) for place in heights]))
    x = float(np.mean([rng.uniform(*place[column]) for place in heights]))
    across, up = (float(rng.uniform(*r)) * site.size for r in (across_range, up_range))
    if len(zones) > 1:
        up += 0.085
    # A neighbour above or below leaves less room.
    elif kind != "effusion" and "M" in {zone[1] for zone in taken if zone[0] == zones[0][0]} and len(_same_side(taken, zones[0])) > 1:
        up = min(up, 0.088)
    y += position["breath"] * (y - 0.2) / 0.45
    return Opacity(
        kind, zones, named, sign * x, y, across, up, float(rng.uniform(-0.35, 0.35)) * sign, float(rng.uniform(*strength)),
        rng.standard_normal((2, CELLS, CELLS), dtype=np.float32),
    )  # fmt: skip


def _same_side(taken: set[str], zone: str) -> set[str]:
    return {other for other in taken if other[0] == zone[0]}


def render(c: Chest, parameters: Sequence[Parameters], films: Sequence[Sequence[Opacity]]) -> tuple[Tensor, Tensor]:
    """Opacities of a batch.

    Args:
        c: geometry of B films.
        parameters: those that `c` was made of.
        films: the opacities of each.

    Returns:
        (B, S, S) share of the air that is left, and (B, MOST, S, S) bool masks, one an opacity, disjoint.
    """
    size = c.x.shape[-1]
    left = torch.ones_like(c.x)
    masks = torch.zeros((len(films), MOST, size, size), dtype=torch.bool)
    basis = spline_basis(CELLS, size)
    lungs = c.inside > 0
    for b, (p, opacities) in enumerate(zip(parameters, films, strict=True)):
        free = torch.ones((size, size), dtype=torch.bool)
        for k, opacity in enumerate(opacities):
            rows, columns = at = pixels(_box(p, opacity), size)
            x, y = c.x[b][at], c.y[b][at]
            noise = basis[rows] @ torch.from_numpy(opacity.noise) @ basis[columns].T  # (2, h, w)
            field = _level_set(x, y, p, opacity, noise[0])
            here = (x > 0 if opacity.x > 0 else x < 0) & free[at]
            soft = step(field, 0.30 if opacity.kind in ("ground-glass", "patchy") else 0.20).mul_(here)
            left[b][at] *= 1 - opacity.strength * soft * _texture(opacity.kind, noise[1])
            mask = (field > 0) & lungs[b][at] & here
            masks[b, k][at] = mask
            free[at] &= ~mask
    return left, masks


def _level_set(x: Tensor, y: Tensor, p: Parameters, opacity: Opacity, noise: Tensor) -> Tensor:
    """(h, w) field, positive inside the opacity and about 1 at its centre."""
    rough = LOOKS[opacity.kind][3] * noise
    if opacity.kind == "effusion":
        # A meniscus: level in the middle, climbing towards the chest wall.
        level = p["dome"] + p["breath"] + (p["dome_step"] if opacity.x > 0 else 0) - opacity.up
        surface = level + 0.03 - 4.5 * (x.abs() - 0.17).clamp_(min=0).square_()
        return (y - surface) * 10 + rough
    dx, dy = x - opacity.x, y - opacity.y
    cos, sin = float(np.cos(opacity.angle)), float(np.sin(opacity.angle))
    along = (dx * cos + dy * sin).div_(opacity.across).abs_()
    upward = (dy * cos - dx * sin).div_(opacity.up).abs_()
    # Masses are round; the others are superellipses, fuller than an ellipse, as lobes and segments are.
    power = 2 if opacity.kind == "nodule" else 3
    radius = (along**power + upward**power) ** (1 / power)
    return 1 - radius + rough


def _texture(kind: Kind, noise: Tensor) -> Tensor | float:
    """Local strength of an opacity, about 0.5 to 1."""
    if kind == "patchy":
        return (0.72 + 0.30 * noise).clamp_(0.42, 1)
    if kind == "ground-glass":
        return (0.95 + 0.06 * noise).clamp_(0.8, 1)
    if kind == "consolidation":
        return 1 - 0.25 * bump(noise - 0.6, 0.25)  # air bronchograms, after a fashion
    return 1.0


def _box(p: Parameters, opacity: Opacity) -> Box:
    """Window that holds the opacity."""
    if opacity.kind == "effusion":
        return (0.50, 0.98, 0.46, 0.98) if opacity.x > 0 else (0.50, 0.98, 0.02, 0.54)
    reach = max(opacity.across, opacity.up) * 1.45 + 0.03
    x = 0.5 + (opacity.x + p["lean"] * (opacity.y - 0.5)) * p["zoom"] + p["shift_x"]
    y = 0.5 + (opacity.y - 0.5) * p["zoom"] + p["shift_y"]
    return y - reach, y + reach, x - reach, x + reach


def union(masks: Tensor, films: Sequence[Sequence[Opacity]], named_only: bool) -> Tensor:
    """(B, 1, S, S) uint8 union of each film's opacities, all of them or the named ones."""
    whole = torch.zeros((len(masks), 1, *masks.shape[2:]), dtype=torch.uint8)
    for b, opacities in enumerate(films):
        for k, opacity in enumerate(opacities):
            if opacity.named or not named_only:
                whole[b, 0] |= masks[b, k]
    return whole
