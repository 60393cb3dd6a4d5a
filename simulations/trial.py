"""A trial of a deployment on one machine: everything that `tmca deploy init --make-keys` made, started as it would be between hospitals."""

from __future__ import annotations

import json
import logging
import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.error import URLError
from urllib.request import urlopen

import typer

from tmca_core.cli import emit
from tmca_core.errors import ConfigError, FederationError

if TYPE_CHECKING:
    from simulations.processes import Processes
    from tmca_core.deploy.schema import Federation

log = logging.getLogger(__name__)

START = 120.0
"""Seconds within which the SuperLink answers, and all sites are online."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="What `tmca deploy init … --make-keys` made.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def up(
    directory: Folder,
    app: Annotated[Path, typer.Option(metavar="DIR", help="The app that the sites approve, as `flwr run` would submit it.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Start coordinator and sites of a trial on this machine; with nginx behind the ingress, without it on TLS of the SuperLink's own."""
    folder = directory.expanduser().resolve()
    federation = _federation(folder)
    ingress, names = start_trial(folder, federation, app)
    run = f"{directory}/coordinator/flwr.sh run {app} {federation.name} --stream --run-config '…'"
    before = "sites reach it through nginx" if ingress else "nginx is not installed, so the sites reach the SuperLink itself"
    said = f"{federation.name}: {len(names)} processes run ({', '.join(names)}); {before}.\nNext: {run}\nLogs: {directory}/processes/*/log"
    emit(as_json, {"processes": names, "ingress": ingress, "sites": [site.name for site in federation.sites]}, said)


def down(directory: Folder, as_json: AsJson = False) -> None:
    """End all processes of a trial; keys, ledgers and runs stay, and `up` starts them again."""
    from simulations.processes import end_all

    ended = end_all(directory.expanduser().resolve() / "processes")
    emit(as_json, {"ended": ended}, f"ended: {', '.join(ended)}." if ended else "nothing was running.")


def start_trial(folder: Path, federation: Federation, app: Path) -> tuple[bool, list[str]]:
    """Start a trial's processes and wait until every site is online.

    Args:
        folder: that holds coordinator/ and sites/.
        app: that every site approves.

    Returns:
        (whether the ingress runs, names of the processes).

    Raises:
        ConfigError: it runs already, or a site lacks its key.
        FederationError: something did not start; with the logs. Nothing is left running then.
    """
    from simulations.processes import Processes, alive

    if running := alive(folder / "processes"):
        raise ConfigError(f"{folder} runs already ({', '.join(running)}): `tmca deploy down {folder}` first.")
    _prepare(folder, federation, app)
    processes = Processes(folder / "processes")
    ingress = shutil.which("nginx") is not None
    if not ingress:
        address = f"127.0.0.1:{federation.coordinator.superlink_port}"
        processes.environment["TMCA_COORDINATOR"] = address
        log.warning("nginx is not installed: sites connect to the SuperLink at %s, and the control path is not kept apart.", address)
    try:
        _start(processes, folder, federation, ingress)
    except BaseException:
        processes.stop()
        raise
    return ingress, list(processes.running)


def _start(processes: Processes, folder: Path, federation: Federation, ingress: bool) -> None:
    home = folder / "coordinator"
    processes.start("superlink", str(home / "superlink.sh"))
    _wait_for_superlink(processes, federation, home / "ca.crt")
    processes.start("superexec", str(home / "superexec.sh"))
    if ingress:
        processes.start("ingress", str(home / "ingress.sh"))
        if operators := federation.coordinator.operators:
            processes.start("forward", str(home / "operators" / operators[0] / "forward.sh"))
    _flower(processes, home / "register.sh")
    for site in federation.sites:
        processes.start(f"{site.name}-supernode", str(folder / "sites" / site.name / "supernode.sh"))
        processes.start(f"{site.name}-work", str(folder / "sites" / site.name / "work.sh"))
        # The SuperLink's database gives up after five seconds' waiting, which trainings on the same few cores could make of it.
        os.setpriority(os.PRIO_PROCESS, processes.running[f"{site.name}-work"].pid, 10)
    _wait_for_sites(processes, federation, home)


def _prepare(folder: Path, federation: Federation, app: Path) -> None:
    """Each site's own part, which a hospital does by hand: its ledger, and its approval of the app."""
    from client.approvals import approve_app
    from tmca_core.privacy.ledger import Ledger
    from tmca_core.privacy.policy import load_policy

    for site in federation.sites:
        own = folder / "sites" / site.name
        if not (own / "site.key").exists():
            raise ConfigError(f"{own} has no site.key: for a trial, run `tmca deploy init … --make-keys`.")
        place = load_policy(own / "site.toml").ledger
        if not Path(place.folder).exists():
            Ledger.create(Path(place.folder), Path(place.witness) if place.witness else None)
        approve_app(str(app), own / "state", "tmca deploy up", "trial on one machine")


def _federation(folder: Path) -> Federation:
    from pydantic import ValidationError

    from tmca_core.deploy.folders import DESCRIPTION
    from tmca_core.deploy.schema import Federation

    path = folder / "coordinator" / DESCRIPTION
    try:
        federation = Federation.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{folder} holds no deployment ({error.__class__.__name__}): make one with `tmca deploy init`.") from None
    if not federation.coordinator.local:
        host = federation.coordinator.host
        raise ConfigError(
            f"`tmca deploy up` is for a trial on one machine, and the coordinator is '{host}'. Start it with the units or compose.yaml."
        )
    return federation


def _wait_for_superlink(processes: Processes, federation: Federation, ca: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(ca))
    end = time.monotonic() + START
    while True:
        try:
            with urlopen(f"https://127.0.0.1:{federation.coordinator.superlink_port}/health", timeout=2, context=trusted):
                return
        except (URLError, OSError) as error:
            if time.monotonic() > end or processes.running["superlink"].poll() is not None:
                raise FederationError(f"the SuperLink does not answer ({error}).\n{processes.logs()}") from None
            time.sleep(0.2)


def _wait_for_sites(processes: Processes, federation: Federation, home: Path) -> None:
    end = time.monotonic() + START
    while True:
        said = json.loads(_flower(processes, home / "flwr.sh", "supernode", "list", federation.name, "--format", "json"))
        online = sum(node["status"] == "online" for node in said["nodes"])
        if online >= len(federation.sites):
            return
        stopped = [name for name, process in processes.running.items() if process.poll() is not None]
        if stopped or time.monotonic() > end:
            what = f"{', '.join(stopped)} ended" if stopped else f"{online} of {len(federation.sites)} sites are online"
            raise FederationError(f"the trial did not start: {what}.\n{processes.logs()}")


def _flower(processes: Processes, *command: Any) -> str:
    done = subprocess.run(
        [str(part) for part in command], env=processes.environment, capture_output=True, text=True, timeout=START, check=False
    )
    if done.returncode:
        raise FederationError(f"{command[0]} failed: {done.stdout}{done.stderr}\n{processes.logs()}")
    return done.stdout
