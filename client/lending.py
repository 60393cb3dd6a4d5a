"""Memory for updates that is used again: fresh memory costs several times what computing the update does."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

KEPT = 2
"""Sets of buffers that are kept: one is being folded while the next update is written."""


class Lending:
    """Lends CPU tensors, and lends the same memory again once nobody holds what was lent.

    Where all is still held, as by a server that compares the first updates of a run, memory is added; what exceeds `KEPT` sets is given
    back when it comes free.

    Args:
        like: tensors whose shapes and types are lent; their values are not read.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._like = {name: (tensor.shape, tensor.dtype) for name, tensor in like.items()}
        self._lent: list[tuple[dict[str, Tensor], list[weakref.ref[Tensor]]]] = []

    def take(self) -> dict[str, Tensor]:
        """Tensors by name, with values of no meaning."""
        free = [buffers for buffers, held in self._lent if all(reference() is None for reference in held)]
        self._lent = [entry for entry in self._lent if not any(entry[0] is buffers for buffers in free)]
        buffers = free[0] if free else {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in self._like.items()}
        idle: list[tuple[dict[str, Tensor], list[weakref.ref[Tensor]]]] = [(spare, []) for spare in free[1:]]
        views = {name: buffer.view(buffer.shape) for name, buffer in buffers.items()}
        used = [*self._lent, (buffers, [weakref.ref(view) for view in views.values()])]
        self._lent = used + idle[: max(0, KEPT - len(used))]
        return views
