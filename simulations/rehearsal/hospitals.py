"""Rows: what goes wrong at one hospital, by accident or by decision, while the others go on."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulations.rehearsal import clock, garbage
from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.live import comes_back, in_its_place, live, mid_round, others_go_on, refuses_meanwhile, running, short, struck
from simulations.rehearsal.outsiders import end_of_node
from simulations.rehearsal.stage import Stage
from tmca_core.deploy.keys import KEY

RESTART = 10.0
"""Seconds between two starts, as in the sites' units. A SuperLink turns a killed SuperNode away until it has missed two heartbeats."""


def worker_killed(stage: Stage) -> str:
    """The worker dies while it computes, and is started again by whatever watches over it."""
    return _killed(stage, stage.names[0], "work")


def node_killed(stage: Stage) -> str:
    """The SuperNode dies in the middle of a round, and comes back with the same key."""
    told = _killed(stage, stage.names[1], "supernode")
    expect(stage.known <= stage.nodes(), "the SuperNode has not come back under its id")
    return f"{told}, under the same id"


def _killed(stage: Stage, site: str, part: str) -> str:
    run, process, starts = live(stage), f"{site}-{part}", 0
    round = mid_round(stage, run)
    stage.kill(process)

    def back() -> bool:
        """Start it as its unit does: again and again, with a pause between, for as long as it ends."""
        nonlocal starts
        if stage.pid(process) is None:
            time.sleep(RESTART if starts else 0)
            stage.start_again(process)
            starts += 1
        return run.trained(site) > round

    went = others_go_on(stage, run, site, meanwhile=back)
    stage.until(lambda: running(run) and back(), f"'{site}' to be back in a round after {round}")
    lost = run.faults(site, round - 1)
    told = f"lost its turn: {short(lost[0]['reason'], 100)}" if lost else "lost no turn"
    tries = f" after {starts} starts" if starts > 1 else ""
    return f"killed in round {round}, {told}; {went}; back in round {run.trained(site)}{tries}"


def disk_full(stage: Stage) -> str:
    """No file of the worker may grow beyond what it is: its record cannot be written, so nothing may leave."""

    @contextmanager
    def full(stage: Stage, site: str) -> Iterator[None]:
        pid = stage.pid(f"{site}-work") or 0
        expect(pid, f"the worker of '{site}' does not run")
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    return refuses_meanwhile(stage, stage.names[2], "site's own log", full)


def manifest_vanished(stage: Stage) -> str:
    """The share with the table of cases is gone."""

    @contextmanager
    def gone(stage: Stage, site: str) -> Iterator[None]:
        aside = stage.manifest(site).with_suffix(".away")
        stage.manifest(site).rename(aside)
        try:
            yield
        finally:
            aside.rename(stage.manifest(site))

    return refuses_meanwhile(stage, stage.names[0], "the site failed", gone)


def ledger_edited(stage: Stage) -> str:
    """Somebody makes the hospital's ledger say something else."""
    return refuses_meanwhile(stage, stage.names[1], "LedgerError", lambda stage, site: _edited(stage, site, "ledger/ledger.jsonl"))


def record_edited(stage: Stage) -> str:
    """Somebody makes the record of what left the hospital say something else."""
    return refuses_meanwhile(stage, stage.names[2], "LedgerError", lambda stage, site: _edited(stage, site, "record/record.jsonl"))


@contextmanager
def _edited(stage: Stage, site: str, name: str) -> Iterator[None]:
    """One digit of a time in a file of the site's state is another one, as long as this lasts."""
    path, worker = stage.site(site) / "state" / name, f"{site}-work"
    with stage.stopped(worker):  # between two of its writes, or in one, which it will find interrupted
        before = path.read_bytes()
        place = before.index(b'"time"') + 10
        path.write_bytes(before[:place] + (b"1" if before[place : place + 1] != b"1" else b"2") + before[place + 1 :])
    try:
        yield
    finally:
        with stage.stopped(worker):
            after = path.read_bytes()
            path.write_bytes(after[:place] + before[place : place + 1] + after[place + 1 :])


def garbage_nan(stage: Stage) -> str:
    """A site's updates hold NaN."""
    return _garbage(stage, stage.names[0], "nan", "not-finite")


def garbage_shapes(stage: Stage) -> str:
    """A site's tensors are of other shapes than the network's."""
    return _garbage(stage, stage.names[1], "shapes", "shape")


def _garbage(stage: Stage, site: str, how: str, kind: str) -> str:
    own, port = stage.site(site), next(one.runtime_port for one in stage.federation.sites if one.name == site)
    command = (sys.executable, garbage.__file__, how, f"127.0.0.1:{port}", str(own / "state"), str(own / "superexec.secret"))
    return refuses_meanwhile(stage, site, kind, lambda stage, site: in_its_place(stage, f"{site}-work", *command))


def clock_wrong(stage: Stage) -> str:
    """A hospital's machine is an hour behind."""
    site = stage.names[2]
    run = live(stage)
    shifted = clock.shifting(stage.scratch("clock"), -3600)
    with in_its_place(stage, f"{site}-supernode"):
        joined = stage.run("tmca", "deploy", "join", stage.site(site), "--json", PYTHONPATH=shifted)
        expect(joined.returncode == 2 and "behind the coordinator" in joined.stdout, f"deploy join: {joined.stdout[-300:]}")
        log = end_of_node(stage, "wrong-clock", f"localhost:{stage.fleet}", stage.ca, stage.site(site) / KEY, PYTHONPATH=shifted)
        expect("refuses this SuperNode's call (401)" in log, f"the SuperNode said {log[-300:]}")
        went = others_go_on(stage, run, site)
    back = comes_back(stage, run, site, run.asked())
    return f"deploy join names the clock, exit code 2; the SuperNode is turned away and ends; {went}; with the right time back in {back}"


def paused(stage: Stage) -> str:
    """The hospital pauses, and resumes."""

    @contextmanager
    def pausing(stage: Stage, site: str) -> Iterator[None]:
        state = stage.site(site) / "state"
        _well(stage, "site", "pause", "--node-state", state)
        try:
            yield
        finally:
            _well(stage, "site", "resume", "--node-state", state)

    return refuses_meanwhile(stage, stage.names[0], "paused by the hospital", pausing)


def approval_revoked(stage: Stage) -> str:
    """The hospital takes its approval of the app back, and gives it again."""
    from tmca_core.record import Record

    @contextmanager
    def revoked(stage: Stage, site: str) -> Iterator[None]:
        state = stage.site(site) / "state"
        (app,) = Record.open(state / "record").approved()
        _well(stage, "deploy", "revoke", app, "--home", state)
        try:
            yield
        finally:
            _well(stage, "deploy", "approve", app, "--home", state)

    return refuses_meanwhile(stage, stage.names[1], "is not approved here", revoked)


def noise_wanted(stage: Stage) -> str:
    """A hospital's policy wants noise, and the run has none."""

    @contextmanager
    def required(stage: Stage, site: str) -> Iterator[None]:
        path = stage.site(site) / "site.toml"
        before = path.read_text()
        expect("\nrequired = false" in before, "site.toml does not say 'required = false'")
        path.write_text(before.replace("\nrequired = false", "\nrequired = true"))
        try:
            yield
        finally:
            path.write_text(before)

    return refuses_meanwhile(stage, stage.names[2], "privacy.required", required)


def _well(stage: Stage, *arguments: str | Path) -> None:
    done = stage.run("tmca", *arguments)
    expect(done.returncode == 0, f"tmca {arguments[0]} {arguments[1]} ended with {done.returncode}: {done.stderr[-300:]}")


def network_cut_long(stage: Stage) -> str:
    """A SuperNode is out of reach for longer than a round waits."""
    run, site = live(stage), stage.names[1]
    before = len(run.faults(site))
    mid_round(stage, run)
    with stage.stopped(f"{site}-supernode"):
        fault = struck(stage, run, site, "no reply within", before)
        went = others_go_on(stage, run, site)
    back = comes_back(stage, run, site, run.asked())
    return f"named in round {fault['round']}: {fault['reason']}; {went}; back in round {back}"


NAMED = "named with the reason; the others go on; back when it is put right"
ROWS = (
    Row("noise-wanted", "intrusion", "a run without noise, where one hospital's policy wants noise", NAMED, noise_wanted),
    Row("approval-revoked", "intrusion", "an app that one hospital no longer approves", NAMED, approval_revoked),
    Row("garbage-nan", "intrusion", "a site that sends NaN", NAMED, garbage_nan),
    Row("garbage-shapes", "intrusion", "a site that sends tensors of other shapes", NAMED, garbage_shapes),
    Row("ledger-edited", "intrusion", "the ledger of one hospital is changed", NAMED, ledger_edited),
    Row("record-edited", "intrusion", "the record of one hospital is changed", NAMED, record_edited),
    Row("worker-killed", "fault", "SIGKILL of a site's worker in mid-round", "the others go on; the site is back", worker_killed),
    Row("node-killed", "fault", "SIGKILL of a SuperNode in mid-round", "the others go on; the site is back under its id", node_killed),
    Row("site-cut-off", "fault", "a SuperNode out of reach for longer than a round's deadline", NAMED, network_cut_long),
    Row("disk-full", "fault", "the disk of one site is full", NAMED, disk_full),
    Row("clock-wrong", "fault", "the clock of one site is an hour behind",
        "deploy join says so; the SuperNode is turned away; the others go on; back with the right time", clock_wrong),
    Row("manifest-vanished", "fault", "the manifest of one site vanishes in mid-run", NAMED, manifest_vanished),
    Row("paused", "fault", "a hospital pauses and resumes", NAMED, paused),
)  # fmt: skip
