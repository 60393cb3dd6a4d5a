"""Zone priors: where in the image the zones that a report names lie. Patient sides: the patient's left is on the image's right."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Prior = Literal["learned", "fixed", "mirrored", "random", "thirds"]

CENTRES = ((0.67, 0.29), (0.70, 0.48), (0.72, 0.58), (0.33, 0.31), (0.30, 0.48), (0.28, 0.58))
"""Centres (x, y) of LU LM LL RU RM RL as shares of a frontal chest film's width and height: fitted to the lesion masks of the QaTa-COV19
training captions (those name the image's sides: what they call left is the patient's right here, where it lies)."""
SPREAD = 0.16
"""Standard deviation of each Gaussian, share of the image; together they cover 98.7 % of that set's lesion mass on 68 % of the area."""
REACH = 0.15
"""How far a learned centre may move from its place, share of the image: tethered, a zone keeps its meaning."""


class ZonePrior(nn.Module):
    """G in [0, 1] from zones and certainty: the largest of the active zones' Gaussians; 1 everywhere without constraint.

    `learned`: centres and spreads may move, within bounds. `fixed`: they stay. Controls for ablations: `mirrored` has left and right
    exchanged, `random` has centres drawn anywhere, `thirds` has six boxes instead of Gaussians.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        centres = torch.tensor(CENTRES)
        if prior == "mirrored":
            centres[:, 0] = 1 - centres[:, 0]
        elif prior == "random":
            centres = torch.rand(6, 2)
        learned = prior == "learned"
        self.register_buffer("centres", centres, persistent=prior == "random")
        self.shift = nn.Parameter(torch.zeros(6, 2)) if learned else None
        self.stretch = nn.Parameter(torch.zeros(6, 2)) if learned else None

    def forward(self, zones: Tensor, certainty: Tensor, height: int, width: int) -> Tensor:
        """zones (B, 6) in [0, 1], certainty (B,) in [0, 1] → G (B, 1, height, width) = 1 − certainty · (1 − max over zones)."""
        strongest = (zones[:, :, None, None] * self.maps(height, width)).amax(1, keepdim=True)
        return 1 - certainty[:, None, None, None] * (1 - strongest)

    def maps(self, height: int, width: int) -> Tensor:
        """The six zones' priors (6, height, width), each with a maximum near 1."""
        centres = self.get_buffer("centres")
        y = (torch.arange(height, device=centres.device) + 0.5) / height
        x = (torch.arange(width, device=centres.device) + 0.5) / width
        if self.prior == "thirds":
            rows = torch.stack([(y >= k / 3) & (y < (k + 1) / 3) for k in (0, 1, 2)]).repeat(2, 1)
            columns = torch.stack([x >= 0.5] * 3 + [x < 0.5] * 3)
            return (rows[:, :, None] & columns[:, None, :]).float()
        spread = torch.full_like(centres, SPREAD)
        if self.shift is not None and self.stretch is not None:
            centres = centres + REACH * torch.tanh(self.shift)
            spread = spread * torch.exp(math.log(2) * torch.tanh(self.stretch))
        along_x = ((x - centres[:, :1]) / spread[:, :1]) ** 2
        along_y = ((y - centres[:, 1:]) / spread[:, 1:]) ** 2
        return torch.exp(-0.5 * (along_y[:, :, None] + along_x[:, None, :]))
