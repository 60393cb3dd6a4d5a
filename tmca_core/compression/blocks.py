"""`int8` and `int4`: integers with one float32 scale a block, rounded at random so that their expectation is the value.

A block is a run of values of ONE tensor: tensors differ in size by orders of magnitude, neighbours in a tensor do not. With L levels
on either side, scale s = max |x| / L and t = x / s, the code is ⌊t⌋ + 1 with probability t − ⌊t⌋, else ⌊t⌋ (QSGD, Alistarh et al. 2017,
with the maximum in place of the 2-norm). The error of a value is below s; zeros, and constants to float32's rounding, are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor

from tmca_core.compression.interface import COMPRESSIONS, Compression, Layout, taken
from tmca_core.config import Config
from tmca_core.errors import UpdateRejected

LARGEST = torch.finfo(torch.float32).max


@COMPRESSIONS.register("int8")
def int8(config: Config) -> Compression:
    """One byte a value and four a block of 256."""
    codes, scales, levels, length = "int8/codes", "int8/scales", 127, 256

    def pack(flat: Tensor, layout: Layout, generator: Generator) -> dict[str, Tensor]:
        steps, scale = _quantise(flat, layout, levels, length, generator)
        return {codes: steps.to(torch.int8), scales: scale}

    def unpack(payload: Mapping[str, Tensor], layout: Layout) -> Tensor:
        steps = taken(payload, codes, torch.int8, layout.total)
        return _scaled(steps.float(), taken(payload, scales, torch.float32, _count(layout, length)), layout, length)

    return Compression((codes, scales), pack, unpack)


@COMPRESSIONS.register("int4")
def int4(config: Config) -> Compression:
    """Half a byte a value, two a byte (the first in the lower half), and four bytes a block of 64."""
    codes, scales, levels, length = "int4/codes", "int4/scales", 7, 64

    def pack(flat: Tensor, layout: Layout, generator: Generator) -> dict[str, Tensor]:
        steps, scale = _quantise(flat, layout, levels, length, generator)
        halves = steps.add_(levels + 1).to(torch.uint8)  # 1 … 15
        if len(halves) % 2:
            halves = torch.cat([halves, halves.new_zeros(1)])
        return {codes: halves[::2] | (halves[1::2] << 4), scales: scale}

    def unpack(payload: Mapping[str, Tensor], layout: Layout) -> Tensor:
        pairs = taken(payload, codes, torch.uint8, (layout.total + 1) // 2)
        steps = torch.empty(2 * len(pairs))
        steps[::2], steps[1::2] = pairs & 15, pairs >> 4
        steps = steps[: layout.total].sub_(levels + 1)
        return _scaled(steps, taken(payload, scales, torch.float32, _count(layout, length)), layout, length)

    return Compression((codes, scales), pack, unpack)


def _quantise(flat: Tensor, layout: Layout, levels: int, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """(whole numbers from −levels to levels (total,) as float32, scales (blocks,))."""
    scales, steps = torch.empty(_count(layout, length)), flat.clone()
    magnitudes = flat.abs()
    for first, rows in _blocks(magnitudes, layout, length):
        torch.amax(rows, 1, out=scales[first : first + len(rows)])
    largest = scales.clone()
    # Rounded up where it matters (below the normal range), and never so far that levels · scale overflows.
    scales.div_(levels)
    scales = torch.where(scales * levels < largest, torch.nextafter(scales, torch.tensor(LARGEST)), scales)
    scales.clamp_(max=LARGEST / levels * (1 - 2**-22))
    divisors = torch.where(scales > 0, scales, torch.ones(()))
    for first, rows in _blocks(steps, layout, length):
        rows.div_(divisors[first : first + len(rows), None])
    chance = magnitudes.copy_(steps)
    steps.floor_()
    chance.sub_(steps)
    steps.add_(torch.rand(len(steps), generator=generator) < chance)
    return steps.clamp_(-levels, levels), scales


def _scaled(steps: Tensor, scales: Tensor, layout: Layout, length: int) -> Tensor:
    """steps · scale of their block, in place.

    Raises:
        UpdateRejected: a scale is negative, NaN or infinite.
    """
    wrong = ~(torch.isfinite(scales) & (scales >= 0))
    if wrong.any():
        block, seen = int(wrong.nonzero()[0]), 0
        for name, size in zip(layout.names, layout.sizes, strict=True):
            seen += -(-size // length)
            if block < seen:
                raise UpdateRejected(
                    f"tensor '{name}' has a block with the scale {float(scales[block])}; it must be finite and 0 or above."
                )
    for first, rows in _blocks(steps, layout, length):
        rows.mul_(scales[first : first + len(rows), None])
    return steps


def _count(layout: Layout, length: int) -> int:
    """How many blocks there are."""
    return sum(-(-size // length) for size in layout.sizes)


def _blocks(flat: Tensor, layout: Layout, length: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first block, view (blocks, values)) of every tensor's whole blocks, and of its shorter last one."""
    first = 0
    for start, size in zip(layout.starts, layout.sizes, strict=True):
        whole = size // length
        if whole:
            yield first, flat[start : start + whole * length].view(whole, length)
            first += whole
        if size % length:
            yield first, flat[start + whole * length : start + size].view(1, -1)
            first += 1
