"""Tensors on the wire: by reference within a process, as raw bytes between two, and between hospitals all of them in one piece.

Flower makes a request and a database entry of every array, some 60 ms each at the SuperLink, so what crosses a network is packed into a
single array of the kind `PACKED`: 8 bytes with the length of a JSON header, the header ([name, dtype, shape] of each tensor), and the
tensors' raw little-endian bytes, each beginning at a multiple of 8.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tmca_core.errors import UpdateRejected

RAW, PACKED = "tmca.raw", "tmca.packed"
WHOLE = "tensors"
"""Name of the one array of a packed record."""

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int8, torch.uint8)
_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*_FLOATS, *_INTEGERS)}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class SerialisedArray(Protocol):
    """A Flower `Array`, as far as decoding needs it."""

    dtype: str
    shape: tuple[int, ...]
    stype: str

    @property
    def data(self) -> bytes: ...  # noqa: D102


class ByReference:
    """Mixin for Flower's `Array`: holds a tensor, and makes bytes of it only where a process boundary is crossed.

    In one process the receiver takes `.tensor` as it is; whoever reads `.data` (protobuf, chunking) or pickles the object
    gets raw little-endian bytes without any header. The tensor must not change before the message has been delivered.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["tensor"] = tensor

    @property
    def dtype(self) -> str:
        """The tensor's, without "torch."."""
        return dtype_name(self.__dict__["tensor"])

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return tuple(self.__dict__["tensor"].shape)

    @property
    def stype(self) -> str:
        """Raw bytes."""
        return RAW

    @property
    def data(self) -> bytes:
        """Raw little-endian bytes, made anew at every access (what changes must not be cached)."""
        return to_bytes(self.__dict__["tensor"])

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled (by Ray, by deepcopy) as the plain Flower class: the other side needs nothing of ours to read it.
        plain = next(cls for cls in type(self).__mro__[1:] if cls is not ByReference)
        return plain, (self.dtype, self.shape, RAW, self.data)

    def __repr__(self) -> str:
        return f"Array({self.dtype}, {self.shape})"


def fill(record: Any, arrays: Mapping[str, ByReference]) -> Any:
    """A new Flower record with many arrays in it, without its check of each, which takes longer than folding a small network."""
    record.__dict__["_data"].update(arrays)
    return record


def to_bytes(tensor: Tensor) -> bytes:
    """Raw little-endian bytes of a tensor of any dtype, C order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if sys.byteorder == "big":
        flat = flat.reshape(-1, tensor.element_size()).flip(1).reshape(-1)
    return flat.numpy().tobytes()


def to_tensor(name: str, array: SerialisedArray) -> Tensor:
    """The tensor of an array: by reference where it is in this process, else a read-only view of the received bytes.

    Raises:
        UpdateRejected: another serialisation, an unknown dtype, or bytes that do not fill the shape.
    """
    held = getattr(array, "tensor", None)
    if isinstance(held, Tensor):
        return held
    if array.stype != RAW:
        raise UpdateRejected(f"tensor '{name}' is serialised as '{array.stype}', expected '{RAW}'.")
    if array.dtype not in _DTYPES:
        raise UpdateRejected(f"tensor '{name}' is of dtype '{array.dtype}'; known: {', '.join(_DTYPES)}.")
    dtype, shape, data = _DTYPES[array.dtype], tuple(array.shape), array.data
    if any(side < 0 for side in shape) or len(data) != math.prod(shape) * dtype.itemsize:
        raise UpdateRejected(f"tensor '{name}' has {len(data)} bytes, which is no {array.dtype} of shape {shape}.")
    if not data:
        try:
            return torch.empty(shape, dtype=dtype)
        except RuntimeError:  # the sides beside the one of 0 overflow
            raise UpdateRejected(f"tensor '{name}' has the shape {shape}, which no tensor has.", "shape") from None
    if sys.byteorder == "big":
        return (
            torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, dtype.itemsize).flip(1).reshape(-1).view(dtype).reshape(shape)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nobody writes to it
        return torch.frombuffer(data, dtype=dtype).reshape(shape)


def tensors_of(arrays: Mapping[str, SerialisedArray]) -> dict[str, Tensor]:
    """The tensors of a record, packed or not, in their order.

    Raises:
        UpdateRejected: one cannot be read.
    """
    if len(arrays) == 1 and (whole := arrays.get(WHOLE)) is not None and whole.stype == PACKED:
        return unpack(whole.data)
    return {name: to_tensor(name, array) for name, array in arrays.items()}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """All tensors in one piece."""
    header = json.dumps([[name, dtype_name(tensor), list(tensor.shape)] for name, tensor in tensors.items()]).encode()
    pieces = [len(header).to_bytes(8, "little"), header + b" " * (-len(header) % 8)]
    for tensor in tensors.values():
        raw = to_bytes(tensor)
        pieces += [raw, bytes(-len(raw) % 8)]
    return b"".join(pieces)


@dataclass
class _Piece:
    dtype: str
    shape: tuple[int, ...]
    data: Any
    stype: str = RAW


def unpack(data: bytes) -> dict[str, Tensor]:
    """What `pack` packed, as read-only views of the bytes.

    Raises:
        UpdateRejected: it is not what `pack` makes, to the last byte.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        if not 0 < length <= len(data) - 8:
            raise ValueError(f"a header of {length} bytes in {len(data)}")
        header = json.loads(data[8 : 8 + length])
        rows = [(str(name), str(dtype), tuple(int(side) for side in shape)) for name, dtype, shape in header]
        if len({name for name, _, _ in rows}) != len(rows):
            raise ValueError("a name comes twice")
    except (ValueError, TypeError, RecursionError) as error:
        raise UpdateRejected(f"the packed tensors cannot be read: {error}.", "names") from None
    view, place, found = memoryview(data), 8 + length + -length % 8, dict[str, Tensor]()
    for name, dtype, shape in rows:
        size = math.prod(shape) * (_DTYPES[dtype].itemsize if dtype in _DTYPES else 1)
        if any(side < 0 for side in shape) or place + size > len(data):
            raise UpdateRejected(f"the packed tensors end before '{name}' of shape {shape} does.", "shape")
        found[name] = to_tensor(name, _Piece(dtype, shape, view[place : place + size]))
        place += size + -size % 8
    if place != len(data):
        raise UpdateRejected(f"{len(data) - place} bytes follow the packed tensors.", "shape")
    return found


def payload_bytes(arrays: Mapping[str, SerialisedArray], *values: Mapping[str, Any]) -> int:
    """Bytes a message carries: every tensor's raw bytes and name, and names and values (8 bytes a number) of the rest; packed or not."""
    total = 0
    for name, array in arrays.items():
        held = getattr(array, "tensor", None)
        if isinstance(held, Tensor):
            total += len(name.encode()) + held.nbytes
        elif array.stype == PACKED:
            total += sum(len(name.encode()) + tensor.nbytes for name, tensor in unpack(array.data).items())
        else:
            total += len(name.encode()) + math.prod(array.shape) * (_DTYPES[array.dtype].itemsize if array.dtype in _DTYPES else 1)
    for record in values:
        total += sum(len(key.encode()) + (len(value) if isinstance(value, (str, bytes)) else 8) for key, value in record.items())
    return total


def dtype_name(tensor: Tensor) -> str:
    """A tensor's type as the wire calls it."""
    return _NAMES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")
