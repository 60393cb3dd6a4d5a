"""What training costs in privacy, and what a hospital has spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmca_core.cli import emit
from tmca_core.errors import ConfigError, LedgerError

if TYPE_CHECKING:
    from tmca_core.config import Config
    from tmca_core.privacy.ledger import Ledger
    from tmca_core.privacy.planning import Plan

app = typer.Typer(help="What training costs in privacy, and what a hospital has spent.", no_args_is_help=True, add_completion=False)
ledger_app = typer.Typer(help="The hospital's privacy ledger.", no_args_is_help=True, add_completion=False)
app.add_typer(ledger_app, name="ledger")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
LedgerPath = Annotated[Path, typer.Argument(metavar="PATH", help="The ledger's folder, or its ledger.jsonl.")]
Witness = Annotated[Path | None, typer.Option(help="Folder of the ledger's head, where it is not beside the ledger.")]


@app.command()
def plan(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="Of a federation: every hospital's plan.")] = None,
    rate: Annotated[float, typer.Option(help="q, a patient's probability of taking part in a step.")] = 0.0,
    noise: Annotated[float | None, typer.Option(help="σ, standard deviation of the noise over the clipping norm.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="T, steps of the whole run.")] = 0,
    delta: Annotated[float | None, typer.Option(help="δ; below one over the number of patients.  [default: 1e-5]")] = None,
    target_epsilon: Annotated[float | None, typer.Option(help="Find the least noise that keeps ε within this.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="A hospital's ledger: what is spent is composed.")] = None,
    witness: Witness = None,
    patients: Annotated[int | None, typer.Option(min=1, help="Training patients: says whether the noise drowns the signal.")] = None,
    parameters: Annotated[int | None, typer.Option(min=1, help="Trained numbers; else those of the configured network.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="The manifest, with CONFIG.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The hospital's site.toml: which number of patients q follows from.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="A setting, with CONFIG.")] = None,
    as_json: AsJson = False,
) -> None:
    """The ε of a noise, or the noise for an ε, by three accountants and both neighbouring relations, before any training."""
    from tmca_core.config import Config, load
    from tmca_core.privacy.planning import make_plan, trained_numbers

    for name, value in (("--noise", noise), ("--target-epsilon", target_epsilon)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} {value:g}: without noise there is no finite ε, and no ε of 0. Give a finite number above 0.")
    opened = _opened(ledger, witness) if ledger else None
    if config or manifest:
        values = [*(assignments or []), *([f"data.manifest={manifest}"] if manifest else [])]
        given = {"noise_multiplier": noise, "target_epsilon": target_epsilon, "delta": delta, "sample_rate": rate or None}
        if noise is not None or target_epsilon is not None:  # one of them said here stands in for both of the file's
            given |= {"noise_multiplier": noise or 0.0, "target_epsilon": target_epsilon or 0.0}
        values += [f"privacy.{key}={value}" for key, value in given.items() if value is not None]
        _plan_sites(load(config, values), opened, steps, patients, parameters, policy, as_json)
        return
    if policy:
        raise ConfigError("--policy goes with a CONFIG: without one --rate says what q is.")
    if not (0 < rate <= 1 and steps):
        raise ConfigError("give --rate (above 0, at most 1) and --steps, or a CONFIG to take them from.")
    result = make_plan(
        rate,
        steps,
        1e-5 if delta is None else delta,
        noise=noise or 0.0,
        target=target_epsilon or 0.0,
        before=opened.read().compositions() if opened else ((),),
        patients=patients,
        parameters=lambda: parameters or trained_numbers(Config()),
    )
    emit(as_json, result.to_json(), _told(result))


def _plan_sites(
    config: Config, ledger: Ledger | None, steps: int, patients: int | None, parameters: int | None, policy: Path | None, as_json: bool
) -> None:
    from functools import cache

    from tmca_core.privacy.planning import make_plan, schedule, trained_numbers, training_patients
    from tmca_core.privacy.policy import load_policy

    rules = load_policy(policy) if policy else None
    if rules and not rules.metrics.case_counts and not config.privacy.sample_rate:
        raise ConfigError(
            f"{policy} lets no count of patients out (metrics.case_counts), so no rate can follow from it: set privacy.sample_rate, "
            "or the site refuses the run."
        )
    count = cache(lambda: parameters or trained_numbers(config))
    sites: Mapping[str, Sequence[str]] = {"": []} if patients else training_patients(config)
    spent = ledger.read() if ledger else None
    plans: dict[str, Plan] = {}
    for site, ids in sites.items():
        number = patients or len(ids)
        public = rules.count_out(number) if rules else None  # as at the site's door
        rate, each = schedule(config, number if public is None else max(1, public))
        whom = ledger.hashes(ids) if ledger and ids else None
        plans[site] = make_plan(
            rate,
            steps or each * config.federation.rounds,
            config.privacy.delta,
            noise=config.privacy.noise_multiplier,
            target=config.privacy.target_epsilon,
            before=spent.compositions(whom) if spent else ((),),
            patients=number,
            parameters=count,
        )
    if patients:
        emit(as_json, plans[""].to_json(), _told(plans[""]))
        return
    total = len({patient for ids in sites.values() for patient in ids})
    value = {"sites": {site: one.to_json() for site, one in plans.items()}, "relation": "add/remove", "training_patients": total}
    emit(as_json, value, "\n\n".join(f"{site}\n{_told(one)}" for site, one in plans.items()))


@app.command()
def policy(path: Annotated[Path, typer.Argument(metavar="SITE.TOML", help="The hospital's policy.")], as_json: AsJson = False) -> None:
    """What a policy says, whether its ledger is sound, and the sha256 of the installed code, for app.allowed."""
    import tmca_core
    from tmca_core.digests import source_digest
    from tmca_core.privacy.policy import load_policy, open_ledger

    rules = load_policy(path)
    spent = open_ledger(rules).read()
    code, found = source_digest(Path(tmca_core.__file__).parents[1]), spent.epsilon(rules.privacy.delta)
    approved = code in rules.app.allowed if rules.app.allowed else None
    value = {
        **rules.model_dump(mode="json"),
        "spent": found if math.isfinite(found) else None,
        "plain_updates": spent.plain,
        "state": spent.state,
        "code": code,
        "approved": approved,
    }
    told = {None: "any code may run", True: "it may run", False: "it is not in app.allowed, so it may not run"}[approved]
    lines = [f"{section}.{key} = {setting}" for section, part in rules.model_dump().items() for key, setting in part.items()]
    budget = f"{rules.privacy.epsilon:g} at δ = {rules.privacy.delta:g}"
    lines.append(f"spent on the worst-off patient, of {budget}: {spent.told(rules.privacy.delta)}")
    lines.append(f"installed code: {code}; {told}")
    emit(as_json, value, "\n".join(lines))


@ledger_app.command()
def init(path: LedgerPath, witness: Witness = None, as_json: AsJson = False) -> None:
    """Make a ledger: once for a patient population, before anything is released about it."""
    from tmca_core.privacy.ledger import Ledger

    made = Ledger.create(path, witness)
    place = {"ledger": str(made.chain.folder), "witness": str(made.chain.witness)}
    emit(as_json, place, f"{place['ledger']}: a new ledger; its head is in {place['witness']}. Keep both, and keep their backups apart.")


@ledger_app.command()
def show(
    path: LedgerPath,
    delta: Annotated[float, typer.Option(help="δ at which ε is stated.")] = 1e-5,
    witness: Witness = None,
    as_json: AsJson = False,
) -> None:
    """What has been spent on the worst-off patient, by all accountants, and how it grew."""
    from tmca_core.privacy.ledger import summary

    found = summary(_opened(path, witness).read(), delta)
    emit(as_json, found, _summary_told(found))


@ledger_app.command()
def verify(path: LedgerPath, witness: Witness = None, as_json: AsJson = False) -> None:
    """Check every byte: exit code 0 intact; 2 interrupted in a write (nothing is lost; the next charge mends it), damaged or missing."""
    try:
        spent = _opened(path, witness).read()
    except LedgerError as error:
        missing = not (path.parent if path.is_file() else path).exists()
        emit(as_json, {"state": "missing" if missing else "damaged", "entries": 0, "reason": str(error)}, str(error))
        raise typer.Exit(2) from None
    broken = spent.state == "interrupted"
    reason = f"entry {len(spent.entries) - 1} was declared and not written whole; it counts as spent, and the next charge completes it"
    text = f"{path}: {spent.state}, {len(spent.entries)} entries" + (f": {reason}." if broken else ".")
    emit(as_json, {"state": spent.state, "entries": len(spent.entries), "reason": reason if broken else ""}, text)
    if broken:
        raise typer.Exit(2)


def _opened(path: Path, witness: Path | None) -> Ledger:
    from tmca_core.privacy.ledger import Ledger

    return Ledger.open(path, witness)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _told(plan: Plan) -> str:
    found = plan.epsilon
    lines = [
        f"noise multiplier σ = {plan.noise_multiplier:g}, rate q = {plan.rate:g}, {plan.steps} steps, δ = {plan.delta:g}, unit: patient",
        f"ε (add/remove)   PLD {_number(found.pld)}   PRV {_number(found.prv)}   RDP {_number(found.rdp)}",
        f"ε (replace-one)  PLD {_number(found.replace_one)}",
    ]
    if plan.spent:
        lines.append(f"of it spent before: {plan.spent:.4f}")
    if signal := plan.signal:
        lines.append(
            f"{plan.patients} patients: the noise is {signal.step:.3g} of the clipped signal a step along one direction, {signal.run:.3g} "
            f"over the run, and {signal.length:.2f} of it in length over {signal.parameters} trained numbers: {signal.verdict}."
        )
        lines.append(_advice(plan.patients or 0, signal.verdict, signal.patients_needed, signal.patients_useful))
    return "\n".join(lines)


def _advice(patients: int, verdict: str, needed: int, useful: int) -> str:
    from tmca_core.privacy.planning import USEFUL_EPSILON

    if verdict == "workable":
        return "Enough patients for this noise."
    if patients < useful:
        return (
            f"Too few patients for any useful ε: even ε = {USEFUL_EPSILON:g} takes some {useful} with this many trained numbers, and "
            f"{needed} are needed for this noise. Freeze more of the network, or do without DP-SGD."
        )
    return f"Some {needed} patients are needed for this noise; with fewer, train fewer numbers or take a larger ε."


def _summary_told(found: Mapping[str, Any]) -> str:
    values = found["epsilon"]
    lines = [
        f"{found['state']}: {found['entries']} entries, {found['charges']} charges of {len(found['runs'])} runs "
        f"on {len(found['cohorts'])} cohorts",
        f"ε (add/remove) of the worst-off patient at δ = {found['delta']:g}: PLD {_number(values['pld'])}   "
        f"PRV {_number(values['prv'])}   RDP {_number(values['rdp'])}; replace-one PLD {_number(found['replace_one'])}",
        "events: " + ", ".join(f"{kind} {number}" for kind, number in found["events"].items()),
    ]
    if found["plain_updates"]:
        lines.append(
            f"plain updates that have left: {found['plain_updates']}; no ε holds for their patients. The noised releases alone: PLD "
            f"{_number(found['noised_alone']['pld'])}, as below"
        )
    if found["plain_figures"]:
        lines.append(f"plain figures released under the policy, which no ε covers: {found['plain_figures']}")
    lines += [f"  entry {p['entry']}  {p['time']}  run {p['run'] or '–'}  ε {_number(p['epsilon'])}" for p in found["history"]]
    return "\n".join(lines)
