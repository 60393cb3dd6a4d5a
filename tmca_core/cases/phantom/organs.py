"""Organs: how much each attenuates the ray, one formula an organ.

Attenuations add up along the ray as in a radiograph (1 is about a body's thickness of soft tissue) and air takes away.
Coordinates and legend as in `anatomy`: u is the distance from the midline, y the height, B films, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tmca_core.cases.phantom.anatomy import Box, Chest, Patient, bump, smooth_noise, step

HILUM = (0.075, 0.450)  # u, y


def air(c: Chest) -> Tensor:
    """(B, S, S) aerated lung along the ray, 0 to about 1, before any opacity."""
    depth = 0.55 + 0.45 * (c.from_ribs * 7).clamp_(0, 1).sqrt_()
    depth *= 0.78 + 0.22 * ((c.y - c.p["apex"]) * 2.5).clamp_(0, 1)
    heart = step(c.from_heart, 0.010).mul_(0.90).add_(0.10)
    diaphragm = step(c.from_dome, 0.007).mul_(0.95).add_(0.05)
    return depth.mul_(step(c.from_ribs, 0.008)).mul_(heart).mul_(diaphragm)


def soft_tissue(c: Chest) -> tuple[Tensor, Tensor]:
    """(B, S, S) attenuation of everything soft outside the lungs, and the body's outline, 0 to 1."""
    side = c.p["half_width"] + c.p["wall"] + 0.05 * (c.y - 0.75)
    arm = side + 0.55 * (c.y - c.p["axilla"])
    slope = 0.055 + 0.33 * (c.u - c.p["neck"]).clamp_(min=0) + 1.4 * (c.u - 0.33).clamp_(min=0).square_()
    from_top = torch.maximum(c.y - slope, c.p["neck"] - c.u)
    from_skin = torch.minimum(from_top, torch.maximum(side - c.u, c.u - arm))
    outline = step(from_skin, 0.006)
    rounding = (from_skin * 14).clamp_(0, 1).sqrt_().mul_(0.72).add_(0.28)
    bulk = 0.80 - 0.9 * c.u.square() + 0.10 * c.y
    low = step(-c.from_dome, 0.010) * step(c.from_ribs + 0.05, 0.04)
    central = step(-c.from_heart, 0.012) * step(c.from_dome + 0.05, 0.06)
    thick = 0.15 + 0.17 * bump(c.y - 0.68, 0.20)
    abdomen = low * (0.24 + 0.35 * (c.y - 0.7).clamp_(min=0) - 0.05 * c.left + 0.03 * c.warp[1])
    return bulk.mul_(rounding).add_(abdomen).addcmul_(thick, central).mul_(outline), outline


def ribs(c: Chest) -> Tensor:
    """(B, S, S) attenuation of posterior and (fainter) anterior ribs, as level sets of two phase fields."""
    y = c.y + 0.004 * c.warp[1]

    def comb(height: Tensor, width: float, first: float) -> Tensor:
        phase = (height - c.p["rib_start"]) / c.p["rib_step"]
        phase = phase * (1.10 - 0.012 * phase)
        cycle = phase - torch.round(phase)
        cortex = 0.85 + bump(cycle.abs() - width * 0.75, 0.09).mul_(0.5)
        return step(width - cycle.abs(), 0.07).mul_(cortex).mul_(step(phase - first, 0.1)).mul_(step(11.5 - phase, 0.6))

    reach = 0.36 - c.u
    posterior = comb(y - 3.0 * c.u**3, 0.20, 0.4).mul_(step(c.u - 0.035, 0.01))
    anterior = comb(y - 0.14 - 0.70 * reach + 0.75 * reach * reach.abs(), 0.23, 1.4).mul_(step(c.u - 0.15, 0.07))
    cage = step(c.from_ribs + 0.012, 0.006).mul_(1 + bump(c.from_ribs, 0.014))
    under = step(c.from_dome + 0.01, 0.02).mul_(0.8).add_(0.2)
    return posterior.add_(anterior, alpha=0.42).mul_(cage).mul_(under).mul_(c.p["rib_strength"])


def clavicles(c: Chest) -> Tensor:
    """Attenuation of both clavicles, S-shaped, brighter at their edges."""
    v = (c.u - 0.042) / 0.345
    middle = c.p["clavicle"] - c.p["clavicle_slope"] * v + 0.011 * torch.sin(6.28 * v) + 0.003 * c.warp[1]
    half = 0.0125 + 0.004 * (1 - 2 * v).abs().clamp(max=1)
    across = (c.y - middle).abs()
    shaft = step(half - across, 0.005) * (0.65 + 0.5 * (across / half).clamp(max=1).square())
    return 1.25 * c.p["bone_strength"] * shaft * step(v, 0.03) * step(1 - v, 0.03)


def shoulders(c: Chest) -> Tensor:
    """Attenuation of scapulae and humeral heads."""
    border = 0.318 + 0.25 * (c.y - 0.33) ** 2 + 0.006 * c.warp[0]
    blade = step(c.u - border, 0.006) * step(0.49 - c.y - 0.9 * (c.u - 0.33), 0.012) * step(c.y - 0.17, 0.02)
    scapula = blade * (0.35 + 0.5 * bump(c.u - border - 0.008, 0.012))
    head = step(0.052 - ((c.u - 0.465).square() + (c.y - 0.235).square()).sqrt(), 0.008)
    return c.p["bone_strength"] * (0.30 * scapula + 0.7 * head)


def spine(c: Chest) -> Tensor:
    """Attenuation of the vertebral column, with discs and pedicles hinted at."""
    x = c.x - c.p["scoliosis"] * torch.sin(6.28 * c.y)
    vertebra = torch.sin(c.y * (6.28 / 0.058))
    body = step(0.034 + 0.003 * vertebra - x.abs(), 0.010) * (0.72 + 0.16 * vertebra)
    pedicles = 0.25 * bump(x.abs() - 0.022, 0.006) * vertebra.clamp_min(0)
    return c.p["bone_strength"] * (body + pedicles + 0.25 * bump(x, 0.005))


def airways(c: Chest) -> Tensor:
    """Air of the trachea and main bronchi, as a negative attenuation."""
    centre = c.x + 0.004 + 0.007 * bump(c.y - 0.33, 0.06)
    trachea = step(0.0185 - centre.abs(), 0.007) * step(0.385 - c.y, 0.02)
    down = c.y - 0.372
    bronchi = step(0.011 - (c.u - 0.95 * down).abs(), 0.006) * step(down, 0.01) * step(0.085 - down, 0.03)
    return -0.16 * trachea - 0.09 * bronchi


def stomach(c: Chest) -> Tensor:
    """Gas under the left dome, where the patient has any, as a negative attenuation."""
    top = c.p["dome"] + c.p["breath"] + c.p["dome_step"] + 4.6 * (c.p["bubble_x"] - 0.2) ** 2
    bubble = (((c.x - c.p["bubble_x"]) / c.p["bubble_width"]).square() + ((c.y - top - 0.058) / 0.034).square()).sqrt()
    return -c.p["bubble"] * step((1 - bubble) * 0.045 + 0.006 * c.warp[0], 0.010)


def breasts(c: Chest) -> Tensor:
    """Breast shadows over the lower zones, with a sharper lower fold."""
    distance = (((c.u - 0.225) / 0.15).square() + ((c.y - 0.64) / 0.15).square()).sqrt()
    return c.p["breast"] * step(1 - distance, 0.12) * step(c.y - 0.56, 0.12)


def vessels(c: Chest, noise: Tensor) -> Tensor:
    """Attenuation of hila and vessels: ridges of noise in polar coordinates round each hilum, so that they radiate.

    Args:
        c: geometry.
        noise: (B, 2, radius, angle) draws.
    """
    du, dy = c.u - HILUM[0], c.y - HILUM[1] - 0.015 * (1 - c.left)
    radius = (du * du + dy * dy + 1e-5).sqrt()
    angle = torch.atan2(dy, du) + 0.22 * c.warp[0]
    # Each side reads its own half of the angles; a square-root radius lets branches split as they run outwards.
    where = torch.stack([(angle * 0.143 + (c.left - 0.5)).clamp_(-1, 1), radius.sqrt() * 2.9 - 1], -1)
    field = functional.grid_sample(noise, where, mode="bilinear", align_corners=False)
    width = (0.0042 / radius + 0.028) * 4
    branches = (1 - field[:, 0].abs() / width).clamp_(min=0) + 0.7 * (1 - field[:, 1].abs() / width).clamp_(min=0)
    hilum = bump(du, 0.035) * bump(dy, 0.075) * (0.65 + 0.35 * c.warp[0])
    return (
        c.p["vessels"]
        * (1.3 * branches * torch.exp(radius * -4.5) * (radius * 16).clamp(0.35, 1) + 0.85 * hilum)
        * step(c.inside + 0.004, 0.012)
    )


def lead(c: Chest) -> Tensor:
    """A monitoring lead or central line across the film of a bedridden patient."""
    path = c.p["line_x"] + c.p["line_bend"] * torch.sin(4.5 * c.y + 9 * c.p["line_x"])
    return c.p["line"] * 0.28 * step(0.0032 - (c.x - path).abs(), 0.0035)


# Organs that need only a part of the frame, with room for every position.
PARTS: tuple[tuple[Callable[[Chest], Tensor], Box], ...] = (
    (clavicles, (0.05, 0.32, 0.0, 1.0)),
    (shoulders, (0.08, 0.58, 0.0, 0.28)),
    (shoulders, (0.08, 0.58, 0.72, 1.0)),
    (spine, (0.0, 1.0, 0.38, 0.62)),
    (airways, (0.0, 0.54, 0.32, 0.68)),
    (stomach, (0.66, 0.98, 0.50, 0.88)),
    (breasts, (0.40, 0.90, 0.04, 0.96)),
)


def attenuation(c: Chest, aerated: Tensor, patients: Sequence[Patient]) -> Tensor:
    """(B, S, S) the whole ray: tissue, bone and vessels, less the air that is left.

    Args:
        c: geometry.
        aerated: (B, S, S) lung air after opacities took their part.
        patients: whose film each is.
    """
    ray, outline = soft_tissue(c)
    for organ, where in PARTS:
        part, at = c.window(where)
        ray[at] += organ(part) * outline[at]
    ray.addcmul_(ribs(c), outline)
    part, at = c.window((0.10, 0.92, 0.06, 0.94))
    ray[at] += vessels(part, torch.from_numpy(np.stack([one.vessels for one in patients])))
    markings = smooth_noise(torch.from_numpy(np.stack([one.markings for one in patients])), c.x.shape[-1])[:, 0]
    if bool((c.p["line"] > 0).any()):
        ray += lead(c)
    return ray.sub_(aerated * (0.60 + 0.022 * markings))
