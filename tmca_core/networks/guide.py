"""`guide`: the text-guided base network, after the decoder of Ariadne's Thread (Zhong et al., MICCAI 2023).

    image (B,C,H,W) ─ encoder ─ F4, F8, F16, F32            report ─ text encoder ─ T (B,L,D)
    F32 ─ block(T) ─ ↑ ⊕F16 ─ block(T) ─ ↑ ⊕F8 ─ block(T) ─ ↑ ⊕F4 ─ block(T) ─ ↑ ⊕detail(image) ─ ↑ ─ logits (B,K,H,W)

The shallow `detail` branch at stride 2 is ours: it sharpens outlines that stride 4 blurs. `tmca` and `ssa` change this network
in two places only: `relate`, before the decoder, and `refine`, once a decoder level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.config import Config
from tmca_core.networks.attention import TextGuidedBlock
from tmca_core.networks.encoders import build_image_encoder
from tmca_core.networks.interface import NETWORKS, Network, Output
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Report:
    """A batch of reports as the decoder reads it.

    Attributes:
        tokens: (B, L, D).
        mask: (B, L) bool, tokens that may be attended to.
        words: (B, L) bool, those of them that are no special tokens; a report without words has one, the no-report token.
        kinds: (B, L) int64, kinds of phrase (`TextBatch.kinds`).
        zones: (B, 6) float32.
        certainty: (B,) float32, 0 where the zones set no constraint.
        identity: (B,) int64, equal where the texts are equal.
    """

    tokens: Tensor
    mask: Tensor
    words: Tensor
    kinds: Tensor
    zones: Tensor
    certainty: Tensor
    identity: Tensor


@dataclass
class Notes:
    """What a forward pass leaves besides its logits: see `Output`."""

    maps: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)


class Fuse(nn.Module):
    """3×3 convolution over concatenated maps, GroupNorm, GELU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.GroupNorm(after // 8 if after % 8 == 0 else 1, after)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps (B, c_i, H, W), Σc_i = before → (B, after, H, W)."""
        return F.gelu(self.norm(self.conv(torch.cat(maps, 1))))


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 2H, 2W), bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def pooled(x: Tensor, like: Tensor) -> Tensor:
    """x (B, C, H, W) averaged to the height and width of `like` (…, h, w)."""
    return F.adaptive_avg_pool2d(x, (like.shape[-2], like.shape[-1]))


class Guide(Network):
    """The base network; tmca and ssa build on it."""

    parts = MappingProxyType(
        {
            "text": ("text", "text_norm", "no_report"),
            "decoder": ("skip_norms", "skips", "fuses", "blocks", "detail", "sharpen", "head"),
            "head": ("head",),
        }
    )

    def __init__(self, config: Config, text_encoder: TextEncoder) -> None:
        super().__init__(text_encoder)
        width, heads = config.network.width, config.network.heads
        self.image = build_image_encoder(config.network, config.data.channels)
        self.text: nn.Module | None = None if text_encoder.frozen else text_encoder
        self.widths = (width // 2, width, width, width)  # of the decoder maps at STRIDES
        self.text_norm = nn.LayerNorm(text_encoder.dim)
        self.no_report = nn.Parameter(torch.randn(text_encoder.dim))
        self.skip_norms = nn.ModuleList([nn.GroupNorm(1, c) for c in self.image.channels])
        self.skips = nn.ModuleList([nn.Conv2d(c, w, 1) for c, w in zip(self.image.channels, self.widths, strict=True)])
        self.fuses = nn.ModuleList([Fuse(coarse + fine, fine) for fine, coarse in pairwise(self.widths)])
        # Attention among positions grows with their square: left out at stride 4.
        self.blocks = nn.ModuleList([TextGuidedBlock(w, text_encoder.dim, heads, self_attention=i > 0) for i, w in enumerate(self.widths)])
        fine, targets = width // 4, len(config.data.target_names)
        self.detail = Fuse(config.data.channels * 4, fine)
        self.sharpen = Fuse(self.widths[0] + fine, fine)
        self.head = nn.Conv2d(fine, 4 * targets, 3, padding=1)
        # Lesions are a few per cent of a film: begin there, or the first epochs only unlearn a mask of half the pixels.
        nn.init.constant_(self.head.bias, math.log(0.05 / 0.95))  # type: ignore[arg-type]

    def read(self, text: TextBatch) -> Report:
        """Tokens from the trainable encoder or from cached features; a report without words becomes the learned no-report token."""
        if self.text is None:
            if text.features is None:
                raise TypeError("the text encoder is frozen: the batch must carry token features (TextPipeline.encode).")
            tokens = text.features
        else:
            tokens = self.text(text.ids, text.mask)
        spoken = text.kinds > 0
        missing = ~spoken.any(1, keepdim=True)
        first = torch.zeros_like(spoken)
        first[:, 0] = True
        tokens = torch.where(missing[..., None], self.no_report, self.text_norm(tokens))
        alone = missing & first
        return Report(tokens, (text.mask & ~missing) | alone, spoken | alone, text.kinds, text.zones, text.certainty, text.identity)

    def relate(self, maps: list[Tensor], report: Report, notes: Notes) -> tuple[list[Tensor], Report]:
        """Maps (B, widths[i], H/s, W/s) at STRIDES and the report, before the decoder: here as they are."""
        return maps, report

    def refine(self, level: int, x: Tensor, report: Report, notes: Notes) -> Tensor:
        """Decoder map (B, widths[level], h, w) read against the report; the same shape."""
        refined: Tensor = self.blocks[level](x, report.tokens, report.mask)
        return refined

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`."""
        # torch 2.13 crashes in GroupNorm's backward on channels_last input without gradient, which a frozen encoder gives.
        # A copy, not contiguous(): a 1 × 1 map counts as both layouts and would be left with the strides that crash.
        frozen = torch.is_grad_enabled() and not any(p.requires_grad for p in self.image.parameters())
        features = [f.clone(memory_format=torch.contiguous_format) if frozen else f for f in self.image(images)]
        notes = Notes()
        maps, report = self.relate(
            [skip(norm(f)) for f, norm, skip in zip(features, self.skip_norms, self.skips, strict=True)], self.read(text), notes
        )
        x = self.refine(3, maps[3], report, notes)
        for level in (2, 1, 0):
            x = self.refine(level, self.fuses[level](upsample(x), maps[level]), report, notes)
        x = self.sharpen(upsample(x), self.detail(F.pixel_unshuffle(images, 2)))
        return Output(F.pixel_shuffle(self.head(x), 2), notes.maps, notes.hidden)


@NETWORKS.register("guide")
def guide(config: Config, text_encoder: TextEncoder) -> Network:
    """Text-guided base network."""
    return Guide(config, text_encoder)
