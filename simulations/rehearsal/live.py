"""A run that goes on for as long as rows need it, and what they ask of it: who is lost, who goes on, who comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simulations.rehearsal.interface import expect
from simulations.rehearsal.played import Played
from simulations.rehearsal.stage import SMALL, Stage

LIVE = "live"
MOST = 5000
"""Rounds; no rehearsal gets there."""


def live(stage: Stage) -> Played:
    """The run in which sites may be lost, with every site of the start in it."""
    run = stage.runs.get(LIVE)
    if run is None or run.done():
        values = SMALL | {"federation.rounds": MOST, "federation.min_sites": 1, "evaluation.every": MOST}
        run = stage.submit(LIVE, values | {"federation.deadline": stage.patience})
    here, last = run, run.round if run.starts > 1 else 0
    stage.until(lambda: running(here) and all(here.trained(site) > last for site in stage.names), "all sites to train")
    return run


def running(run: Played) -> bool:
    """True, and Unexpected is raised where a run has ended."""
    expect(not run.done(), f"the run ended: {run.why()[:300]}")
    return True


def comes_back(stage: Stage, run: Played, site: str, after: int) -> int:
    """Wait until a site's update is folded in a round above `after`; returns the round."""
    stage.until(lambda: running(run) and run.trained(site) > after, f"'{site}' to be back in a round after {after}")
    return run.trained(site)


def others_go_on(stage: Stage, run: Played, site: str, meanwhile: Callable[[], object] = lambda: None) -> str:
    """Wait until the others have trained a round that was asked for from now on.

    Args:
        meanwhile: called again and again.
    """
    since, others = run.asked(), [name for name in stage.names if name != site]

    def further() -> bool:
        meanwhile()
        return running(run) and all(run.trained(name) > since for name in others)

    stage.until(further, f"the others to go on without '{site}'")
    return f"round {since + 1} was trained by {', '.join(others)}"


def mid_round(stage: Stage, run: Played) -> int:
    """Wait until a round has just been asked for; returns it."""
    before = run.asked()
    stage.until(lambda: running(run) and run.asked() > before, "the next round", pause=0.02)
    return run.asked()


def struck(stage: Stage, run: Played, site: str, told: str, before: int) -> dict[str, Any]:
    """Wait for a fault of a site, after the first `before` of them, that is of this kind or whose reason holds this text."""

    def found() -> dict[str, Any] | None:
        running(run)
        return next((fault for fault in run.faults(site)[before:] if told in fault["reason"] or told == fault["kind"]), None)

    fault = stage.until(found, f"'{site}' to be named with '{told}'")
    assert fault is not None  # `until` returns what is true
    return fault


def refuses_meanwhile(stage: Stage, site: str, told: str, around: Callable[[Stage, str], Any]) -> str:
    """Break something at one site: it is named, the others go on; it is put right, and the site is back.

    Args:
        told: part of the reason by which the server names it.
        around: a context manager that breaks it, and puts it right.
    """
    run = live(stage)
    before = len(run.faults(site))
    with around(stage, site):
        fault = struck(stage, run, site, told, before)
        went = others_go_on(stage, run, site)
    back = comes_back(stage, run, site, run.asked())
    return f"named in round {fault['round']}: {short(fault['reason'])}; {went}; back in round {back}"


def short(text: str, most: int = 160) -> str:
    """The beginning of a reason."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextmanager
def in_its_place(stage: Stage, name: str, *command: str) -> Iterator[None]:
    """Stop one of the deployment's processes and run another in its place meanwhile, if one is named; then its own again."""
    stage.terminate(name)
    try:
        if command:
            stage.start(name, *command)
        yield
    finally:
        if stage.pid(name):
            stage.terminate(name)
        stage.start_again(name)
