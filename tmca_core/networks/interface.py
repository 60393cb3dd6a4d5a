"""What every network takes and gives, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tmca_core.config import Config
from tmca_core.registry import Registry

if TYPE_CHECKING:
    from tmca_core.text.encoders import TextEncoder
    from tmca_core.text.features import TextBatch


@dataclass(frozen=True)
class Output:
    """A network's answer.

    Attributes:
        logits: (B, C, H, W) at input size, one channel a target.
        maps: what shows why the mask is where it is, by name, each (B, …) float32; drawn in the report:
            "enhancement/S" (B, 1, h, w) in [0, 1] at stride S; "guidance" (B, 1, h, w) in [0, 1], the zone prior;
            "plan/fine" (B, L, h, w), every word's mass over patches, 1 a word and 0 at other tokens;
            "plan/coarse" (B, 4, h, w), the same for descriptive, diagnostic, left and right phrases.
        hidden: what only auxiliary losses read, by name; empty outside of training.
    """

    logits: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Auxiliary:
    """A loss beside the segmentation loss.

    Attributes:
        per_case: (B,), weighted as the configuration says.
        decomposable: a case's value does not depend on the other cases of the batch (privacy.md).
    """

    per_case: Tensor
    decomposable: bool = True


class Network(nn.Module):
    """A segmentation network that reads an image and a report.

    Attributes:
        uses_text: False for image-only baselines, which ignore the report.
        personal: names of the tensors and modules that stay at the site.
        parts: "text", "decoder" and "head", as far as there are any: the modules and tensors that belong to them.
        constants: digest of what training uses besides tensors and must be the same everywhere; "" where there is nothing.
        vectorised: `torch.func.vmap` runs over the cases: what is done may not depend on their values.
    """

    uses_text: bool = True
    personal: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    constants: str = ""
    vectorised: bool = False

    def __init__(self, text_encoder: TextEncoder) -> None:
        super().__init__()
        # A frozen text encoder is no submodule: its features arrive in the batch, and its weights never enter
        # checkpoints, updates, clipping or noise. The tuple keeps it out of the module tree.
        self._text_encoder = (text_encoder,)

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder whose tokens this network reads."""
        return self._text_encoder[0]

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """images (B, C, H, W) float32, standardised, H and W divisible by 32; text of the same B."""
        raise TypeError(f"{type(self).__name__} defines no forward.")

    def ready(self, device: torch.device) -> None:
        """Compute what is computed once, ahead of the first step: under vmap it could not be."""

    def auxiliary(self, output: Output, masks: Tensor) -> dict[str, Auxiliary]:
        """Losses beside the segmentation loss, by name.

        Args:
            output: of `forward` in training mode.
            masks: (B, C, H, W) float32 in [0, 1].
        """
        return {}


NETWORKS: Registry[Callable[[Config, TextEncoder], Network]] = Registry("network")
