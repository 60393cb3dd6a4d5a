"""Where a claim comes from: a noise multiplier, a stated ε, or a run's folder whose ledger must agree with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tmca_core.audits.bounds import epsilon_of_mu
from tmca_core.audits.interface import Claim
from tmca_core.config import Config
from tmca_core.errors import AuditInvalid, ConfigError, LedgerError, TmcaError
from tmca_core.run import Run

RELATIVE_SLACK = 1e-3  # between ε as run.json states it and as its ledger composes it: grids of one accountant differ by less


def of_one_step(noise_multiplier: float, delta: float, unit: str = "patient") -> Claim:
    """What one step of noise multiplier σ promises when everybody is drawn: exactly 1/σ-GDP."""
    mu = 1 / noise_multiplier
    return Claim(
        epsilon_of_mu(mu, delta), delta, unit, accountant="exact (Gaussian mechanism)", source=f"σ = {noise_multiplier:g}", exact_mu=mu
    )


def of_epsilon(epsilon: float, delta: float, unit: str = "patient", relation: str = "add/remove", source: str = "stated") -> Claim:
    """A claim as somebody states it; ε = ∞ for none.

    Raises:
        ConfigError: ε or δ is out of its range.
    """
    if not (epsilon >= 0 and 0 < delta < 1):
        raise ConfigError(f"a claim of ε = {epsilon:g} at δ = {delta:g}: ε is at least 0, δ lies between 0 and 1.")
    return Claim(epsilon, delta, unit, relation, accountant="as stated", source=source)


def of_run(folder: Path) -> Claim:
    """What a run's run.json claims, checked against config.toml and against the ledgers in the folder.

    The folder may have been copied from elsewhere: nothing outside of it is read.

    Raises:
        AuditInvalid: it is not a finished run, or its parts do not agree.
    """
    config = config_of(folder)
    run = Run(folder)
    summary = _read(run)
    privacy = summary.get("privacy")
    if not privacy:
        if config.privacy.enabled:
            raise AuditInvalid(f"{folder}: config.toml turns privacy on and run.json states none: the two are not of one run.")
        return Claim(math.inf, config.privacy.delta, accountant="none", source=f"{folder.name}/run.json claims no privacy")
    if not config.privacy.enabled:
        raise AuditInvalid(f"{folder}: run.json states a privacy that config.toml does not turn on: the two are not of one run.")
    stated: Mapping[str, float] = privacy["epsilon"]
    if not stated:
        raise AuditInvalid(f"{folder}: run.json states no site's ε, so there is no claim to audit.")
    excerpt = []
    for ledger in sorted((folder / "ledger").glob("*/ledger.jsonl")):
        excerpt += _check_ledger(ledger.parent, unquote(ledger.parent.name), privacy, config)
    return Claim(
        max(stated.values()),
        float(privacy["delta"]),
        str(privacy["unit"]),
        str(privacy["relation"]),
        str(privacy["accountant"]),
        f"{folder.name}/run.json, the largest of {len(stated)} sites; {len(excerpt)} charges of its ledgers agree",
        tuple(excerpt),
    )


def config_of(folder: Path) -> Config:
    """The resolved configuration of a run's folder.

    Raises:
        AuditInvalid: there is none that can be read.
    """
    if not (folder / "config.toml").is_file():
        raise AuditInvalid(f"{folder} is no run: it has no config.toml. Give the folder that training wrote.")
    try:
        return Run(folder).config()
    except ConfigError as error:
        raise AuditInvalid(f"the configuration of {folder} cannot be read: {error}") from None


def _read(run: Run) -> dict[str, Any]:
    try:
        summary = run.read_json("run.json")
    except ValueError as error:
        raise AuditInvalid(f"{run.folder / 'run.json'} cannot be read ({error}).") from None
    if not summary:
        raise AuditInvalid(f"{run.folder} has no run.json: the run did not finish, so there is no claim to audit. Finish it first.")
    return summary


def _check_ledger(folder: Path, site: str, privacy: Mapping[str, Any], config: Config) -> list[dict[str, Any]]:
    """Charges of one site's ledger, if they are of this configuration and cost no less than run.json states."""
    from tmca_core.privacy.ledger import Ledger

    try:
        spent = Ledger.open(folder).read()
        charges = [entry for entry in spent.charges if entry["config"] == config.digest()]
        composed = spent.epsilon(float(privacy["delta"]))
    except (LedgerError, KeyError) as error:
        raise AuditInvalid(f"the ledger of site '{site}' cannot vouch for the run: {error}") from None
    except TmcaError as error:
        raise AuditInvalid(f"the ledger of site '{site}': {error}") from None
    claimed = privacy["epsilon"].get(site)
    if claimed is None:
        raise AuditInvalid(f"site '{site}' has a ledger and no ε in run.json: the ledger does not match the run.")
    if not charges:
        raise AuditInvalid(f"no charge of site '{site}' is of this run's configuration: the ledger does not match the run.")
    if composed < claimed * (1 - RELATIVE_SLACK):
        raise AuditInvalid(
            f"site '{site}': run.json claims ε = {claimed:.4f}, its ledger was charged {composed:.4f} only: steps were taken without a "
            "charge, or the ledger is of another run."
        )
    spend = [json.loads(json.dumps(entry["spend"])) for entry in charges]
    return [
        {"site": site, "entry": entry["n"], "time": entry.get("time", ""), "round": entry["round"], **_scalars(cost)}
        for entry, cost in zip(charges, spend, strict=True)
    ]


def _scalars(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cost.items() if isinstance(value, int | float) and not isinstance(value, bool)}
