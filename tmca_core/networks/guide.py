"""`guide`: the text-guided base network, after the decoder of Ariadne's Thread (Zhong et al., MICCAI 2023).

    image (B,C,H,W) ─ encoder ─ F4, F8, F16, F32            report ─ text encoder ─ T (B,L,D)
    F32 ─ block(T) ─ ↑ ⊕F16 ─ block(T) ─ ↑ ⊕F8 ─ block(T) ─ ↑ ⊕F4 ─ block(T) ─ ↑ ⊕detail(image) ─ ↑ ─ logits (B,1,H,W)

The shallow `detail` branch at stride 2 is ours: it sharpens outlines that stride 4 blurs.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.config import Config
from tmca_core.networks.attention import TextGuidedBlock
from tmca_core.networks.encoders import build_image_encoder
from tmca_core.networks.interface import NETWORKS, Network, Output
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch


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


class Guide(Network):
    """The base network; tmca and ssa build on it."""

    def __init__(self, config: Config, text_encoder: TextEncoder) -> None:
        super().__init__(text_encoder)
        width, heads = config.network.width, config.network.heads
        self.image = build_image_encoder(config.network, config.data.channels)
        self.text: nn.Module | None = None if text_encoder.frozen else text_encoder
        widths = (width // 2, width, width, width)  # strides 4, 8, 16, 32
        self.text_norm = nn.LayerNorm(text_encoder.dim)
        self.skip_norms = nn.ModuleList([nn.GroupNorm(1, c) for c in self.image.channels])
        self.skips = nn.ModuleList([nn.Conv2d(c, w, 1) for c, w in zip(self.image.channels, widths, strict=True)])
        self.fuses = nn.ModuleList([Fuse(coarse + fine, fine) for fine, coarse in pairwise(widths)])
        # Attention among positions grows with their square: left out at stride 4.
        self.blocks = nn.ModuleList([TextGuidedBlock(w, text_encoder.dim, heads, self_attention=i > 0) for i, w in enumerate(widths)])
        fine = width // 4
        self.detail = Fuse(config.data.channels * 4, fine)
        self.sharpen = Fuse(widths[0] + fine, fine)
        self.head = nn.Conv2d(fine, 4, 3, padding=1)
        # Lesions are a few per cent of a film: begin there, or the first epochs only unlearn a mask of half the pixels.
        nn.init.constant_(self.head.bias, math.log(0.05 / 0.95))  # type: ignore[arg-type]

    def tokens(self, text: TextBatch) -> Tensor:
        """Report tokens (B, L, D), from the trainable encoder or as cached features."""
        if self.text is None:
            if text.features is None:
                raise TypeError("the text encoder is frozen: the batch must carry token features (TextPipeline.encode).")
            tokens = text.features
        else:
            tokens = self.text(text.ids, text.mask)
        normed: Tensor = self.text_norm(tokens)
        return normed

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`."""
        tokens = self.tokens(text)
        # torch 2.13 crashes in GroupNorm's backward on channels_last input without gradient, which a frozen encoder gives.
        features = [f if f.requires_grad else f.contiguous() for f in self.image(images)]
        maps = [skip(norm(f)) for f, norm, skip in zip(features, self.skip_norms, self.skips, strict=True)]
        x = self.blocks[3](maps[3], tokens, text.mask)
        for level in (2, 1, 0):
            x = self.fuses[level](upsample(x), maps[level])
            x = self.blocks[level](x, tokens, text.mask)
        x = self.sharpen(upsample(x), self.detail(F.pixel_unshuffle(images, 2)))
        return Output(F.pixel_shuffle(self.head(x), 2))


@NETWORKS.register("guide")
def guide(config: Config, text_encoder: TextEncoder) -> Network:
    """Text-guided base network."""
    return Guide(config, text_encoder)
