"""What a benchmark is, and the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import typer

from tmca_core.registry import Registry

Repeats = Annotated[int, typer.Option(help="Repetitions; the median is reported.", min=1)]


@dataclass(frozen=True)
class Measurement:
    """A benchmark's result.

    Attributes:
        ratios: measured against a named alternative in the same process and run; medians of the repeats.
        figures: absolute values, which depend on the machine.
        repeats: how often each was measured.
        text: what people read instead of the bare numbers; empty: the bare numbers.
    """

    ratios: dict[str, float]
    figures: dict[str, float] = field(default_factory=dict)
    repeats: int = 1
    text: str = ""


BENCHMARKS: Registry[Callable[..., Measurement]] = Registry("benchmark")
"""Functions of keyword options, each with a default and annotated as typer reads it: they become `tmca bench NAME --option`."""
