"""What every network takes and gives, and the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
        logits: (B, 1, H, W) at input size.
        maps: auxiliary maps by name, each (B, …), for losses and for the report.
    """

    logits: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)


class Network(nn.Module):
    """A segmentation network that reads an image and a report.

    Attributes:
        uses_text: False for image-only baselines, which ignore the report.
        personal: name prefixes of tensors that stay at the site.
    """

    uses_text: bool = True
    personal: tuple[str, ...] = ()

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


NETWORKS: Registry[Callable[[Config, TextEncoder], Network]] = Registry("network")
