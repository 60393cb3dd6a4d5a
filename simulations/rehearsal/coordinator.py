"""Rows: what goes wrong between the sites and the coordinator, or at the coordinator, without any site being lost for good.

They share one run that needs every site in every round, so that its model must be the simulation's (`model.py`).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.live import mid_round, short
from simulations.rehearsal.model import ROUNDS, TRAINED
from simulations.rehearsal.played import Played
from simulations.rehearsal.stage import Stage

CUT = 8.0
"""Seconds without a network."""


def surviving(stage: Stage) -> Played:
    """The run that everything befalls, a round or more before its end."""
    run = stage.runs.get("surviving")
    if run is None:
        run = stage.submit("surviving", TRAINED | {"federation.min_sites": len(stage.names)})
        here = run
        stage.until(lambda: here.asked() or _not_over(stage, here), "the run to begin")
    expect(run.asked() < ROUNDS - 1, f"the run is too far already (round {run.asked()} of {ROUNDS})")
    return run


def _not_over(stage: Stage, run: Played) -> int:
    expect(not run.done(), f"the run ended: {run.why()[:300]}")
    return 0


def goes_on(stage: Stage, run: Played, round: int) -> str:
    """See the round to its end; where the run has stopped, the same command is repeated."""

    def further() -> bool:
        return run.round >= round or stage.over(run)

    stage.until(further, f"round {round} to end", pause=1.0)
    if run.round >= round:
        return "the run went on by itself"
    why = run.why() or "its process was gone"
    kept = run.round
    stage.submit(run.name, run.values)
    stage.until(lambda: run.round >= round or _not_over(stage, run), f"round {round} to end", pause=0.5)
    return f"the run stopped ({short(why, 120)}); the same command went on from round {kept}"


def network_cut(stage: Stage) -> str:
    """All of a site's traffic stands still for some seconds in mid-round."""
    run, site = surviving(stage), stage.names[0]
    round = mid_round(stage, run)
    with stage.stopped(f"{site}-supernode"):
        time.sleep(CUT)
    told = goes_on(stage, run, round)
    expect(told.endswith("by itself"), told)
    return f"'{site}' was cut off in round {round} for {CUT:g} s; {told}"


def ingress_down(stage: Stage) -> str:
    """The ingress is killed in mid-round, and started again after some seconds."""
    run = surviving(stage)
    round = mid_round(stage, run)
    stage.kill("ingress")
    time.sleep(CUT)
    stage.start_again("ingress")
    told = goes_on(stage, run, round)
    listed = stage.until(lambda: stage.nodes() == stage.known, "all SuperNodes to be online", pause=2)
    return f"gone in round {round} for {CUT:g} s; {told}; {'all' if listed else 'not all'} SuperNodes are online"


def superlink_killed(stage: Stage) -> str:
    """SIGKILL of the SuperLink in mid-round; it is started again on the same database."""
    run = surviving(stage)
    round = mid_round(stage, run)
    stage.kill("superlink")
    stage.start_again("superlink")
    told = goes_on(stage, run, round)
    stage.until(lambda: stage.nodes() == stage.known, "all SuperNodes to be online again", pause=2)
    return f"killed in round {round}; {told}; all SuperNodes came back by themselves, under their ids"


def serverapp_killed(stage: Stage) -> str:
    """SIGKILL of the process that holds the run's weights."""
    run = surviving(stage)
    round = mid_round(stage, run)
    killed = _serverapps(stage.pid("superexec") or 0)
    expect(killed, "no flwr-serverapp runs below the SuperExec")
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    kept = run.round
    stage.submit(run.name, run.values)
    stage.until(lambda: run.round >= round or _not_over(stage, run), f"round {round} to end", pause=0.5)
    return f"killed in round {round}; the same command went on from round {kept} and ended round {run.round}"


def _serverapps(parent: int) -> list[int]:
    """Processes that a SuperExec started for its runs."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"flwr-serverapp") for word in words) and str(parent).encode() in words:
            found.append(int(place.name))
    return found


ROWS = (
    Row("network-cut", "fault", "a site's network stands still for some seconds", "the run goes on by itself", network_cut),
    Row("ingress-down", "fault", "the ingress is killed, and back after some seconds", "the run goes on, or the same command takes it up; "
        "all sites are back", ingress_down, nginx=True),
    Row("superlink-killed", "fault", "SIGKILL of the SuperLink in mid-round", "the run goes on, or the same command takes it up; all sites "
        "are back by themselves", superlink_killed),
    Row("serverapp-killed", "fault", "SIGKILL of the run's own process in mid-round", "the same command goes on from the last checkpoint",
        serverapp_killed),
)  # fmt: skip
