"""The root command `tmca`: finds every room's commands through entry points and imports one only when it is called."""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click

from tmca_core import __version__
from tmca_core.errors import TmcaError
from tmca_core.logs import formatter

ORDER = ("demo", "simulate", "sweep", "train", "evaluate", "predict", "data", "report", "bench", "doctor")


class LazyCommands(click.Group):
    """Subcommands from a group of entry points; help lines are read from the source without importing it.

    Args:
        points: the group's name.
        order: names in the order users meet them; others follow.
    """

    def __init__(self, *args: Any, points: str, order: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.points, self.order = points, order

    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.points)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order users meet them, later additions at the end."""
        order = self.order
        return sorted(self._points(), key=lambda name: (order.index(name) if name in order else len(order), name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        point = self._points().get(cmd_name)
        if point is None:
            return None
        import typer

        target = point.load()
        if isinstance(target, click.Command):
            return target
        if not isinstance(target, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(cmd_name)(target)
            target = single
        command = typer.main.get_command(target)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command, without importing any."""
        points = self._points()
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_line(points[name])) for name in self.list_commands(ctx)])


def _first_line(point: EntryPoint) -> str:
    """First docstring line of an entry point's function, or of its module where it names no function."""
    spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None:
        return "(not installed)"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == point.attr]
    text = ast.get_docstring(functions[0] if functions else tree) or ""
    return text.splitlines()[0] if text else ""


@click.command(cls=LazyCommands, points="tmca.commands", order=ORDER, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tmca")
def root() -> None:
    """Federated learning for text-guided medical image segmentation.

    Start with `tmca demo`. Every command takes --json (one object on stdout) and --debug (tracebacks).
    """


def emit(as_json: bool, value: Mapping[str, Any], text: str) -> None:
    """Print a command's result: one JSON object, or text for people."""
    print(json.dumps(value, allow_nan=False) if as_json else text)


def main(arguments: list[str] | None = None) -> None:
    """Run `tmca` and exit: 0 done, 2 user error, 3 refused, 4 and 5 audits, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as tidily as an interrupted one
    try:
        _listen(debug)
        code = root.main(arguments, prog_name="tmca", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except TmcaError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: what was written is kept; training goes on from its last checkpoint with the same command.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"error: unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)", file=sys.stderr)
        sys.exit(1)


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to whatever sys.stderr is now, so that a live table above it stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _listen(debug: bool) -> None:
    """What our rooms say goes to stderr, as text or as `TMCA_LOG` has it; of other packages only warnings."""
    handler = _ToStderr()
    handler.setFormatter(formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("flwr").propagate = False  # Flower's logger, of level DEBUG, has a handler of its own, which goes by FLWR_LOG_LEVEL
    for room in ("tmca_core", "client", "simulations"):
        logging.getLogger(room).setLevel(logging.DEBUG if debug else logging.INFO)
    # The server's warnings are faults, which are events too: the table shows them.
    logging.getLogger("server").setLevel(logging.DEBUG if debug else logging.ERROR)


if __name__ == "__main__":
    main()
