"""Measure speed as ratios against named alternatives."""

from __future__ import annotations

from typing import Annotated

import typer

from tmca_core.cli import emit


def bench(
    name: Annotated[str, typer.Argument(help="federation.")],
    repeats: Annotated[int, typer.Option(help="Repetitions; the median is reported.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Measure speed as ratios against named alternatives."""
    from simulations.bench import federation  # noqa: F401  (registers itself)
    from simulations.bench.interface import BENCHMARKS

    measured = BENCHMARKS[name](repeats)
    value = {"name": name, "ratios": measured.ratios, "figures": measured.figures, "repeats": measured.repeats}
    lines = [f"{key}: {ratio:.3f}" for key, ratio in measured.ratios.items()]
    lines += [f"{key}: {figure:g}" for key, figure in measured.figures.items()]
    emit(as_json, value, "\n".join([f"{name} (median of {measured.repeats})", *lines]))
