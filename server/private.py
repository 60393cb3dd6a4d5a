"""What the server can say about a private run: from the settings, which are public, and the counts that sites announce."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tmca_core.config import Config
from tmca_core.messages import Hello
from tmca_core.training.batches import steps_a_round


def local_steps(hello: Hello, config: Config) -> int:
    """Optimiser steps of a round at a site."""
    if not config.privacy.enabled:
        return steps_a_round(hello.train_cases, config)
    from tmca_core.privacy.planning import schedule

    return schedule(config, hello.train_patients)[1]


def private_summary(config: Config, sites: Iterable[Mapping[str, Any]], history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """run.json's `privacy`: what each site has spent in this run if every turn it was asked for was released; None where it is off.

    Rounds that were done again after a crash cost more than is seen here; a site's ledger has them all.
    """
    if not config.privacy.enabled:
        return None
    from tmca_core.privacy.accounting import NoisySteps, epsilons
    from tmca_core.privacy.planning import mechanism_of

    described: dict[str, dict[str, Any]] = {}
    for site in sites:
        turns = sum(site["name"] in {*record["completed"], *record["failed"], *record.get("surplus", ())} for record in history)
        if not site["train_patients"] or not turns:
            continue
        mechanism = mechanism_of(config, site["train_patients"])
        spent = epsilons([NoisySteps(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps * turns)], config.privacy.delta)
        described[site["name"]] = {
            "epsilon": spent.pld,
            "prv": spent.prv,
            "rdp": spent.rdp,
            "replace_one": spent.replace_one,
            "noise_multiplier": mechanism.noise_multiplier,
            "sample_rate": mechanism.sample_rate,
            "steps": mechanism.steps * turns,
            "patients": site["train_patients"],
        }

    def largest(key: str) -> Any:
        return max((values[key] for values in described.values()), default=None)

    return {
        "unit": "patient",
        "relation": "add/remove",
        "delta": config.privacy.delta,
        "epsilon": {name: values["epsilon"] for name, values in described.items()},
        "accountant": "PLD",
        "noise_multiplier": min((values["noise_multiplier"] for values in described.values()), default=None),
        "clip": config.privacy.clip,
        "sample_rate": largest("sample_rate"),
        "steps": largest("steps"),
        "sites": described,
        "not covered": "the scores of evaluations, and counts of cases and patients",
    }
