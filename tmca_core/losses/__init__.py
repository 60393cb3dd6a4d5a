"""Losses as pure functions; each declares whether it is decomposable over patients."""

from tmca_core.losses import segmentation
from tmca_core.losses.interface import LOSSES, Loss

__all__ = ["LOSSES", "Loss", "segmentation"]
