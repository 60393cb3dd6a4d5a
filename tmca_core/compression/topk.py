"""`topk`: the largest values of every tensor with their places; all others wait in the residual until they have grown.

The share is taken of each tensor, not of the whole update: control variates and weights, norms and kernels differ in scale, and
one of them would be starved. At least one value of a tensor is sent. (Stich et al. 2018, "Sparsified SGD with memory".)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from tmca_core.compression.interface import COMPRESSIONS, Compression, Layout, taken
from tmca_core.config import Config
from tmca_core.errors import UpdateRejected

PLACES, VALUES = "topk/places", "topk/values"


@COMPRESSIONS.register("topk")
def topk(config: Config) -> Compression:
    """Eight bytes a value sent: its place in the tensor (int32, ascending) and itself (float32)."""
    share = config.federation.compression_share

    def kept(layout: Layout) -> list[int]:
        return [math.ceil(share * size) for size in layout.sizes]

    def pack(flat: Tensor, layout: Layout, generator: Generator) -> dict[str, Tensor]:
        places = []
        for start, size, k in zip(layout.starts, layout.sizes, kept(layout), strict=True):
            found = flat[start : start + size].abs().topk(k, sorted=False).indices
            places.append(found.sort().values)
        local = torch.cat(places) if places else torch.empty(0, dtype=torch.int64)
        return {PLACES: local.to(torch.int32), VALUES: flat[local + _starts(layout, kept(layout))]}

    def unpack(payload: Mapping[str, Tensor], layout: Layout) -> Tensor:
        counts = kept(layout)
        local = taken(payload, PLACES, torch.int32, sum(counts)).long()
        values = taken(payload, VALUES, torch.float32, sum(counts))
        _check_places(local, layout, counts)
        return torch.zeros(layout.total).index_copy_(0, local + _starts(layout, counts), values)

    return Compression((PLACES, VALUES), pack, unpack, sparse=True)


def _starts(layout: Layout, counts: list[int]) -> Tensor:
    """Where the tensor of every value that is sent begins: (Σ counts,) int64."""
    return torch.tensor(layout.starts, dtype=torch.int64).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


def _check_places(local: Tensor, layout: Layout, counts: list[int]) -> None:
    begin = 0
    for name, size, count in zip(layout.names, layout.sizes, counts, strict=True):
        places = local[begin : begin + count]
        begin += count
        if not count:
            continue
        if int(places.min()) < 0 or int(places.max()) >= size:
            raise UpdateRejected(f"tensor '{name}' has values at places outside of 0 … {size - 1}.")
        if bool((places[1:] <= places[:-1]).any()):
            raise UpdateRejected(f"tensor '{name}' has places that are repeated or not ascending.")
