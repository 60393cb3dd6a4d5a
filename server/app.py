"""Flower ServerApp. `app` is what Flower loads; simulations make theirs with `make_app`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:
    from tmca_core.config import Config
    from tmca_core.training.scores import SiteSummary

OnEvent = Callable[[Mapping[str, Any]], None]

# Grids of simulations by class name: the engine's name, and the seconds without a new node after which all are there.
_SIMULATED = {"InProcessGrid": ("inprocess", 0.0), "InMemoryGrid": ("ray", 5.0)}


def make_app(config: Config | None = None, out: Path | None = None, on_event: OnEvent | None = None) -> ServerApp:
    """A ServerApp that runs one federation and leaves its run in a folder.

    Args:
        config: None: taken from Flower's run-config.
        out: the run's folder; None: `simulation.out`, or runs/<time> below the working directory.
        on_event: receives every event of metrics.jsonl as it is written; None: the folder and a line a round are printed.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        from tmca_core.config import parse
        from tmca_core.logs import listen_under_flower

        listen_under_flower()
        settings = config if config is not None else parse(context.run_config)
        folder = out or Path(settings.simulation.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
        if on_event:
            federate(grid, settings, folder, on_event)
        else:
            federate_aloud(grid, settings, folder)

    return app


def federate(grid: Grid, config: Config, out: Path, on_event: OnEvent | None) -> dict[str, Any]:
    """Train, evaluate and test over `grid`; returns run.json, which is also written to `out`.

    Raises:
        ConfigError: `out` holds a run of another configuration.
        FederationError: too few sites answered.
        PolicyRefusal: the sites' policies leave too few; run.json names them and their rules.
        StorageError: `out` cannot be written.
    """
    from server.central import CentralFold, central_summary
    from server.checking import check_data
    from server.private import asked_for
    from server.rounds import Federation
    from tmca_core.errors import PolicyRefusal, TmcaError
    from tmca_core.networks.start import keep_start
    from tmca_core.run import Run
    from tmca_core.training.centralised import peak_rss_mb

    run = Run.create(out, config)
    keep_start(run, config)
    engine, settle = _SIMULATED.get(type(grid).__name__, ("deployment", config.federation.wait))
    federation = Federation(grid, config, run, on_event, deployed=engine == "deployment")
    checked: dict[str, Any] = {}  # only where it was asked for

    def told(test: Mapping[str, SiteSummary]) -> dict[str, Any]:
        return federation.progress.summary(config, engine, test, peak_rss_mb(), asked_for(run, config)) | checked

    try:
        try:
            federation.start(settle)
            if config.federation.check != "false":
                checked["data_check"] = check_data(federation, again=config.federation.check == "only")
            if config.federation.check == "only":
                before = run.read_json("run.json")  # of a run that has trained already, which stays as it is
                summary = (before or told({})) | checked
                run.write_json("run.json", summary)
                federation.emit("ended", round=federation.round)
                return summary
            federation.train()
        except PolicyRefusal:  # for whoever asks later which site refused, and by which rule
            run.write_json("run.json", told({}))
            raise
        federation.choose()
        test = federation.evaluate("test")
    except TmcaError as error:
        federation.stopped(str(error))
        raise
    except KeyboardInterrupt:
        federation.stopped("it was interrupted; the same command goes on from the last round that is kept.")
        raise
    summary = told(test)
    if isinstance(federation.fold, CentralFold):
        summary["central"] = central_summary(config, run, federation.fold.clip)
    run.write_json("run.json", summary)
    federation.emit("ended", round=federation.round)
    return summary


def federate_aloud(grid: Grid, config: Config, out: Path) -> None:
    """`federate` for somebody who reads along (`flwr run --stream`): where the run lies, a line a round, why it stopped."""
    from tmca_core.errors import TmcaError
    from tmca_core.run import Run

    # Absolute: under `flwr run` the working directory is that of the SuperLink, not the reader's.
    print(f"run folder: {out.resolve()}", flush=True)
    try:
        with Run(out).held():
            federate(grid, config, out, print_event)
    except TmcaError as error:
        print(f"the run stopped: {error}", flush=True)
        raise
    print(f"done; run folder: {out.resolve()}", flush=True)


def print_event(event: Mapping[str, Any]) -> None:
    """One plain line a round, a fault and a note."""
    if event["event"] == "round":
        dice = "-" if event["dice_image"] is None else f"{event['dice_image']:.3f}"
        print(f"round {event['round']}: Dice {dice}, {len(event['completed'])} sites, {event['seconds']:.1f} s", flush=True)
    elif event["event"] == "fault":
        print(f"round {event['round']}, {event['phase']}: site '{event['site']}' ({event['kind']}): {event['reason']}", flush=True)
    elif event["event"] == "note":
        print(event["text"], flush=True)


app = make_app()
