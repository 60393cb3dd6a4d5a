"""A chest in image fractions: what patients and exposures vary in, and the geometry that organs and opacities share.

Coordinates: u is the distance from the midline and y the height, as shares of the image's side; the patient's left lies at
x > 0 (the image's right half). Every shape is a formula in these, so that one seed gives one anatomy at any size. The
figures are this project's own, set by eye against chest films: heart about half as wide as the chest, right dome some 2 cm
above the left, ten posterior ribs.

Legend of shapes: B films, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

Parameters = dict[str, float]
Noise = NDArray[np.float32]
Box = tuple[float, float, float, float]  # top, bottom, left, right, in image fractions

# Mean and standard deviation over patients; draws are cut at two standard deviations.
BODY: dict[str, tuple[float, float]] = {
    "apex": (0.115, 0.011),
    "base": (0.850, 0.014),  # costophrenic angles
    "dome": (0.715, 0.016),  # top of the right hemidiaphragm
    "dome_step": (0.032, 0.008),  # by which the left one is lower
    "half_width": (0.372, 0.011),  # of the rib cage, inside
    "right_heart": (0.058, 0.006),
    "left_heart": (0.150, 0.012),
    "knob": (0.030, 0.008),  # of the aorta
    "wall": (0.066, 0.022),  # chest wall, rib to skin
    "neck": (0.118, 0.012),
    "clavicle": (0.196, 0.012),
    "clavicle_slope": (0.062, 0.018),
    "rib_start": (0.105, 0.012),
    "rib_step": (0.0645, 0.003),
    "rib_strength": (0.105, 0.020),
    "bone_strength": (0.155, 0.022),
    "vessels": (0.180, 0.035),
    "scoliosis": (0.0, 0.006),
    "axilla": (0.38, 0.03),
    "bubble_x": (0.185, 0.018),
    "bubble_width": (0.058, 0.012),
}
# The same for one exposure: how the patient stood and breathed.
POSITION: dict[str, tuple[float, float]] = {
    "shift_x": (0.0, 0.010),
    "shift_y": (0.0, 0.010),
    "zoom": (1.0, 0.022),
    "lean": (0.0, 0.018),
    "tilt": (0.0, 0.015),
    "breath": (0.0, 0.008),
    "heart_scale": (1.0, 0.04),
    "line_x": (0.0, 0.12),
    "line_bend": (0.0, 0.10),
}
WARP_CELLS, MARKING_CELLS = 10, 44  # a side, of smooth irregularities and of lung markings
VESSEL_GRID = (6, 40)  # radius × angle cells of the vessel noise


@dataclass(frozen=True)
class Patient:
    """What the films of one patient share."""

    body: Parameters
    warp: Noise  # (2, WARP_CELLS, WARP_CELLS)
    vessels: Noise  # (2, *VESSEL_GRID)
    markings: Noise  # (1, MARKING_CELLS, MARKING_CELLS)


@dataclass(frozen=True)
class Chest:
    """Geometry of B films at one size, shared by organs, opacities and masks.

    Attributes:
        p: parameters by name, each (B, 1, 1) float32.
        x: (B, S, S) signed distance from the midline, the patient's left positive.
        u: (B, S, S) its absolute value.
        y: (B, S, S) height in the patient's own frame.
        left: (B, S, S) 1 on the patient's left, else 0.
        from_ribs: (B, S, S) distance inwards from the rib cage; negative outside.
        from_heart: (B, S, S) distance outwards from the mediastinum.
        from_dome: (B, S, S) distance upwards from the diaphragm.
        warp: two smooth noises (B, S, S) of about unit variance, the same for a patient's films.
    """

    p: dict[str, Tensor]
    x: Tensor
    u: Tensor
    y: Tensor
    left: Tensor
    from_ribs: Tensor
    from_heart: Tensor
    from_dome: Tensor
    warp: tuple[Tensor, Tensor]

    @property
    def inside(self) -> Tensor:
        """(B, S, S) distance to the nearest border of the aerated lung; positive inside."""
        return torch.minimum(torch.minimum(self.from_ribs, self.from_heart), self.from_dome)

    def window(self, box: Box) -> tuple[Chest, tuple[slice, slice, slice]]:
        """Views of a part of every film, and the slices that place it: small organs need no whole frame."""
        at = (slice(None), *pixels(box, self.x.shape[-1]))
        parts = {name: getattr(self, name)[at] for name in ("x", "u", "y", "left", "from_ribs", "from_heart", "from_dome")}
        return replace(self, **parts, warp=(self.warp[0][at], self.warp[1][at])), at


def pixels(box: Box, size: int) -> tuple[slice, slice]:
    """Rows and columns that hold a box."""
    rows, columns = (slice(max(0, int(a * size)), max(0, round(b * size + 0.5))) for a, b in (box[:2], box[2:]))
    return rows, columns


def draw(table: dict[str, tuple[float, float]], rng: Generator) -> Parameters:
    """One draw of every parameter of a table."""
    deviations = np.clip(rng.standard_normal(len(table)), -2, 2)
    return {name: mean + sd * float(d) for (name, (mean, sd)), d in zip(table.items(), deviations, strict=True)}


def draw_patient(rng: Generator, female: bool) -> Patient:
    """A patient's organs."""
    body = draw(BODY, rng)
    breast, bubble, has_bubble = rng.uniform(0.03, 0.10), rng.uniform(0.15, 0.35), rng.random() < 0.55
    body["breast"] = float(breast) if female else 0.0
    body["bubble"] = float(bubble) if has_bubble else 0.0
    shapes = (2, WARP_CELLS, WARP_CELLS), (2, *VESSEL_GRID), (1, MARKING_CELLS, MARKING_CELLS)
    return Patient(body, *(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))


def draw_position(rng: Generator, supine: bool) -> Parameters:
    """One exposure. Supine (AP) films show a wider heart, a shallower breath and often a lead."""
    position = draw(POSITION, rng)
    lead = rng.random() < 0.6
    position["line"] = float(supine and lead)
    if supine:
        position["heart_scale"] *= 1.18
        position["breath"] -= 0.025
        position["lean"] *= 1.6
    return position


def step(distance: Tensor, softness: float) -> Tensor:
    """0 to 1 across a border `softness` wide on either side; `distance` is positive inside."""
    return distance.mul(0.5 / softness).add_(0.5).clamp_(0, 1)


def bump(value: Tensor, width: float) -> Tensor:
    """Bell of height 1 at 0, like exp(−(value / width)²) but zero beyond 2.4 widths and four times as fast."""
    square = value.mul(1 / (2.4 * width)).square_()
    return square.neg_().add_(1).clamp_(min=0).square_().square_()


def spline_basis(cells: int, size: int) -> Tensor:
    """(S, cells) values of uniform cubic B-splines at pixel centres; a field is basis @ draws @ basisᵀ at any size.

    Scaled so that unit draws give a field of about unit variance.
    """
    at = (torch.arange(size, dtype=torch.float32) + 0.5) / size * (cells - 3) + 1
    t = (at[:, None] - torch.arange(cells, dtype=torch.float32)).abs()
    inner, outer = (4 - 6 * t**2 + 3 * t**3) / 6, (2 - t).clamp_min(0) ** 3 / 6
    return torch.where(t < 1, inner, outer) * 2**0.5


def smooth_noise(draws: Tensor, size: int) -> Tensor:
    """(…, g, g) draws to a (…, S, S) smooth field, the same at every size."""
    basis = spline_basis(draws.shape[-1], size)
    return basis @ draws @ basis.T


def chest(parameters: Sequence[Parameters], warps: Sequence[Noise], size: int) -> Chest:
    """Geometry of a batch of films; `parameters` merge a patient's body and an exposure's position."""
    p = {name: torch.tensor([one[name] for one in parameters], dtype=torch.float32)[:, None, None] for name in parameters[0]}
    noise = smooth_noise(torch.from_numpy(np.stack(warps)), size)
    warp = noise[:, 0].contiguous(), noise[:, 1].contiguous()
    centre = (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5
    row = (centre[None, :, None] - p["shift_y"]) / p["zoom"] + 0.5  # (B, S, 1)
    x = (centre[None, None, :] - p["shift_x"]) / p["zoom"] - p["lean"] * (row - 0.5)
    left = (x > 0).float()
    u = x.abs()
    y = row + p["tilt"] * x

    # Borders that depend on the height alone: rib cage and mediastinum, closed at the apex.
    t = (row - p["apex"]) / (p["base"] + p["breath"] - p["apex"])
    spread = (1 - (1 - t.clamp(0, 1)) ** 2.1).clamp_min(0) ** 0.52
    rib_cage = 0.125 + (p["half_width"] - 0.125) * spread - 0.25 * (t - 0.85).clamp(0, 0.5) ** 2
    close = 0.080 * (1 - (t.clamp_min(0) * 8).clamp(max=1).sqrt())
    heart_row = row - p["breath"] * 0.7
    right_side = 0.045 + close + p["right_heart"] * p["heart_scale"] * _bell(heart_row - 0.63, 0.105) + 0.012 * _bell(row - 0.30, 0.09)
    ventricle = torch.where(heart_row > 0.715, _bell(heart_row - 0.715, 0.135), _bell(heart_row - 0.715, 0.155))
    left_side = 0.048 + close + p["left_heart"] * p["heart_scale"] * ventricle
    left_side = left_side + p["knob"] * _bell(row - 0.325, 0.034) + 0.016 * _bell(row - 0.425, 0.04)
    mediastinum = right_side + (left_side - right_side) * left

    dome = p["dome"] + p["breath"] + p["dome_step"] * left
    outwards = u - 0.20
    fall = 4.6 * outwards.clamp_min(0).square_() + 1.5 * outwards.clamp_max(0).square_()
    return Chest(
        p=p,
        x=x,
        u=u,
        y=y,
        left=left,
        from_ribs=(rib_cage - u).add_(warp[0], alpha=0.003),
        from_heart=(u - mediastinum).add_(warp[1], alpha=0.004),
        from_dome=(dome + fall - y).add_(warp[0], alpha=0.003),
        warp=warp,
    )


def _bell(value: Tensor, width: float) -> Tensor:
    return torch.exp(-((value / width) ** 2))
