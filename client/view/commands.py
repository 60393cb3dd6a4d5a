"""A hospital's own part in the federation: see it, pause it, resume it, leave a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmca_core.cli import emit
from tmca_core.errors import ConfigError

if TYPE_CHECKING:
    from client.standing import Standing

app = typer.Typer(
    help="A hospital's own part in the federation: see it, pause it, resume it, leave a run.", no_args_is_help=True, add_completion=False
)

State = Annotated[Path, typer.Option("--node-state", metavar="DIR", help="The folder that state=… of the SuperNode's --node-config names.")]
Policies = Annotated[
    list[Path] | None, typer.Option("--policy", metavar="SITE.TOML", help="The hospital's policy, which names its ledger; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


@app.command()
def view(
    node_state: State,
    policy: Policies = None,
    alone: Annotated[Path | None, typer.Option(help="The --out of `tmca train --site …`: our own model, for the gain.")] = None,
    together: Annotated[
        Path | None, typer.Option(help="The --out of `tmca evaluate`: the shared model on our cases, for the gain.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve at, on this computer only; 0: any that is free.")] = 8090,
    as_json: AsJson = False,
) -> None:
    """Show the site's page in a browser: its privacy budget, its runs, its gain, and buttons to pause, resume and leave."""
    from client.view.app import new_key, view_app
    from client.view.page import Desk
    from tmca_core.pages.serving import address, listen, serve

    _folder(node_state)
    desk = Desk(node_state, policy or (), alone, together)
    desk.look()  # what is wrong with the folders named is said here, not in the browser
    key, bound = new_key(), listen("127.0.0.1", port)
    where = f"{address(bound)}{key}/"
    told = f"{where}\nOnly who has this address can open the page and press its buttons; keep it to yourself. Ctrl-C ends the page."
    emit(as_json, {"url": where}, told)
    sys.stdout.flush()
    serve(view_app(desk, key), bound)


@app.command()
def pause(node_state: State, as_json: AsJson = False) -> None:
    """Answer nothing from now on; what is being computed does not leave either."""
    from client import standing

    _told(standing.pause(node_state), as_json)


@app.command()
def resume(node_state: State, as_json: AsJson = False) -> None:
    """Take part again; the server asks within minutes, and the SuperNode need not be started anew."""
    from client import standing

    _told(standing.resume(node_state), as_json)


@app.command()
def leave(
    node_state: State,
    run: Annotated[str | None, typer.Option(help="Which run.  [default: the one that asked last]")] = None,
    policy: Policies = None,
    as_json: AsJson = False,
) -> None:
    """Leave a run for good: there is no way back into it."""
    from client import standing
    from client.view.page import Desk

    _folder(node_state)
    known = [one.name for one in Desk(node_state, policy or ()).look().runs]
    if not known:
        raise ConfigError(f"no run has asked through {node_state} yet, so there is none to leave. To answer none at all: tmca site pause.")
    if run is not None and run not in known:
        raise ConfigError(f"run {run} never asked here; known, the last first: {', '.join(known)}.")
    _told(standing.leave(node_state, run or known[0]), as_json)


@app.command()
def status(node_state: State, policy: Policies = None, as_json: AsJson = False) -> None:
    """Say whether the site takes part, which runs it knows or has left, and what of its privacy budget is spent."""
    from client.view.page import Desk, headline

    _folder(node_state)
    sight = Desk(node_state, policy or ()).look()
    runs = [{"run": run.name, "rounds": len(run.rounds), "last": run.last, "left": run.left or None} for run in sight.runs]
    accounts = [
        {
            "ledger": account.place,
            "spent": account.spent,
            "plain_updates": account.plain,
            "budget": account.budget.epsilon if account.budget else None,
            "delta": account.budget.delta if account.budget else None,
            "left": account.left,
            "rounds_left": account.rounds,
            "fault": account.fault or None,
        }
        for account in sight.accounts
    ]
    paused = sight.standing.paused or None if sight.standing else None
    value: dict[str, Any] = {"answers": bool(sight.standing) and not paused, "paused": paused, "runs": runs, "ledgers": accounts}
    lines = [headline(sight) + (f" since {paused}" if paused else "") + ".", *([sight.fault] if sight.fault else [])]
    lines += [f"run {run['run']}: " + (f"left {run['left']}" if run["left"] else f"{run['rounds']} paid rounds") for run in runs]
    lines += [
        f"{account.place}: "
        + (account.fault or f"ε = {account.spent:.4f} spent of {account.budget.epsilon:g}" if account.budget else "")
        + (f", beside {account.plain} plain updates, for whose patients no ε holds" if account.plain else "")
        for account in sight.accounts
    ]
    emit(as_json, value, "\n".join(lines))


def _folder(state: Path) -> None:
    if not state.is_dir():
        raise ConfigError(f"{state} does not exist. Name the folder that state=… of the SuperNode's --node-config names.")


def _told(standing: Standing, as_json: bool) -> None:
    text = f"paused since {standing.paused}: nothing is answered." if standing.paused else "this site takes part."
    text += "".join(f" Run {run} was left at {when}." for run, when in standing.left.items())
    emit(as_json, {"paused": standing.paused or None, "left": dict(standing.left)}, text)
