"""A web page over a federation that is running or has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder; it need not hold a run yet.")],
    host: Annotated[str, typer.Option(help="Interface to serve at. Others than this machine's own have no sign-in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve at; 0: any that is free.")] = 8080,
    name: Annotated[list[str] | None, typer.Option(help="A host name that the page answers to; may be repeated.")] = None,
    stalled_after: Annotated[float, typer.Option(min=1, help="Seconds without an event until the run counts as stalled.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout: where the page is.")] = False,
) -> None:
    """Watch a federation in a browser: rounds, sites, Dice, privacy, faults; also /health and /metrics (Prometheus)."""
    import sys

    from server.watch.app import watch_app
    from tmca_core.cli import emit
    from tmca_core.errors import ConfigError
    from tmca_core.pages.serving import LOCAL, address, listen, serve

    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file. Name the run's folder (its --out).")
    bound = listen(host, port)
    where = address(bound)
    if host not in LOCAL:
        print(
            f"everybody who reaches {host} can read this page: it has no sign-in. Put it behind the coordinator's ingress.", file=sys.stderr
        )
    told = f"{run}: {where} (also {where}health and {where}metrics). Ctrl-C ends the page, not the training."
    emit(as_json, {"run": str(run.resolve()), "url": where}, told)
    sys.stdout.flush()
    serve(watch_app(run, stalled_after=stalled_after, names=[host, *(name or [])]), bound)
