"""Outlines of masks as closed curves, for vector overlays that stay sharp at any size."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

Curve = npt.NDArray[np.float64]
"""(n, 2) x and y in pixels, the mask's top left corner being (0, 0); closed: the last point joins the first."""

_MOST_LOOPS = 40
_MOST_POINTS = 3000


def outlines(mask: npt.NDArray[np.bool_], *, smooth: int = 5) -> list[Curve]:
    """Boundary curves of an (H, W) mask, longest first, holes included.

    Pixel edges are walked with the mask on the right hand, then averaged along the curve over `smooth` edges (for looks: a
    boundary moves by less than a pixel; curves of fewer than 12 edges stay as they are). At most 40 curves and about 3,000
    points are kept, so that a mask of noise cannot blow up a page.
    """
    loops = sorted(_walk(mask), key=len, reverse=True)[:_MOST_LOOPS]
    step = -(-sum(map(len, loops)) // _MOST_POINTS)
    return [_smoothed(loop, smooth)[:: max(1, step)] for loop in loops]


def _walk(mask: npt.NDArray[np.bool_]) -> list[Curve]:
    """Closed chains of unit pixel edges."""
    m = np.pad(mask.astype(bool), 1)
    inside = m[1:-1, 1:-1]
    sides = (  # where the neighbour is outside: the edge's start and end relative to the pixel's corner
        (m[:-2, 1:-1], (0, 0), (1, 0)),
        (m[1:-1, 2:], (1, 0), (1, 1)),
        (m[2:, 1:-1], (1, 1), (0, 1)),
        (m[1:-1, :-2], (0, 1), (0, 0)),
    )
    ends: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for neighbour, (sx, sy), (ex, ey) in sides:
        ys, xs = np.nonzero(inside & ~neighbour)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            ends[x + sx, y + sy].append((x + ex, y + ey))
    loops: list[Curve] = []
    for start in sorted(ends):
        while ends[start]:
            loop, here = [], start
            while ends.get(here):
                loop.append(here)
                here = ends[here].pop()
            loops.append(np.array(loop, dtype=np.float64))
    return loops


def _smoothed(loop: Curve, window: int) -> Curve:
    if window < 2 or len(loop) < 12:
        return loop
    half = window // 2
    wrapped = np.concatenate([loop[-half:], loop, loop[:half]])
    sums = np.cumsum(np.vstack([np.zeros((1, 2)), wrapped]), axis=0)
    mean: Curve = (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)
    return mean


def svg_path(curves: list[Curve], scale: float = 1.0) -> str:
    """`d` of an SVG path through the curves; fill it by the even-odd rule."""
    parts = []
    for curve in curves:
        points = [f"{x:.1f} {y:.1f}" for x, y in (curve * scale).tolist()]
        parts.append("M" + "L".join(points) + "Z")
    return "".join(parts)
