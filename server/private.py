"""What the server can say about a private run: from the settings, which are public, and the counts that sites announce."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tmca_core.config import Config
from tmca_core.messages import Hello
from tmca_core.training.batches import steps_a_round

CURVES = 24
"""Sites whose ε is told round by round."""


def local_steps(hello: Hello, config: Config) -> int:
    """Optimiser steps of a round at a site. One that keeps its counts takes part only where steps do not follow from them."""
    if not config.privacy.enabled:
        return steps_a_round(hello.train_cases or 1, config)
    from tmca_core.privacy.planning import schedule

    return schedule(config, hello.train_patients or 1)[1]


def private_summary(config: Config, sites: Iterable[Mapping[str, Any]], history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """run.json's `privacy`: what each site has spent in this run if every turn it was asked for was released; None where it is off.

    A turn that the site's policy refused released nothing. Rounds that were done again after a crash cost more than is seen here; a
    site's ledger has them all.
    """
    if not config.privacy.enabled:
        return None
    from tmca_core.privacy.planning import mechanism_of
    from tmca_core.privacy.statement import spent_in, statement

    described: dict[str, dict[str, Any]] = {}
    for site in sites:
        asked = [
            record["round"]
            for record in history
            if site["name"] in {*record["completed"], *record["failed"], *record.get("surplus", ())} - {*record.get("refused", ())}
        ]
        if site["train_patients"] == 0 or not asked:
            continue
        # Of a site that keeps its number of patients, noise, rate and steps do not follow from it.
        mechanism = mechanism_of(config, site["train_patients"] or 1)
        described[site["name"]] = spent_in(asked, mechanism, config, site["train_patients"], curve=len(described) < CURVES)
    return statement(config, described)
