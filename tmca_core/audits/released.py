"""The weights that a run released, as its folder has them: does their loss tell the run's training patients from its test patients?

Everything else is measured on training made again from the configuration; whoever trained otherwise than the configuration says, with
less noise or none, is found here or not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tmca_core.audits.guesses import bounds, guesses_for, undecided
from tmca_core.audits.interface import Claim, Evidence
from tmca_core.audits.scores import Numbers, Scores
from tmca_core.audits.shift import insist_alike
from tmca_core.audits.subjects import REMADE_AND_RELEASED
from tmca_core.errors import AuditInvalid
from tmca_core.run import Checkpoint, Run

if TYPE_CHECKING:
    from tmca_core.audits.rehearsal import Subject
    from tmca_core.cases.case import CaseTensors

NAME = "released weights"
COVARIATES = ("cases", "mean of the film", "share of target", "words of the report")


def attacked(run: Path, subject: Subject, claim: Claim, beta: float) -> Evidence:
    """Bounds from a threshold on the loss of the released weights, where training and test patients are alike; else the reason why not.

    Attacked are those that the run tested and those of its last round, each at its part of β where they are not the same: run.json says
    which were tested, and its makers wrote it. Losses that are tied where guesses end may refute the claim; otherwise nothing was attacked.

    Membership was dealt by the run's split, not by the auditor's coins. Patients are thinned by coins until at every site either kind is
    as likely, and their covariates must not tell them apart.
    """
    found = Run(run)
    last, tested = found.last_checkpoint(), found.read_json("run.json").get("tested_round")
    assert last is not None  # `subject_of` insists on one, and on the tested one
    both = {NAME: last if tested is None else found.checkpoint(tested)}
    if tested not in (None, last.round):
        both[f"{NAME} of the last round"] = last
    parts = [_attacked(name, one, subject, claim, beta / len(both)) for name, one in both.items()]
    return Evidence(
        tuple(bound for part in parts for bound in part.bounds),
        figures={name: told for part in parts for name, told in part.figures.items()},
        scope=next((part.scope for part in parts if part.scope), ""),
    )


def _attacked(name: str, checkpoint: Checkpoint, subject: Subject, claim: Claim, beta: float) -> Evidence:
    try:
        scores = told_apart(checkpoint, subject)
    except AuditInvalid as error:
        return Evidence(figures={name: f"NOT ATTACKED: {error}"})
    canaries = len(scores.members) + len(scores.others)
    guesses = guesses_for(canaries, claim, beta)
    found = bounds(scores, guesses, claim, beta)
    if not any(one.exceeds for one in found) and (tied := undecided(scores, guesses)):
        return Evidence(figures={name: f"NOT ATTACKED: {'; '.join(tied)}."})
    low, high = scores.auc_interval()
    told = f"{len(scores.members)} training and {len(scores.others)} test patients, loss, AUC {scores.auc:.3f} ({low:.3f} to {high:.3f})"
    return Evidence(tuple(replace(one, name=f"{name}, {one.name}") for one in found), figures={name: told}, scope=REMADE_AND_RELEASED)


def told_apart(checkpoint: Checkpoint, subject: Subject) -> Scores:
    """−log loss by patient under the released weights, less the site's median.

    Raises:
        AuditInvalid: too few patients of either kind, or they differ by more than training.
    """
    from tmca_core.audits.signals import signals

    weights = subject.start | checkpoint.weights
    rng = np.random.default_rng(secrets.randbits(128))
    values: tuple[list[Numbers], list[Numbers]] = ([], [])
    about: tuple[list[Numbers], list[Numbers]] = ([], [])
    for site in subject.sites.values():
        trained = {case.patient_id for case in site.train.cases}
        parts = site.train, site.test.subset([i for i, case in enumerate(site.test.cases) if case.patient_id not in trained])
        if not all(map(len, parts)):
            continue
        made = [_by_patient(part, signals(subject, weights, part)[:, :1]) for part in parts]
        fewest, centre = min(map(len, made)), np.median(np.concatenate([rows[:, 0] for rows in made]))
        for kind, rows in enumerate(made):
            kept = rows[rng.random(len(rows)) < fewest / len(rows)]
            values[kind].append(kept[:, 0] - centre)
            about[kind].append(kept[:, 1:])
    if not values[0]:
        raise AuditInvalid("no site has held-out test patients to compare with.")
    scores = Scores(np.concatenate(values[0]), np.concatenate(values[1])).insist()
    insist_alike(np.concatenate(about[0]), np.concatenate(about[1]), COVARIATES)
    return scores


def _by_patient(data: CaseTensors, signal: Numbers) -> Numbers:
    """(P, 1 + covariates) of the patients of `data`: the mean signal, and what was there before any training."""
    rows = np.column_stack(
        [
            signal,
            data.images.flatten(1).float().mean(1).numpy(),
            data.masks.flatten(1).float().mean(1).numpy(),
            [len(case.text.split()) for case in data.cases],
        ]
    )
    names: Sequence[Any] = [case.patient_id for case in data.cases]
    _, patient = np.unique(names, return_inverse=True)
    counts = np.bincount(patient)
    means = [np.bincount(patient, column) / counts for column in rows.T]
    return np.column_stack([means[0], counts, *means[1:]])
