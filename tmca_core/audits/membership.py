"""Membership: does the model, or what the server sees of its training, tell who was trained on?

All trainings are made again from the configuration, in each every patient of the training split by a coin of its own: one is attacked,
the others are the attacker's references, of which members are known to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tmca_core.audits.guesses import CONTROL, bounds, guesses_for, undecided
from tmca_core.audits.interface import AUDITS, Arm, Audit, Claim, Evidence
from tmca_core.audits.scores import FEWEST, Numbers, Scores, dealt_anew
from tmca_core.audits.subjects import REMADE, Beta, ConfigFile, Held, RunFolder, Settings, fair_coins, held_out, key, prepared
from tmca_core.errors import AuditInvalid, ConfigError

if TYPE_CHECKING:
    from tmca_core.audits.attacks import Coins
    from tmca_core.audits.rehearsal import Subject
    from tmca_core.cases.case import CaseTensors

QUESTION = "Can somebody who has the trained model, or watches its training as the server does, tell whether a patient took part?"
THREAT = (
    "The attacker holds the films, masks and reports of all candidates, knows network, settings and first weights, has trained {models} "
    "such models on patients of its own choosing, and sees the released model{updates}. Each candidate took part by a fair coin."
)
RELEASED, WATCHED = "released model", "federation"
RELEASED_SHARE = 0.2  # of the error probability, for the weights in a run's folder
ROUNDS = 4  # of a federation that are looked at, evenly over its length
PLAIN = {
    "privacy.enabled": False, "training.weight_decay": 0.0, "augmentation.flip": 0.0, "augmentation.rotate": 0.0, "augmentation.scale": 0.0,
    "augmentation.shift": 0.0, "augmentation.gain": 0.0, "augmentation.noise": 0.0, "augmentation.no_report": 0.0,
}  # fmt: skip
"""What the positive control changes in a private configuration: no noise, and nothing that keeps a network from learning by heart."""


@AUDITS.register("membership")
def membership(
    run: RunFolder = None,
    config: ConfigFile = None,
    references: Annotated[int, typer.Option(min=3, help="Reference models, trained as the one attacked.")] = 8,
    epsilon: Held = 0.0,
    beta: Beta = 0.05,
    assignments: Settings = None,
) -> Audit:
    """Train again with patients dealt by coins, and attack by loss, Dice, pixels and reports, with thresholds, LiRA and RMIA."""
    if references < 3:
        raise ConfigError(f"--references {references}: three at least, so that most patients are in one and out of another.")
    subject, claim = prepared(run, config, assignments, epsilon, beta)
    pool = {site: data.train for site, data in subject.sites.items()}
    patients = sorted({key(site, case.patient_id) for site, data in pool.items() for case in data.cases})
    if len(patients) < 2 * FEWEST:
        raise AuditInvalid(f"{len(patients)} training patients are too few for an audit of membership: {2 * FEWEST} are needed at least.")
    own = beta * (1 - RELEASED_SHARE) if run else beta
    guesses = guesses_for(len(patients), claim, own)
    target = cache(lambda: observe(subject, pool, patients, references + 1))

    def measure(arm: Arm) -> Evidence:
        if arm == "negative":
            scores = dealt_anew(target().best()[1])
            return Evidence(bounds(scores, guesses, claim, CONTROL * beta, limit=0.0), scores=scores)
        private = bool(subject.mechanisms)
        trained = observe(subject.with_values(PLAIN), pool, patients, references + 1) if private and arm == "positive" else target()
        found = evidence(trained, claim, guesses, own, limit=0.0 if arm == "positive" and math.isinf(claim.epsilon) else None)
        if run and arm == "target":
            from tmca_core.audits.released import attacked

            more = attacked(run, subject, claim, RELEASED_SHARE * beta)
            found = replace(found, bounds=found.bounds + more.bounds, figures={**more.figures, **found.figures}, scope=more.scope)
        if arm == "target" and found.scores and not found.flagged:
            found = replace(found, invalid=undecided(found.scores, guesses))
        return found

    updates = "" if subject.hidden else ", and every round's model of every single site"
    return Audit(
        "membership",
        QUESTION,
        THREAT.format(models=references, updates=updates),
        claim,
        beta,
        {
            **subject.identity,
            "patients": len(patients),
            "reference_models": references,
            "guesses": guesses,
            "membership": "independent fair coins of the operating system",
            "attack": "the one with the largest mean AUC when every reference model is attacked with the help of the others",
            "positive_control": "the same trainings without noise and augmentation" if subject.mechanisms else "the target, which has none",
            "negative_control": "the target's scores, membership dealt anew",
            "released_weights": "threshold on the loss, training against test patients, thinned by coins" if run else "there are none",
            "share_of_error_released_weights": RELEASED_SHARE if run else 0.0,
            "share_of_error_negative_control": CONTROL,
        },
        measure,
        scope=REMADE if run else "",
    )


@dataclass(frozen=True)
class Trained:
    """Models with known members; the first is attacked.

    Legend: M models, N cases, S signals, P patients, O observations: the released model, then rounds as the server sees them.

    Attributes:
        seen: (M, O, N, S).
        coins: (M, N), True where a case was trained on.
        patient: (N,) index of each case's patient.
        names: P patients.
        signals: S names.
    """

    seen: Numbers
    coins: Coins
    patient: np.ndarray[Any, np.dtype[np.int64]]
    names: list[str]
    signals: tuple[str, ...]

    def attacked(self, target: int, others: list[int]) -> dict[str, Numbers]:
        """Scores (N,) of one model's cases by attack."""
        from tmca_core.audits.attacks import by_attack

        found: dict[str, Numbers] = {}
        for observer, part in ((RELEASED, slice(0, 1)), (WATCHED, slice(1, None))):
            if self.seen[:, part].shape[1]:
                scores = by_attack(self.seen[:, part], self.coins, target, others, self.signals)
                found |= {f"{observer}: {name}": value for name, value in scores.items()}
        return found

    def by_case(self, values: Numbers, target: int) -> Scores:
        """One record a case; intervals by patient."""
        inside = self.coins[target]
        names = np.array(self.names)[self.patient]
        return Scores(values[inside], values[~inside], names[inside].tolist(), names[~inside].tolist())

    def by_patient(self, values: Numbers, target: int) -> Scores:
        """One record a patient, the mean of its cases."""
        counts = np.bincount(self.patient)
        mean = np.bincount(self.patient, values) / counts
        inside = np.bincount(self.patient, self.coins[target]) > 0
        return Scores(mean[inside], mean[~inside])

    def best(self) -> tuple[str, Scores]:
        """The attack that does best on the references, on the target: nothing of the target's coins went into the choice."""
        references = list(range(1, len(self.seen)))
        areas: dict[str, float] = {}
        for pretended in references:
            for name, values in self.attacked(pretended, [m for m in references if m != pretended]).items():
                areas[name] = areas.get(name, 0.0) + self.by_patient(values, pretended).auc
        chosen = max(areas, key=lambda name: areas[name])
        return chosen, self.by_patient(self.attacked(0, references)[chosen], 0).insist()


def observe(subject: Subject, pool: dict[str, CaseTensors], patients: list[str], models: int) -> Trained:
    """Train `models` times, each time with patients dealt by coins, and look at every case of `pool` in each."""
    from tmca_core.audits.rehearsal import rehearse
    from tmca_core.audits.signals import signal_names, watched
    from tmca_core.training.centralised import concatenate

    everyone = concatenate([pool[site] for site in sorted(pool)])
    place = {name: i for i, name in enumerate(patients)}
    patient = np.array([place[key(case.site, case.patient_id)] for case in everyone.cases])
    rounds = subject.rounds
    kept = {round(rounds * (k + 1) / ROUNDS) for k in range(ROUNDS)} - {0} if subject.arm == "federation" else set()
    seen, coins = [], fair_coins(models, len(patients))
    for inside in coins:
        members = held_out(pool, lambda name, inside=inside: not inside[place[name]])  # type: ignore[misc]
        rows = []
        for sight in rehearse(subject, members):
            if sight.round in kept:
                rows.append(watched(subject, sight.released, sight.sites, everyone))
        rows.insert(0, watched(subject, sight.released, {}, everyone))
        seen.append(np.stack(rows))
    stacked = np.stack(seen)
    if not np.isfinite(stacked).all():
        raise AuditInvalid("a model gives scores that are not finite: its training diverged, so there is nothing to attack.")
    return Trained(stacked, coins[:, patient], patient, patients, signal_names(subject))


def evidence(trained: Trained, claim: Claim, guesses: int, beta: float, *, limit: float | None = None) -> Evidence:
    """Bounds from the best attack, against the claim or a `limit` in its place, and what every attack finds, by patient and by case."""
    chosen, scores = trained.best()
    figures: dict[str, Any] = {"attack": chosen}
    every = trained.attacked(0, list(range(1, len(trained.seen))))
    for name, values in every.items():
        people, cases = trained.by_patient(values, 0), trained.by_case(values, 0)
        figures[name] = _told(people, "patients") + "; " + _told(cases, "cases")
    figures["largest AUC of all attacks, patients"] = max(trained.by_patient(values, 0).auc for values in every.values())
    return Evidence(bounds(scores, guesses, claim, beta, limit=limit), scores=scores, figures=figures)


def _told(scores: Scores, unit: str) -> str:
    low, high = scores.auc_interval()
    rate = scores.rate_at(0.01)
    rare = "too few for a rate at 1 %" if rate is None else f"true-positive rate at 1 % {rate:.3f}"
    return f"{unit} AUC {scores.auc:.3f} ({low:.3f} to {high:.3f}), {rare}"
