"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with the tensor names of Hugging Face's `ConvNextModel`.

`convnext-tiny` takes that model's weights as they are; `convnext-mini` (0.4 M) is the same design, small enough for a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.networks.encoders.interface import IMAGE_ENCODERS, ImageEncoder


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """7×7 depthwise convolution, LayerNorm, 4× MLP, layer scale, residual."""

    def __init__(self, channels: int, scale: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.layernorm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.layer_scale_parameter = nn.Parameter(scale * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same."""
        y = self.layernorm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        result: Tensor = x + (self.layer_scale_parameter * y).permute(0, 3, 1, 2)
        return result


class Stage(nn.Module):
    """Downsampling by 2 (not in the first stage), then blocks."""

    def __init__(self, before: int, channels: int, depth: int, scale: float) -> None:
        super().__init__()
        down = before != channels
        self.downsampling_layer = nn.ModuleList([ChannelNorm(before), nn.Conv2d(before, channels, 2, stride=2)] if down else [])
        self.layers = nn.ModuleList([Block(channels, scale) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) → (B, channels, H/2, W/2)."""
        for layer in self.downsampling_layer:
            x = layer(x)
        for layer in self.layers:
            x = layer(x)
        return x


class ConvNext(ImageEncoder):
    """The pyramid of ConvNeXt's four stages (whoever consumes a map normalises it: ImageNet checkpoints carry no norm a stage)."""

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int], depths: tuple[int, int, int, int], scale: float) -> None:
        super().__init__()
        self.channels = channels
        self.embeddings = nn.ModuleDict(
            {"patch_embeddings": nn.Conv2d(in_channels, channels[0], 4, stride=4), "layernorm": ChannelNorm(channels[0])}
        )
        befores = (channels[0], *channels[:3])
        stages = [Stage(before, c, depth, scale) for before, c, depth in zip(befores, channels, depths, strict=True)]
        self.encoder = nn.ModuleDict({"stages": nn.ModuleList(stages)})

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `ImageEncoder.forward`."""
        x = self.embeddings["layernorm"](self.embeddings["patch_embeddings"](images))
        maps: list[Tensor] = []
        for stage in self.encoder["stages"].children():
            x = stage(x)
            maps.append(x)
        return maps


@IMAGE_ENCODERS.register("convnext-tiny")
def convnext_tiny(in_channels: int) -> ImageEncoder:
    """ConvNeXt-Tiny, 27.8 M parameters."""
    return ConvNext(in_channels, (96, 192, 384, 768), (3, 3, 9, 3), scale=1e-6)


@IMAGE_ENCODERS.register("convnext-mini")
def convnext_mini(in_channels: int) -> ImageEncoder:
    """A ConvNeXt for CPUs and small data; a layer scale near 1 lets so shallow a network learn at once."""
    return ConvNext(in_channels, (24, 48, 96, 128), (1, 1, 2, 1), scale=0.5)
