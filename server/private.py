"""What the server can say about a private run: from the settings, which are public, the counts that sites announce, and what it asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tmca_core.config import Config
from tmca_core.messages import Hello
from tmca_core.run import Run
from tmca_core.training.batches import steps_a_round

FILE = "asked.json"
CURVES = 24
"""Sites whose ε is told round by round."""


def local_steps(hello: Hello, config: Config) -> int:
    """Optimiser steps of a round at a site. One that keeps its counts takes part only where steps do not follow from them."""
    if not config.privacy.enabled:
        return steps_a_round(hello.train_cases or 1, config)
    from tmca_core.privacy.planning import schedule

    return schedule(config, hello.train_patients or 1)[1]


def asked_for(run: Run, config: Config) -> dict[str, list[int]]:
    """By site the rounds of a private run that it was asked to train in and did not refuse; one that was done again is there twice.

    Raises:
        LedgerError: the file is damaged, or missing though rounds were done.
    """
    if not config.privacy.enabled:
        return {}
    return run.read_spent(FILE, lambda noted: len({round for rounds in noted.values() for round in rounds}))


def note_asked(run: Run, config: Config, round: int, sites: Iterable[str]) -> None:
    """Write down who is asked to train before anybody is: neither a crash nor a round that fails makes a release undone.

    Raises:
        LedgerError: who was asked before is not known any more.
        StorageError: it cannot be written; nobody may be asked.
    """
    before = asked_for(run, config)
    run.write_json(FILE, before | {site: [*before.get(site, []), round] for site in sites})


def note_refusal(run: Run, config: Config, site: str) -> None:
    """Take the last request to a site back, which its policy refused: nothing was released."""
    before = asked_for(run, config)
    run.write_json(FILE, before | {site: before[site][:-1]})


def private_summary(config: Config, sites: Iterable[Mapping[str, Any]], asked: Mapping[str, list[int]]) -> dict[str, Any] | None:
    """run.json's `privacy`: what each site has spent in this run if every turn it was asked for was released; None where it is off.

    Args:
        asked: see `asked_for`.
    """
    if not config.privacy.enabled:
        return None
    from tmca_core.privacy.planning import mechanism_of
    from tmca_core.privacy.statement import spent_in, statement

    described: dict[str, dict[str, Any]] = {}
    for site in sites:
        rounds = asked.get(site["name"], [])
        if site["train_patients"] == 0 or not rounds:
            continue
        # Of a site that keeps its number of patients, noise, rate and steps do not follow from it.
        mechanism = mechanism_of(config, site["train_patients"] or 1)
        described[site["name"]] = spent_in(rounds, mechanism, config, site["train_patients"], curve=len(described) < CURVES)
    return statement(config, described)
