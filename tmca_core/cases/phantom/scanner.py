"""From attenuation to a grey film: display curve, unsharpness, noise, collimation and the side marker.

Legend of shapes: B films, S image side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from tmca_core.cases.phantom.sites import Site

GLYPHS = {
    "L": ("1....", "1....", "1....", "1....", "1....", "1....", "11111"),
    "R": ("1111.", "1...1", "1...1", "1111.", "1.1..", "1..1.", "1...1"),
    "A": (".111.", "1...1", "1...1", "11111", "1...1", "1...1", "1...1"),
    "P": ("1111.", "1...1", "1...1", "1111.", "1....", "1....", "1...."),
}


@dataclass(frozen=True)
class Exposure:
    """What differs between two films of one scanner.

    Attributes:
        gain: factor on the displayed attenuation.
        slope: brightness slope along x and y, share of the grey range over the film.
        border: widths of the collimated (black) margins: top, bottom, left, right; image fractions.
        marker: centre (x, y) of the side letter, image fractions.
        supine: stamps "AP" below the letter.
    """

    gain: float
    slope: tuple[float, float]
    border: tuple[float, float, float, float]
    marker: tuple[float, float]
    supine: bool


def draw_exposure(site: Site, rng: Generator, supine: bool) -> Exposure:
    """One exposure at a site. The letter lies on the patient's side that it names."""
    gain, x, y, sx, sy = rng.uniform(-1, 1, 5)
    margins = rng.uniform(0, 0.035, 4) * (rng.random() < site.collimated)
    across = 0.085 + 0.02 * x
    return Exposure(
        gain=1 + 0.06 * float(gain),
        slope=(site.tilt * float(sx), site.tilt * float(sy)),
        border=(float(margins[0]), float(margins[1]), float(margins[2]), float(margins[3])),
        marker=(float(1 - across if site.marker == "L" else across), 0.085 + 0.025 * float(y)),
        supine=supine,
    )


def expose(ray: Tensor, site: Site, exposures: Sequence[Exposure], generator: torch.Generator) -> Tensor:
    """Films of a batch.

    Args:
        ray: (B, S, S) attenuation.
        site: whose scanner.
        exposures: one a film.
        generator: of the noise, which alone depends on the image's size.

    Returns:
        (B, 1, S, S) uint8.
    """
    size = ray.shape[-1]
    low, high = site.window

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)[:, None, None]

    dense = (ray - low).clamp_(min=0).mul_(-site.film * column([e.gain for e in exposures])).exp_()
    grey = (1 - dense).div_(1 - math.exp(-site.film * (high - low))).clamp_(min=1e-4).pow_(site.gamma)
    centre = (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5
    slope = 1 + column([e.slope[0] for e in exposures]) * centre + column([e.slope[1] for e in exposures]) * centre[:, None]
    grey = blurred(grey.mul_(slope), site.blur * size)
    white = torch.randn((len(exposures), size, size), generator=generator)
    # Half of the noise has a grain of a few pixels, as detectors and film have.
    coarse = separable(functional.pad(white, (1, 1, 1, 1)), (1 / 3, 1 / 3))
    grey.add_(white, alpha=0.7 * site.grain).add_(coarse, alpha=2.1 * site.grain)
    for film, exposure in zip(grey, exposures, strict=True):
        collimate(film, exposure)
        stamp(film, site.marker, exposure.marker, site.marker_height)
        if exposure.supine:
            x, y = exposure.marker
            for letter, aside in (("A", -0.022), ("P", 0.022)):
                stamp(film, letter, (x + aside, y + 1.05 * site.marker_height), 0.6 * site.marker_height)
    return grey.clamp_(0, 1).mul_(255).round_().to(torch.uint8)[:, None]


def blurred(image: Tensor, sigma: float) -> Tensor:
    """(B, S, S) Gaussian blur, `sigma` in pixels, edges repeated."""
    reach = max(1, math.ceil(3 * sigma))
    half = [math.exp(-0.5 * (at / sigma) ** 2) for at in range(reach + 1)]
    total = half[0] + 2 * sum(half[1:])
    padded = functional.pad(image[:, None], (reach, reach, reach, reach), mode="replicate")[:, 0]
    return separable(padded, [weight / total for weight in half])


def separable(padded: Tensor, half: Sequence[float]) -> Tensor:
    """Filter images by one symmetric kernel along rows and columns.

    The kernels here have few taps, for which shifted sums are several times as fast as a convolution.

    Args:
        padded: (B, S + 2r, S + 2r).
        half: the r + 1 weights from the kernel's centre outwards.

    Returns:
        (B, S, S).
    """
    reach = len(half) - 1
    for axis in (1, 2):
        size = padded.shape[axis] - 2 * reach
        out = padded.narrow(axis, reach, size) * half[0]
        for d, weight in enumerate(half[1:], 1):
            out.add_(padded.narrow(axis, reach - d, size), alpha=weight).add_(padded.narrow(axis, reach + d, size), alpha=weight)
        padded = out
    return padded


def collimate(film: Tensor, exposure: Exposure) -> None:
    """Blacken the margins of one (S, S) film, in place."""
    size = film.shape[-1]
    top, bottom, left, right = (round(width * size) for width in exposure.border)
    film[:top] *= 0.05
    film[size - bottom :] *= 0.05
    film[:, :left] *= 0.05
    film[:, size - right :] *= 0.05


@lru_cache(maxsize=64)
def glyph(letter: str, height: int) -> Tensor:
    """(h, w) letter with soft edges, 0 to 1; kept, so not to be written to."""
    bitmap = torch.tensor([[cell == "1" for cell in line] for line in GLYPHS[letter]], dtype=torch.float32)
    shape = (height, max(4, round(height * 5 / 7)))
    return functional.interpolate(bitmap[None, None], size=shape, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def stamp(film: Tensor, letter: str, centre: tuple[float, float], height: float) -> None:
    """Lay a white letter on one (S, S) film, in place."""
    size = film.shape[-1]
    shape = glyph(letter, max(5, round(height * size)))
    left, top = (round(at * size - extent / 2) for at, extent in zip(centre, reversed(shape.shape), strict=True))
    left, top = (min(max(0, at), size - extent) for at, extent in zip((left, top), reversed(shape.shape), strict=True))
    area = film[top : top + shape.shape[0], left : left + shape.shape[1]]
    area.copy_(torch.maximum(area, 0.97 * shape))
