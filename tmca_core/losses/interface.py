"""What a loss is here: a pure function a case, and a declaration that privacy can rely on (and tests measure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tmca_core.registry import Registry


@dataclass(frozen=True)
class Loss:
    """A segmentation loss.

    Attributes:
        per_case: (logits (B,C,H,W), masks (B,C,H,W) float in [0, 1]) → (B,) losses.
        decomposable: a case's loss does not depend on the other cases of the batch (privacy.md).
    """

    per_case: Callable[[Tensor, Tensor], Tensor]
    decomposable: bool


LOSSES: Registry[Callable[[], Loss]] = Registry("loss")
