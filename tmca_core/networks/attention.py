"""Attention between image positions and report tokens, written with plain linear layers so that `torch.func` can map over it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def position_features(height: int, width: int, octaves: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """sin and cos of π·2^k·(x, y) with x, y in (0, 1): (H·W, 4·octaves), the same for an image at any size."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = (grid * math.pi * 2.0 ** torch.arange(octaves, device=device)).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1).to(dtype)


class Places(nn.Linear):
    """A learned projection of positions."""

    octaves = 4

    def __init__(self, width: int) -> None:
        super().__init__(4 * self.octaves, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) → (H·W, width), from its size alone."""
        return super().forward(position_features(x.shape[-2], x.shape[-1], self.octaves, x.device, x.dtype))


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value inputs.

    A query all of whose keys are masked gets zeros, not NaN.
    """

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """query (B, N, width), key and value (B, M, memory_width), mask (B, M) bool (True: attend) → (B, N, width).

        Without a mask, `bias` (B, M) may be added to the attention logits of every query.
        """
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        if mask is None:
            added = None if bias is None else bias[:, None, None, :].to(q.dtype).expand(-1, -1, q.shape[2], -1)
            plain: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=added).transpose(1, 2).flatten(2))
            return plain
        if bias is not None:
            raise ValueError("attention takes a mask or a bias, not both.")
        some = mask.any(1, keepdim=True)  # without a valid key attend anywhere, and zero the result
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | ~some)[:, None, None, :])
        guided: Tensor = self.out(mixed.transpose(1, 2).flatten(2)) * some[:, :, None]
        return guided

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class TextGuidedBlock(nn.Module):
    """Self-attention over positions, then cross-attention to the report, both pre-norm and residual.

    Positions enter queries and keys, so "left" in a report can be bound to a place in the image.
    """

    def __init__(self, width: int, text_width: int, heads: int, self_attention: bool) -> None:
        super().__init__()
        self.positions = Places(width)
        self.norm_self = nn.LayerNorm(width) if self_attention else None
        self.attend_self = Attention(width, width, heads) if self_attention else None
        self.norm_cross = nn.LayerNorm(width)
        self.attend_text = Attention(width, text_width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, width, H, W), tokens (B, L, text_width), mask (B, L) bool, bias of positions as keys (B, H·W) → (B, width, H, W)."""
        height, width = x.shape[-2:]
        place = self.positions(x)
        y = x.flatten(2).transpose(1, 2)
        if self.attend_self is not None and self.norm_self is not None:
            normed = self.norm_self(y)
            y = y + self.attend_self(normed + place, normed + place, normed, bias=bias)
        y = y + self.attend_text(self.norm_cross(y) + place, tokens, tokens, mask)
        y = y + self.mlp(self.norm_mlp(y))
        result: Tensor = y.transpose(1, 2).unflatten(2, (height, width))
        return result
