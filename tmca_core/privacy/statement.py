"""run.json's `privacy`: what is said of a private run, in a federation by the server and otherwise by whoever trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmca_core.config import Config
from tmca_core.privacy.accounting import NoisySteps, epsilon, epsilons
from tmca_core.privacy.mechanism import Mechanism

PROMISED = {"unit": "patient", "relation": "add/remove", "accountant": "PLD"}
"""What every site's ε is of: that, and nothing else, is what training charges to ledgers."""
POINTS = 12
"""Places of ε over the rounds: each costs some 30 ms."""


def spent_in(rounds: Sequence[int], mechanism: Mechanism, config: Config, patients: int | None, *, curve: bool = True) -> dict[str, Any]:
    """What one site has spent on each of its patients in this run.

    Args:
        rounds: that it was released in, at least one; a round that was done again is there twice.
        mechanism: of every round.
        config: for δ.
        patients: that trained; None: their number is kept by the site.
        curve: with `history`: [round, ε after it] at up to `POINTS` places.
    """
    delta = config.privacy.delta

    def taken(turns: int) -> list[NoisySteps]:
        return [NoisySteps(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps * turns)]

    spent = epsilons(taken(len(rounds)), delta)
    shown = sorted({*range(0, len(rounds), -(-len(rounds) // POINTS)), len(rounds) - 1}) if curve else []
    return {
        "epsilon": spent.pld,
        "prv": spent.prv,
        "rdp": spent.rdp,
        "replace_one": spent.replace_one,
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "steps": mechanism.steps * len(rounds),
        "patients": patients,
        "history": [[rounds[k], epsilon(taken(k + 1), delta, coarse=True)] for k in shown],
    }


def statement(config: Config, sites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole entry.

    Args:
        config: of the run.
        sites: `spent_in` by site.
    """

    def largest(key: str) -> Any:
        return max((values[key] for values in sites.values()), default=None)

    return {
        **PROMISED,
        "delta": config.privacy.delta,
        "epsilon": {name: values["epsilon"] for name, values in sites.items()},
        "noise_multiplier": min((values["noise_multiplier"] for values in sites.values()), default=None),
        "clip": config.privacy.clip,
        "sample_rate": largest("sample_rate"),
        "steps": largest("steps"),
        "target": config.privacy.target_epsilon or None,
        "sites": dict(sites),
        "not covered": "the scores of evaluations, and counts of cases and patients, where a site's policy lets them out",
    }
