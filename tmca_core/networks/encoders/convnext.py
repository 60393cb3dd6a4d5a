"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with the tensor names of Hugging Face's `ConvNextModel`.

`convnext-tiny` takes that model's weights as they are; `convnext-mini` (0.4 M) is the same design, small enough for a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.networks.encoders import onednn
from tmca_core.networks.encoders.interface import IMAGE_ENCODERS, ImageEncoder

EPS = 1e-6


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=EPS)
        return x.permute(0, 3, 1, 2)


def block(
    x: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    norm: Tensor,
    norm_bias: Tensor,
    wide: Tensor,
    wide_bias: Tensor,
    narrow: Tensor,
    narrow_bias: Tensor,
    scale: Tensor,
) -> Tensor:
    """7×7 depthwise convolution, LayerNorm, 4× MLP, layer scale, residual, in PyTorch's own operators: (B, C, H, W) → same."""
    y = F.conv2d(x, kernel, kernel_bias, padding=3, groups=len(kernel)).permute(0, 2, 3, 1)
    y = F.linear(F.layer_norm(y, norm.shape, norm, norm_bias, EPS), wide, wide_bias)
    return x + (scale * F.linear(F.gelu(y), narrow, narrow_bias)).permute(0, 3, 1, 2)


class FastBlock(torch.autograd.Function):
    """`block` on the CPU in half of its time and of its memory.

    Products run in oneDNN; the depthwise kernel's gradient is a convolution of the image with the gradient as its kernel (oneDNN's own
    routine takes four times as long, on small maps forty times); norm and GELU are computed again in the backward pass instead of kept;
    and the layer scale's gradient comes from that of the weights below it, so that their output is not kept either. Channels come last
    in memory throughout, so that an image is a matrix of positions × channels without a copy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        """(B, C, H, W) → same; the weights in the order of `block`."""
        kernel, kernel_bias, norm, norm_bias, wide, wide_bias, narrow, narrow_bias, scale = weights
        y = _rows(F.conv2d(x, kernel, kernel_bias, padding=3, groups=len(kernel)))
        normed, mean, inverse = torch.native_layer_norm(y, norm.shape, norm, norm_bias, EPS)
        hidden = onednn.product(normed, wide, wide_bias)
        ctx.save_for_backward(x, *weights, y, mean, inverse, hidden)
        return _image(torch.addcmul(_rows(x), scale, onednn.product(F.gelu(hidden), narrow, narrow_bias)), x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of everything `forward` was given."""
        x, *weights, y, mean, inverse, hidden = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of this derivative is wanted
            return _differentiable(block, (x, *weights), gradient)
        kernel, _, norm, norm_bias, wide, _, narrow, narrow_bias, scale = weights
        rows = _rows(gradient)
        total = rows.sum(0)
        into_narrow = onednn.weight_gradient(rows, F.gelu(hidden))
        into_scale = (into_narrow * narrow).sum(1) + narrow_bias * total
        into_narrow *= scale[:, None]
        into_hidden = onednn.product(rows * scale, narrow.t())
        torch.ops.aten.gelu_backward.grad_input(into_hidden, hidden, grad_input=into_hidden)
        into_wide = onednn.weight_gradient(into_hidden, torch.native_layer_norm(y, norm.shape, norm, norm_bias, EPS)[0])
        into_normed = onednn.product(into_hidden, wide.t())
        into_y, into_norm, into_norm_bias = torch.ops.aten.native_layer_norm_backward(
            into_normed, y, norm.shape, mean, inverse, norm, norm_bias, [True, True, True]
        )
        image = _image(into_y, x)
        into_x = None
        if ctx.needs_input_grad[0]:
            stay = [1, 1], [3, 3], [1, 1], False, [0, 0], len(kernel)
            into_x = torch.ops.aten.convolution_backward(image, x, kernel, [0], *stay, [True, False, False])[0].add_(gradient)
        into_kernel = _kernel_gradient(image, x)
        return (
            into_x,
            into_kernel,
            into_y.sum(0),
            into_norm,
            into_norm_bias,
            into_wide,
            into_hidden.sum(0),
            into_narrow,
            scale * total,
            into_scale,
        )


def _rows(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B·H·W, C), without a copy from channels_last memory."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) → (B, C, H, W) in channels_last memory, without a copy."""
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _kernel_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of a 7×7 depthwise kernel: each image convolved with its gradient, summed: (B, C, H, W) twice → (C, 1, 7, 7)."""
    parts = [F.conv2d(x[i : i + 1], gradient[i, :, None], padding=3, groups=x.shape[1])[0] for i in range(len(x))]
    return torch.stack(parts).sum(0)[:, None]


def _differentiable(function: Any, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `function` at `inputs` that can be differentiated again."""
    needed = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(function(*inputs), needed, gradient, create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in inputs)


class Block(nn.Module):
    """The parameters of `block`, under the names of Hugging Face's layer."""

    def __init__(self, channels: int, scale: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.layernorm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.layer_scale_parameter = nn.Parameter(scale * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same."""
        layers = (self.dwconv, self.layernorm, self.pwconv1, self.pwconv2)
        weights = [p for layer in layers for p in (layer.weight, layer.bias)]
        way: Any = FastBlock.apply if onednn.usable(x) else block
        result: Tensor = way(x, *weights, self.layer_scale_parameter)
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
