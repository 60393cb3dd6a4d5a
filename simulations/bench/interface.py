"""What a benchmark is, and the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tmca_core.registry import Registry


@dataclass(frozen=True)
class Measurement:
    """A benchmark's result.

    Attributes:
        ratios: measured against a named alternative in the same process and run; medians of the repeats.
        figures: absolute values, which depend on the machine.
        repeats: how often each was measured.
    """

    ratios: dict[str, float]
    figures: dict[str, float] = field(default_factory=dict)
    repeats: int = 1


BENCHMARKS: Registry[Callable[[int], Measurement]] = Registry("benchmark")
