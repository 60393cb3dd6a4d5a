"""Where a claim comes from: a noise multiplier, a stated ε, or a run's folder whose ledger must agree with it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tmca_core.audits.bounds import epsilon_of_mu
from tmca_core.audits.interface import Claim
from tmca_core.config import Config
from tmca_core.errors import AuditInvalid, ConfigError, TmcaError
from tmca_core.privacy.statement import PROMISED
from tmca_core.run import Run

if TYPE_CHECKING:
    from tmca_core.privacy.chain import Entry
    from tmca_core.privacy.ledger import Spent

ASKED = "asked.json"  # by site the rounds that it was asked to train in, as the server writes them down
DEPLOYED = "deployment"  # engine of a run between hospitals
SIMULATED = ("inprocess", "ray")  # engines whose sites keep their ledgers in the run's folder
ENGINES = (*SIMULATED, "centralised", DEPLOYED)
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

    The folder may have been copied from elsewhere: nothing outside of it is read, and its name is no part of the claim.

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
        return Claim(math.inf, config.privacy.delta, accountant="none", source="run.json claims no privacy")
    if not config.privacy.enabled:
        raise AuditInvalid(f"{folder}: run.json states a privacy that config.toml does not turn on: the two are not of one run.")
    _insist_on_statement(folder, privacy)
    stated: Mapping[str, float] = privacy["epsilon"]
    excerpt, unvouched = _vouched(folder, summary, config)
    vouched = f"{len(excerpt)} charges of its ledgers agree" if excerpt else "no ledger is there to agree"
    return Claim(
        max(stated.values()),
        float(privacy["delta"]),
        source=f"run.json, the largest of {len(stated)} sites; {vouched}",
        ledger=tuple(excerpt),
        reservation=_reservation(str(summary.get("engine", "")), unvouched),
    )


def _reservation(engine: str, unvouched: list[str]) -> str:
    parts = [f"stated by run.json, not vouched for by a ledger (of {', '.join(unvouched)})"] if unvouched else []
    parts += ["held against data that no file of the run vouches for"] if engine == DEPLOYED else []
    return " and ".join(parts)


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
    summary = _document(run, "run.json")
    if not summary:
        raise AuditInvalid(f"{run.folder} has no run.json: the run did not finish, so there is no claim to audit. Finish it first.")
    if summary.get("engine") not in ENGINES:
        raise AuditInvalid(f"{run.folder / 'run.json'}: the engine is {summary.get('engine')!r}, and none of {', '.join(ENGINES)}.")
    return summary


def _document(run: Run, name: str) -> dict[str, Any]:
    try:
        found: Any = run.read_json(name)
    except (OSError, ValueError) as error:
        raise AuditInvalid(f"{run.folder / name} cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise AuditInvalid(f"{run.folder / name} is no JSON object, so it is not what a run writes.")
    return found


def _insist_on_statement(folder: Path, privacy: Any) -> None:
    """run.json's `privacy` is as a run writes it.

    Raises:
        AuditInvalid: it lacks something, or a number is none or out of its range.
    """
    wrong = ""
    if not isinstance(privacy, dict):
        wrong = "'privacy' is no object"
    elif absent := [name for name in ("epsilon", "delta", "unit", "relation", "accountant") if name not in privacy]:
        wrong = f"'privacy' has no '{absent[0]}'"
    elif not isinstance(privacy["epsilon"], dict) or not privacy["epsilon"]:
        wrong = "'privacy.epsilon' states no site's ε"
    elif bad := [site for site, value in privacy["epsilon"].items() if not (_is_number(value) and value >= 0)]:
        wrong = f"the ε of site '{bad[0]}' is {privacy['epsilon'][bad[0]]!r}, which is no number from 0 on"
    elif not (_is_number(privacy["delta"]) and 0 < privacy["delta"] < 1):
        wrong = f"δ is {privacy['delta']!r}, which is no number between 0 and 1"
    elif other := [name for name, value in PROMISED.items() if privacy[name] != value]:
        wrong = f"'privacy.{other[0]}' is {privacy[other[0]]!r}, and runs promise '{PROMISED[other[0]]}'"
    if wrong:
        raise AuditInvalid(f"{folder / 'run.json'}: {wrong}, so there is no claim to audit.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _vouched(folder: Path, summary: Mapping[str, Any], config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """Charges of the ledgers in the folder, and sites that have none there: deployed ones keep theirs, simulated ones cannot."""
    privacy, engine, counted = summary["privacy"], summary.get("engine"), _counted(folder, summary)
    ledgers = {unquote(path.parent.name): path.parent for path in sorted((folder / "ledger").glob("*/ledger.jsonl"))}
    missing = sorted(set(privacy["epsilon"]) - set(ledgers))
    if missing and engine in SIMULATED:
        raise AuditInvalid(
            f"site '{missing[0]}' of a simulated run has an ε in run.json and no ledger in {folder / 'ledger'}: nothing says that its "
            "steps were charged. Give the whole folder that the simulation wrote."
        )
    failed, asked = _failed(folder), _document(Run(folder), ASKED)
    if wrong := [site for site, rounds in asked.items() if not isinstance(rounds, list) or not all(isinstance(one, int) for one in rounds)]:
        raise AuditInvalid(f"{folder / ASKED}: what it has of site '{wrong[0]}' is no list of rounds.")
    trained = {site for site, rounds in asked.items() if rounds}
    if not config.federation.cohort:
        trained |= {site for site, patients in counted.items() if patients and asked.get(site) != []}  # [] where its policy refused
    if engine in SIMULATED and (bare := sorted(trained - set(privacy["epsilon"]))):
        raise AuditInvalid(f"site '{bare[0]}' took part in training and has no ε in run.json: what it released is no part of the claim.")
    exact = {} if config.simulation.policies else counted  # which policies round
    excerpt = [
        charge
        for site, ledger in ledgers.items()
        for charge in _check_ledger(ledger, site, privacy, config, asked.get(site, []), failed.get(site, set()), exact.get(site))
    ]
    return excerpt, missing


def _counted(folder: Path, summary: Mapping[str, Any]) -> dict[str, int]:
    """Training patients by site, where run.json lists the sites of a federation."""
    sites = summary.get("sites") or []
    try:
        return {str(site["name"]): int(site["train_patients"]) for site in sites if isinstance(site.get("train_patients"), int)}
    except (TypeError, AttributeError, KeyError):
        raise AuditInvalid(f"{folder / 'run.json'}: 'sites' is no list of named sites, so it is not what a run writes.") from None


def _failed(folder: Path) -> dict[str, set[int]]:
    """Rounds by site in which it was asked and did not answer: run.json counts them, a site that never began has no charge."""
    found: dict[str, set[int]] = {}
    for record in Run(folder).events():
        if not isinstance(record, dict):
            raise AuditInvalid(f"{folder / 'metrics.jsonl'}: a line is no JSON object, so it is not what a run writes.")
        if record.get("event") != "round":
            continue
        round, failed, refused = (record.get(name) for name in ("round", "failed", "refused"))
        if not (isinstance(round, int) and isinstance(failed or {}, dict | list) and isinstance(refused or {}, dict | list)):
            raise AuditInvalid(f"{folder / 'metrics.jsonl'}: a round has no number, or no list of who failed in it: {json.dumps(record)}.")
        for site in {*(failed or ())} - {*(refused or ())}:
            found.setdefault(site, set()).add(round)
    return found


def _check_ledger(
    ledger: Path, site: str, privacy: Mapping[str, Any], config: Config, asked: list[int], failed: set[int], patients: int | None
) -> list[dict[str, Any]]:
    """Charges of one site's ledger for this configuration's training, if together they cost what run.json states.

    Args:
        patients: that train there by run.json, where it says so.
    """
    from tmca_core.privacy.ledger import Ledger

    try:
        spent = Ledger.open(ledger).read()
    except TmcaError as error:
        raise AuditInvalid(f"the ledger of site '{site}' cannot vouch for the run: {error}") from None
    claimed = privacy["epsilon"].get(site)
    if claimed is None:
        raise AuditInvalid(f"site '{site}' has a ledger and no ε in run.json: the ledger does not match the run.")
    charges = [entry for entry in spent.charges if entry.get("config") == config.digest() and entry.get("purpose") == "training"]
    if not charges:
        raise AuditInvalid(f"no charge of site '{site}' is of this run's configuration: the ledger does not match the run.")
    if other := [entry["patients"] for entry in charges if patients and entry.get("patients") not in (None, 0, patients)]:
        raise AuditInvalid(f"site '{site}' trains {patients} patients by run.json, its ledger charged {other[0]}: it is another site's.")
    composed = [_composed(spent, own, float(privacy["delta"])) for own in _readings(charges, asked, failed)]
    if not any(math.isclose(one, claimed, rel_tol=RELATIVE_SLACK) for one in composed):
        more = composed[0] > claimed
        raise AuditInvalid(
            f"site '{site}': run.json claims ε = {claimed:.4f}, and the charges of this configuration on its ledger come to "
            f"{composed[0]:.4f}: "
            + ("more was released than is claimed" if more else "steps were taken without a charge")
            + ", or the ledger is of another run."
        )
    return [
        {"site": site, "entry": entry["n"], "time": entry.get("time", ""), "round": entry.get("round", 0), **_scalars(entry["spend"])}
        for entry in charges
    ]


def _readings(charges: list[Entry], asked: list[int], failed: set[int]) -> Iterator[list[Entry]]:
    """Sets of charges that run.json may mean: all; and as the server knows them, which counts every request. A round is on the ledger once
    where the server was stopped before the site began it, and not at all where the site failed first."""
    yield charges
    charged = Counter(entry.get("round") for entry in charges)
    requests = Counter(asked or failed)
    spared = (count - charged[round] for round, count in requests.items() if charged[round] or round in failed)
    yield charges + [charges[0]] * sum(max(0, more) for more in spared)


def _composed(spent: Spent, charges: list[Entry], delta: float) -> float:
    return replace(spent, entries=charges).epsilon(delta)


def _scalars(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cost.items() if isinstance(value, int | float) and not isinstance(value, bool)}
