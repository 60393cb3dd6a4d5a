"""Updates as whole numbers modulo 2ᵏ, so that sums of masked ones are exact and never wrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmca_core.errors import ConfigError, UpdateRejected

Codes = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK = 1 << 16
"""Values at a time: their float64 copy stays in the processor's cache."""
_UNSIGNED: dict[int, str] = {16: "<u2", 32: "<u4"}


@dataclass(frozen=True)
class FixedPoint:
    """The grid of one sum: n parties send v_k = round(s·w_k·x_k) mod 2ᵏ with s = (2ᵏ⁻¹ − 1 − n) / (B·W) and W = Σ w_k.

    |x_k| ≤ B makes |Σ v_k| ≤ s·B·W + n/2 < 2ᵏ⁻¹ for any subset of the parties: the signed sum is what it seems. The weight is multiplied
    in before rounding, so a weighted mean over parties of together W' is off by at most n / (2·s·W'), whatever the weights.

    Attributes:
        bits: k, 16 or 32.
        bound: B, largest magnitude of a value.
        parties: n, at most; more may not be added.
        weight: W, sum of the weights of all parties that may be added.
    """

    bits: int
    bound: float
    parties: int
    weight: int

    def __post_init__(self) -> None:
        if self.bits not in _UNSIGNED:
            raise ConfigError(f"sums of {self.bits} bits are not made; 16 and 32 are.")
        if not 0 < self.bound < math.inf:
            raise ConfigError(f"the bound on the values of an update must be above 0 and finite, not {self.bound}.")
        if not 0 < self.parties <= self.weight:
            raise ConfigError(f"{self.parties} parties of weights of 1 and above cannot have a total weight of {self.weight}.")
        if self.parties > (1 << (self.bits - 1)) // 16:
            raise ConfigError(f"{self.parties} parties leave no room for values in sums of {self.bits} bits: take 32 bits, or fewer sites.")

    @property
    def scale(self) -> float:
        """s: whole numbers for one unit of weight times value."""
        return ((1 << (self.bits - 1)) - 1 - self.parties) / (self.bound * self.weight)

    def step(self, weight: int) -> float:
        """Distance of two neighbouring means where the parties in the sum have together this weight."""
        return 1 / (self.scale * weight)

    def zeros(self, count: int) -> Codes:
        """An empty sum, shape (count,)."""
        return np.zeros(count, _UNSIGNED[self.bits])

    def received(self, data: bytes | memoryview) -> Codes:
        """A vector that came as bytes, little-endian; read-only where these are."""
        return np.frombuffer(data, _UNSIGNED[self.bits])

    def encode(self, values: NDArray[np.float32], weight: int, out: Codes, name: str = "update") -> None:
        """Write round(s·weight·values) mod 2ᵏ to `out`; both of shape (count,).

        Raises:
            UpdateRejected: a value is beyond the bound or not finite; nothing of it may be sent. `name` is named.
        """
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))  # both NaN where a value is
        if not math.isfinite(largest):
            raise UpdateRejected(f"tensor '{name}' holds NaN or infinite values: it cannot be masked.", "not-finite")
        if largest > self.bound:
            raise UpdateRejected(
                f"tensor '{name}' changes by up to {largest:.4g}, and masked sums take at most {self.bound:g}: raise "
                "federation.secure_range (each doubling doubles the rounding), or train with smaller steps.",
                "range",
            )
        if not 0 < weight <= self.weight:
            raise UpdateRejected(f"a weight of {weight} does not belong to parties of together {self.weight}.", "weight")
        signed, factor, piece = out.view(out.dtype.str.replace("u", "i")), self.scale * weight, np.empty(min(CHUNK, len(values)))
        for start in range(0, len(values), CHUNK):
            part = piece[: len(values[start : start + CHUNK])]
            np.multiply(values[start : start + CHUNK], factor, out=part, dtype=np.float64)
            np.rint(part, out=part)
            np.copyto(signed[start : start + CHUNK], part, casting="unsafe")

    def decode(self, total: Codes, weight: int) -> NDArray[np.float64]:
        """Mean of values, shape (count,), from the sum of codes of parties with together `weight`."""
        if not 0 < weight <= self.weight:
            raise ConfigError(f"a sum over a weight of {weight} is not one of parties of together {self.weight}.")
        signed = total.view(total.dtype.str.replace("u", "i"))
        mean: NDArray[np.float64] = np.multiply(signed, 1 / (self.scale * weight), dtype=np.float64)
        return mean
