"""Segmentation losses on logits: each target's loss by itself, then the mean over targets.

Shapes: B cases, C targets, H × W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmca_core.losses.interface import LOSSES, Loss


def soft_dice(logits: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """Mean over targets of 1 − (2Σpm + s) / (Σp + Σm + s) (Milletari et al. 2016, linear denominator): (B,C,H,W) twice → (B,).

    `smooth` in pixels keeps empty masks finite and makes an empty prediction of an empty mask loss-free.

    Raises:
        ValueError: the shapes differ; broadcasting would hide a network with too few outputs.
    """
    if logits.shape != masks.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and masks {tuple(masks.shape)} differ: one channel a target, in both.")
    probabilities, truth = torch.sigmoid(logits.float()).flatten(2), masks.float().flatten(2)
    overlap = (probabilities * truth).sum(2)
    return (1 - (2 * overlap + smooth) / (probabilities.sum(2) + truth.sum(2) + smooth)).mean(1)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy over a case's pixels and targets, from logits: (B,C,H,W) twice → (B,)."""
    return F.binary_cross_entropy_with_logits(logits.float(), masks.float(), reduction="none").flatten(1).mean(1)


def dice_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """`soft_dice` + `cross_entropy`: (B,)."""
    return soft_dice(logits, masks) + cross_entropy(logits, masks)


@LOSSES.register("dice-ce")
def dice_ce() -> Loss:
    """Dice and cross-entropy, the usual pair."""
    return Loss(dice_cross_entropy, decomposable=True)
