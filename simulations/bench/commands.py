"""Measure speed, memory and method as ratios against named alternatives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import click
import typer

from simulations.bench import ablation, aggregation, deployment, dp, faults, federation, secure, simulation, step, utility  # noqa: F401  (they register)
from simulations.bench.interface import BENCHMARKS, Measurement
from tmca_core.cli import emit

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


class Benchmarks(typer.core.TyperGroup):
    """Subcommands whose unknown names are answered with the known ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a benchmark.

        Raises:
            ConfigError: there is no such benchmark.
        """
        BENCHMARKS[cmd_name]
        return super().get_command(ctx, cmd_name)


bench = typer.Typer(cls=Benchmarks, add_completion=False, help=__doc__)


@bench.callback()
def _group() -> None:
    """Keeps typer from merging a single benchmark into the group."""


def _command(name: str, benchmark: Callable[..., Measurement]) -> Callable[..., None]:
    """A typer command with the benchmark's own options and --json."""

    @functools.wraps(benchmark)
    def run(as_json: bool = False, **options: Any) -> None:
        measured = benchmark(**options)
        value = {"name": name, "ratios": measured.ratios, "figures": measured.figures, "repeats": measured.repeats}
        lines = [f"{key}: {ratio:.3f}" for key, ratio in measured.ratios.items()]
        lines += [f"{key}: {figure:g}" for key, figure in measured.figures.items()]
        emit(as_json, value, "\n".join([f"{name} (median of {measured.repeats})", measured.text or "\n".join(lines)]))

    own = inspect.signature(benchmark, eval_str=True).parameters.values()
    json_option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*keywords, json_option])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keywords, json_option]}
    return run


for _name in BENCHMARKS.names():
    bench.command(_name)(_command(_name, BENCHMARKS[_name]))
