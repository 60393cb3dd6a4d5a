"""A round's updates, kept until all are there: what robust algorithms need, in memory or in a temporary file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

import torch
from torch import Tensor

from tmca_core.errors import FederationError
from tmca_core.messages import Update

CHUNK = 2**22
"""Values of all updates together that are held in float64 at once: 32 MiB."""
ALIGN = 8


class Replies:
    """Copies of the shared tensors of every update of a round, as they came, read back a few coordinates at a time.

    Attributes:
        weights: public weight of each update, in the order of arrival.
    """

    def __init__(self, like: Mapping[str, Tensor], spill: bool) -> None:
        """Nothing is kept yet.

        Args:
            like: tensors as those of the updates.
            spill: keep them in a file without a name below TMPDIR, which is gone with the process, however that ends.
        """
        self.weights: list[int] = []
        self._like = {name: (tensor.shape, tensor.dtype) for name, tensor in like.items()}
        self._offset: dict[str, int] = {}
        self._size = 0
        for name, tensor in like.items():
            self._offset[name] = self._size
            self._size += -(-tensor.nbytes // ALIGN) * ALIGN
        self._spill = spill
        self._file: IO[bytes] | None = None
        self._rows: list[Tensor] = []

    def add(self, update: Update) -> None:
        """Copy an update's shared tensors.

        Raises:
            FederationError: the temporary file cannot be written.
        """
        row = torch.empty(self._size, dtype=torch.uint8)
        for name, (shape, dtype) in self._like.items():
            _part(row, self._offset[name], dtype, shape.numel()).copy_(update.tensors[name].reshape(-1))
        if self._spill:
            self._write(row)
        else:
            self._rows.append(row)
        self.weights.append(update.weight)

    def __len__(self) -> int:
        return len(self.weights)

    def clear(self) -> None:
        """Forget all of them."""
        self.weights, self._rows = [], []
        if self._file is not None:
            self._file.close()
            self._file = None

    def columns(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Coordinates of a tensor, flat, and all updates' values there: (updates, coordinates) float64."""
        shape, dtype = self._like[name]
        size, width = shape.numel(), max(1, CHUNK // max(1, len(self)))
        for start in range(0, size, width):
            stop = min(start + width, size)
            values = torch.empty(len(self), stop - start, dtype=torch.float64)
            for row, target in enumerate(values):
                target.copy_(self._read(row, self._offset[name] + start * dtype.itemsize, dtype, stop - start))
            yield slice(start, stop), values

    def products(self) -> Tensor:
        """Inner products of the updates over all shared tensors: (updates, updates) float64."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for name in self._like:
            for _, values in self.columns(name):
                total.addmm_(values, values.T)
        return total

    def distances(self) -> Tensor:
        """Squared distances between the updates: (updates, updates) float64, 0 where rounding is all there is."""
        products = self.products()
        squares = products.diagonal()
        scale = squares[:, None] + squares[None]
        found = scale - (products + products.T)
        return torch.where(found > 1e-12 * scale, found, 0.0).fill_diagonal_(0.0)

    def _write(self, row: Tensor) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="tmca-replies-")  # noqa: SIM115  (closed by `clear`)
            self._file.write(row.numpy().data)
            self._file.flush()
        except OSError as error:
            raise FederationError(
                f"the round's updates do not fit into a temporary file in {tempfile.gettempdir()}: {error}. Point TMPDIR to a folder with "
                "more room, or set federation.spill=false."
            ) from None

    def _read(self, row: int, offset: int, dtype: torch.dtype, count: int) -> Tensor:
        if self._file is None:
            return _part(self._rows[row], offset, dtype, count)
        data = bytearray(count * dtype.itemsize)
        done = 0
        while done < len(data):
            got = os.preadv(self._file.fileno(), [memoryview(data)[done:]], row * self._size + offset + done)
            if not got:
                raise FederationError(f"the temporary file of the round's updates was cut short in {tempfile.gettempdir()}.")
            done += got
        return torch.frombuffer(data, dtype=dtype)


def _part(row: Tensor, offset: int, dtype: torch.dtype, count: int) -> Tensor:
    return row[offset : offset + count * dtype.itemsize].view(dtype)


def weighted(coefficients: Tensor, values: Tensor) -> Tensor:
    """Σ c_k values_k: (updates,), (updates, coordinates) → (coordinates,); a coefficient of 0 takes an update out, whatever it holds."""
    taken = coefficients > 0
    return coefficients[taken] @ values[taken]


def shares(weights: list[int]) -> Tensor:
    """Weights as shares of their sum: (updates,) float64."""
    return torch.tensor([weight / math.fsum(weights) for weight in weights], dtype=torch.float64)
