"""Segmentation losses on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmca_core.losses.interface import LOSSES, Loss


def soft_dice(logits: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2Σpm + s) / (Σp + Σm + s) a case (Milletari et al. 2016, linear denominator): (B,1,H,W) twice → (B,).

    `smooth` in pixels keeps empty masks finite and makes an empty prediction of an empty mask loss-free.
    """
    probabilities, truth = torch.sigmoid(logits.float()).flatten(1), masks.float().flatten(1)
    overlap = (probabilities * truth).sum(1)
    return 1 - (2 * overlap + smooth) / (probabilities.sum(1) + truth.sum(1) + smooth)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy over a case's pixels, from logits: (B,1,H,W) twice → (B,)."""
    return F.binary_cross_entropy_with_logits(logits.float(), masks.float(), reduction="none").flatten(1).mean(1)


def dice_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """`soft_dice` + `cross_entropy`: (B,)."""
    return soft_dice(logits, masks) + cross_entropy(logits, masks)


@LOSSES.register("dice-ce")
def dice_ce() -> Loss:
    """Dice and cross-entropy, the usual pair."""
    return Loss(dice_cross_entropy, decomposable=True)
