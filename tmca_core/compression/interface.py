"""What a compression is, and the registry.

The float32 tensors of an update are laid out as one vector in the order of their names, so a step is two functions on a vector
and needs neither names on the wire nor a loop over many small tensors. Tensors of other dtypes travel as they are.

What a step loses is kept at the site and added to its next update (error feedback: Seide et al. 2014; Karimireddy et al. 2019):
meant_t = Δ_t + r_{t−1},  sent_t = decode(encode(meant_t)),  r_t = meant_t − sent_t,  hence Σ sent_t + r_T = Σ Δ_t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Generator, Tensor

from tmca_core.config import Config
from tmca_core.errors import UpdateRejected
from tmca_core.messages import Spec, finite, spec_of
from tmca_core.registry import Registry

FLOAT = "float32"


@dataclass(frozen=True)
class Layout:
    """Where the float32 tensors of an update lie in one vector.

    Attributes:
        names: sorted. `shapes`, `sizes`, `starts`: of each; a size may be 0.
        total: length of the vector.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, spec: Spec) -> Layout:
        """The layout that server and site derive from the same names and shapes."""
        names = tuple(sorted(name for name, (_, dtype) in spec.items() if dtype == FLOAT))
        shapes = tuple(spec[name][0] for name in names)
        sizes = tuple(torch.Size(shape).numel() for shape in shapes)
        ends = tuple(accumulate(sizes))
        return cls(names, shapes, sizes, (0, *ends)[: len(names)], sum(sizes))

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors as a new vector (total,)."""
        flat = torch.empty(self.total)
        for name, start, size in zip(self.names, self.starts, self.sizes, strict=True):
            flat[start : start + size].copy_(tensors[name].detach().reshape(-1))
        return flat

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the vector, by name."""
        return {
            name: flat[start : start + size].view(shape)
            for name, start, size, shape in zip(self.names, self.starts, self.sizes, self.shapes, strict=True)
        }


Pack = Callable[[Tensor, Layout, Generator], dict[str, Tensor]]
"""Vector (total,), finite, not to be changed → its parts on the wire, by short names with a '/'."""
Unpack = Callable[[Mapping[str, Tensor], Layout], Tensor]
"""Parts, possibly hostile → vector (total,); UpdateRejected where they are not what `Pack` makes."""


@dataclass(frozen=True)
class Compression:
    """One way to make an update smaller.

    Attributes:
        parts: names of the tensors that stand for the float32 ones on the wire; () where these travel themselves.
        sparse: what arrives is zero nearly everywhere.
    """

    parts: tuple[str, ...] = ()
    pack: Pack | None = None
    unpack: Unpack | None = None
    sparse: bool = False

    def encode(
        self, tensors: Mapping[str, Tensor], residual: Mapping[str, Tensor], generator: Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The site's half.

        Args:
            tensors: an update's, CPU.
            residual: what the rounds before did not send, by name; names may be missing.
            generator: of the stochastic rounding, a function of (seed, site, round).

        Returns:
            (tensors for the wire, what they leave unsent by name); both by reference where nothing is compressed.

        Raises:
            UpdateRejected: a tensor holds NaN or infinite values.
        """
        if self.pack is None or self.unpack is None:
            return dict(tensors), {}
        layout = Layout.of(spec_of(tensors))
        flat = layout.join(tensors)
        for name, part in layout.split(flat).items():
            if name in residual:
                part.add_(residual[name])
            if not finite(part):
                raise UpdateRejected(f"tensor '{name}' holds NaN or infinite values: it cannot be compressed.")
        payload = self.pack(flat, layout, generator)
        rest = layout.split(flat.sub_(self.unpack(payload, layout)))
        return payload | {name: tensor for name, tensor in tensors.items() if name not in rest}, rest

    def decode(self, payload: Mapping[str, Tensor], spec: Spec) -> dict[str, Tensor]:
        """The server's half; what `check_update` looks at (other dtypes, further tensors) is handed on as it is.

        Args:
            payload: tensors of a reply, in which nothing is trusted.
            spec: of the update that is expected.

        Raises:
            UpdateRejected: the payload is none that `encode` makes of such an update.
        """
        if self.unpack is None:
            return dict(payload)
        layout = Layout.of(spec)
        tensors = layout.split(self.unpack(payload, layout))
        for name in payload.keys() & tensors.keys():
            raise UpdateRejected(f"tensor '{name}' is sent beside the compressed tensors.")
        return tensors | {name: tensor for name, tensor in payload.items() if name not in self.parts}


COMPRESSIONS: Registry[Callable[[Config], Compression]] = Registry("compression")


def taken(payload: Mapping[str, Tensor], name: str, dtype: torch.dtype, length: int) -> Tensor:
    """A part of a payload, checked.

    Raises:
        UpdateRejected: it is missing, or of another dtype or shape than (length,).
    """
    if name not in payload:
        raise UpdateRejected(f"tensor '{name}' is missing.")
    tensor, expected = payload[name], str(dtype).removeprefix("torch.")
    if tensor.dtype != dtype:
        raise UpdateRejected(f"tensor '{name}' is {str(tensor.dtype).removeprefix('torch.')}, expected {expected}.")
    if tuple(tensor.shape) != (length,):
        raise UpdateRejected(f"tensor '{name}' has shape {tuple(tensor.shape)}, expected ({length},).")
    return tensor
