"""The stage of a rehearsal: a trial deployment whose processes can be killed, stopped, cut off and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from simulations.processes import BIN, Processes, alive, end_all, free_port
from simulations.rehearsal.interface import NotHere, Unexpected
from simulations.rehearsal.played import Played
from tmca_core.deploy.folders import DESCRIPTION, make_folders
from tmca_core.deploy.schema import Federation

T = TypeVar("T")
LIMIT = 240.0
"""Seconds that a row waits for something before it says that it never came; an idle machine needs a few."""
CASES, SIZE = 40, 32
TOGETHER = "together"
"""The table of the sites that are there from the start, which the simulation reads."""
POLICY: dict[str, Any] = {
    "privacy": {"required": False, "min_patients": 4},
    "metrics": {"allowed": ["loss", "dice_image", "seconds"], "case_counts": True, "min_cases": 2},
}
"""Phantoms have no privacy to lose, so plain updates may leave; a run that asks for noise is held to the rules as they are."""
SMALL: dict[str, Any] = {
    "data.image_size": SIZE, "network.name": "unet", "network.unet_channels": "4,8", "training.steps": 2, "training.batch_size": 4,
    "training.threads": 1, "training.device": "cpu", "federation.weighting": "uniform", "federation.wait": LIMIT,
    "evaluation.bootstrap": 0, "evaluation.bootstrap_rounds": 0, "evaluation.examples": 0,
}  # fmt: skip


@dataclass
class Stage:
    """A federation that runs on this machine.

    Attributes:
        folder: of everything.
        federation: as it was described when it started.
        app: that the sites approved, and that is submitted.
        ingress: whether nginx stands before the SuperLink.
        slow: seconds that it took to start; deadlines follow from it.
        runs: those that rows share, by name.
        known: ids of the SuperNodes that belong here.
        figures: numbers that rows measured.
    """

    folder: Path
    federation: Federation
    app: Path
    ingress: bool
    processes: Processes
    slow: float
    known: set[int] = field(default_factory=set)
    runs: dict[str, Played] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    # --- places ---------------------------------------------------------------------------------
    @property
    def trial(self) -> Path:
        """Folder that `tmca deploy init` made."""
        return self.folder / "trial"

    @property
    def ca(self) -> Path:
        """Certificate of the federation's CA."""
        return self.trial / "ca" / "ca.crt"

    @property
    def names(self) -> list[str]:
        """The sites that were there from the start."""
        return [site.name for site in self.federation.sites]

    @property
    def fleet(self) -> int:
        """The port that sites reach."""
        return self.federation.coordinator.fleet_port if self.ingress else self.federation.coordinator.superlink_port

    @property
    def patience(self) -> float:
        """Seconds that a run waits for a site that does not answer: more where this machine is busy."""
        return max(15.0, round(self.slow))

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.trial / "sites" / name

    def manifest(self, name: str) -> Path:
        """A site's own table of cases."""
        return self.folder / "data" / f"{name}.csv"

    def scratch(self, name: str) -> Path:
        """A new folder for a row."""
        place = self.folder / "scratch" / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place

    # --- processes ------------------------------------------------------------------------------
    def pid(self, name: str) -> int | None:
        """Of a process of the trial; None: it does not run."""
        return alive(self.processes.folder).get(name)

    def start(self, name: str, *command: str) -> None:
        """Start a process of the trial; a worker gets the lower priority that it has from `tmca deploy up`."""
        self.processes.start(name, *command)
        if name.endswith("-work"):
            os.setpriority(os.PRIO_PROCESS, self.processes.running[name].pid, 10)

    def start_again(self, name: str) -> None:
        """Start one of the deployment's own processes with the script that it was started with."""
        home = self.trial / "coordinator"
        if name == "forward":
            home = home / "operators" / self.federation.coordinator.operators[0]
        site, _, part = name.rpartition("-")
        self.start(name, str(self.site(site) / f"{part}.sh" if site else home / f"{name}.sh"))

    def send(self, name: str, how: signal.Signals) -> None:
        """Send a signal to a process and its children.

        Raises:
            Unexpected: it does not run.
        """
        pid = self.pid(name)
        if pid is None:
            raise Unexpected(f"{name} does not run: {self.log(name)[-300:]}")
        os.killpg(pid, how)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(name, signal.SIGKILL)
        self.until(lambda: self.pid(name) is None, f"{name} to be gone")

    def terminate(self, name: str) -> None:
        """Stop a process as its machine would, with time to say that it gives up what it is at."""
        self.send(name, signal.SIGTERM)
        self.until(lambda: self.pid(name) is None, f"{name} to stop")

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Meanwhile a process does nothing, as if its machine were out of reach."""
        self.send(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(name, signal.SIGCONT)

    def log(self, name: str) -> str:
        """All that a process has said."""
        path = self.processes.folder / name / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, *command: str | Path, seconds: float = LIMIT, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of the installed programs to its end, or a script by its path."""
        program = str(BIN / command[0]) if isinstance(command[0], str) else str(command[0])
        arguments = [program, *(str(part) for part in command[1:])]
        around = {**self.processes.environment, **environment}
        return subprocess.run(arguments, cwd=self.folder, env=around, capture_output=True, text=True, timeout=seconds, check=False)

    def flwr(self, *arguments: str | Path, seconds: float = LIMIT) -> dict[str, Any]:
        """What `flwr … --format json` answers, asked through the control port where there is an ingress.

        Raises:
            Unexpected: it failed.
        """
        home = self.trial / "coordinator"
        script = home / "operators" / self.federation.coordinator.operators[0] / "flwr.sh" if self.ingress else home / "flwr.sh"
        done = self.run(script, *arguments, "--format", "json", seconds=seconds)
        said = done.stdout[done.stdout.find("{") :]
        try:
            answer: dict[str, Any] = json.loads(said)
        except ValueError:
            raise Unexpected(f"flwr {arguments[0]} said {done.stdout[-300:]}{done.stderr[-300:]}") from None
        return answer

    def nodes(self, *, online: bool = True) -> set[int]:
        """Ids of the registered SuperNodes, as the SuperLink lists them."""
        listed = self.flwr("supernode", "list", self.federation.name)["nodes"]
        return {int(node["node-id"]) for node in listed if node["status"] == "online" or not online}

    def node(self, site: str) -> int:
        """Id of a site's SuperNode, from the SuperLink's database: its lists name none."""
        where = f"file:{self.trial / 'coordinator' / 'state' / 'superlink.db'}?mode=ro"
        with closing(sqlite3.connect(where, uri=True, timeout=30)) as database:
            (number,) = database.execute("SELECT node_id FROM node WHERE name = ?", (site,)).fetchone()
        return int(number) % 2**64

    # --- runs -----------------------------------------------------------------------------------
    def submit(self, name: str, values: Mapping[str, Any], app: Path | None = None) -> Played:
        """Submit a run as an operator does; one of this name that ended before its time goes on."""
        settings = {"simulation.out": str(self.folder / "runs" / name), **values}
        played = self.runs.get(name) or Played(name, self.folder / "runs" / name, settings)
        played.app = app or self.app
        answer = self.flwr("run", played.app, self.federation.name, "--run-config", played.flat())
        if "run-id" not in answer:
            raise Unexpected(f"flwr run: {json.dumps(answer)[:300]}")
        played.submitted(int(answer["run-id"]))
        self.runs[name] = played
        return played

    def over(self, run: Played) -> bool:
        """Whether a run has ended, well or not: in its own events, or where it did not come that far, by the SuperLink's list."""
        if run.done():
            return True
        try:
            listed = self.flwr("ls", "--run-id", str(run.number), self.federation.name).get("runs", ())
        except Unexpected:  # the SuperLink may be the one that was killed
            return False
        return bool(listed) and all(str(one["status"]).startswith("finished") for one in listed)

    def end(self, run: Played) -> None:
        """Wait for the end of a run."""
        self.until(lambda: self.over(run), f"the run '{run.name}' to end", seconds=4 * LIMIT, pause=1.0)

    def stop(self, run: Played) -> None:
        """Have the SuperLink end a run, where it has not ended."""
        if not run.done() and run.name in self.runs:
            self.flwr("stop", str(run.number), self.federation.name)
        self.runs.pop(run.name, None)

    def until(self, check: Callable[[], T], what: str, seconds: float = LIMIT, pause: float = 0.3) -> T:
        """The first result that is true.

        Raises:
            Unexpected: there was none in time.
        """
        end = time.monotonic() + seconds
        while True:
            found = check()
            if found:
                return found
            if time.monotonic() > end:
                raise Unexpected(f"waited {seconds:.0f} s in vain for {what}")
            time.sleep(pause)

    def close(self) -> None:
        """End everything."""
        end_all(self.processes.folder)
        self.processes.stop()


def build(folder: Path, sites: int, app: Path) -> Stage:
    """Make data, keys, certificates and scripts of a federation on this machine, and start it.

    Args:
        folder: empty.
        sites: number of hospitals.
        app: that they approve.

    Raises:
        FederationError: it does not start.
    """
    from simulations.trial import start_trial
    from tmca_core.cases.phantom import write

    manifest = write(folder / "data", sites=sites + 1, cases=CASES, seed=0, size=SIZE)
    names = [f"phantom-{number:02d}" for number in range(sites + 1)]
    _part_tables(manifest, {name: [name] for name in names} | {TOGETHER: names[:-1]})
    federation = describe(folder, names[:-1])
    make_folders(federation, folder / "trial", make_keys=True)
    begin = time.monotonic()
    ingress, _ = start_trial(folder / "trial", federation, app)
    processes = Processes(folder / "trial" / "processes")
    if not ingress:
        processes.environment["TMCA_COORDINATOR"] = f"127.0.0.1:{federation.coordinator.superlink_port}"
    stage = Stage(folder, federation, app, ingress, processes, time.monotonic() - begin)
    stage.known = stage.nodes()
    return stage


def _part_tables(manifest: Path, parts: Mapping[str, Sequence[str]]) -> None:
    """A table of its own for each of the parts, beside the whole one: a hospital's can vanish without the others'."""
    import pandas

    table = pandas.read_csv(manifest, dtype=str, keep_default_na=False)
    for part, sites in parts.items():
        table[table["site"].isin(sites)].to_csv(manifest.with_name(f"{part}.csv"), index=False)
        shutil.copy(manifest.with_suffix(".toml"), manifest.with_name(f"{part}.toml"))


def describe(folder: Path, names: Sequence[str], before: Federation | None = None) -> Federation:
    """The federation of these sites, with ports that are free; those of a federation `before` stay."""
    if before is None:
        ports = {f"{name}_port": free_port() for name in ("fleet", "control", "superlink", "forward")}
        coordinator: dict[str, Any] = {"host": "localhost", "operators": ["tester"], **ports}
        known: dict[str, dict[str, Any]] = {}
    else:
        coordinator, known = before.coordinator.model_dump(), {site.name: site.model_dump() for site in before.sites}
    new = {"free_gb": 0.1}
    sites = [
        known.get(name) or {"name": name, "manifest": str(folder / "data" / f"{name}.csv"), "runtime_port": free_port(), **new}
        for name in names
    ]
    return Federation.model_validate({"name": "rehearsal", "coordinator": coordinator, "sites": sites, "policy": POLICY})


def described(stage: Stage) -> Federation:
    """The federation as its folder has it now, with the sites that joined."""
    return Federation.model_validate_json((stage.trial / "coordinator" / DESCRIPTION).read_bytes())


def need_nginx(stage: Stage) -> None:
    """Raise NotHere where there is no ingress."""
    if not stage.ingress:
        raise NotHere("nginx is not installed")
