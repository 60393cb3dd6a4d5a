"""`none`: as it is. `bf16`: the upper half of every float32, rounded to the nearest; what is cut off is sent later."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from tmca_core.compression.interface import COMPRESSIONS, Compression, Layout, taken
from tmca_core.config import Config

VALUES = "bf16/values"
LARGEST = torch.finfo(torch.bfloat16).max


@COMPRESSIONS.register("none")
def none(config: Config) -> Compression:
    """Nothing is changed or copied."""
    return Compression()


@COMPRESSIONS.register("bf16")
def bf16(config: Config) -> Compression:
    """Two bytes a value: 8 bits of mantissa, the range of float32."""
    return Compression((VALUES,), _pack, _unpack)


def _pack(flat: Tensor, layout: Layout, generator: Generator) -> dict[str, Tensor]:
    return {VALUES: flat.clamp(-LARGEST, LARGEST).to(torch.bfloat16)}  # float32's largest would round to infinity


def _unpack(payload: Mapping[str, Tensor], layout: Layout) -> Tensor:
    return taken(payload, VALUES, torch.bfloat16, layout.total).float()
