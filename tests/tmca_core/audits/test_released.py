"""The weights of a run's folder, whatever its config.toml says of how they came about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.support.tiny_runs import tiny
from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.conduct import sentence
from tmca_core.audits.interface import Evidence
from tmca_core.audits.membership import PLAIN, membership
from tmca_core.audits.rehearsal import Subject, Weights, rehearse, subject_of
from tmca_core.audits.released import attacked
from tmca_core.cases.case import CaseTensors
from tmca_core.run import Checkpoint, Run
from tmca_core.training.centralised import keep_data

CLAIM = of_epsilon(0.3, 1e-5)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("cache")
    return subject_of(None, tiny(folder, phantom__sites=2, phantom__cases=80, data__test_fraction=0.4, data__val_fraction=0.0))


def released(folder: Path, weights: Weights) -> Path:
    run = Run(folder)
    folder.mkdir()
    run.write_json("run.json", {"schema": 1})
    run.save_checkpoint(Checkpoint(1, weights, {}))
    return folder


def test_weights_that_give_patients_away_are_found_and_others_are_not(subject: Subject, tmp_path: Path) -> None:
    folder = released(tmp_path / "run", subject.start)
    trained = {(case.site, case.case_id) for site in subject.sites.values() for case in site.train.cases}
    rng = np.random.default_rng(0)

    def seeing(effect: float) -> Callable[..., np.ndarray]:
        def signals(subject: Subject, weights: Weights, data: CaseTensors) -> np.ndarray:
            inside = np.array([(case.site, case.case_id) in trained for case in data.cases])
            return rng.normal(size=(len(data), 4)) + effect * inside[:, None]

        return signals

    with mock.patch("tmca_core.audits.signals.signals", seeing(20.0)):
        leak = attacked(folder, subject, CLAIM, 0.01)
    with mock.patch("tmca_core.audits.signals.signals", seeing(0.0)):
        still = attacked(folder, subject, CLAIM, 0.01)
    assert leak.flagged and all(bound.name.startswith("released weights") for bound in leak.bounds)
    assert "AUC 1.000" in leak.figures["released weights"]
    assert not still.flagged and still.bounds and "released weights" in still.scope

    run, name = Run(folder), next(iter(subject.start))
    run.save_checkpoint(Checkpoint(2, subject.start | {name: subject.start[name] + 1}, {}))
    run.write_json("run.json", {"schema": 1, "tested_round": 1})  # says who is audited

    def of_the_last_round(subject: Subject, weights: Weights, data: CaseTensors) -> np.ndarray:
        return seeing(20.0 * float((weights[name] - subject.start[name]).mean()))(subject, weights, data)

    with mock.patch("tmca_core.audits.signals.signals", of_the_last_round):
        hidden = attacked(folder, subject, CLAIM, 0.01)
    assert {bound.name.partition(",")[0] for bound in hidden.bounds if bound.exceeds} == {"released weights of the last round"}
    assert sum(1 - bound.confidence for bound in hidden.bounds) == pytest.approx(0.01 * 0.9)  # the rest is the negative control's


def test_patients_who_differ_before_training_prove_nothing(subject: Subject, tmp_path: Path) -> None:
    folder = released(tmp_path / "run", subject.start)
    darker = {name: replace(site, test=replace(site.test, images=site.test.images // 2)) for name, site in subject.sites.items()}
    nobody = {name: replace(site, test=site.test.subset([])) for name, site in subject.sites.items()}
    for sites, says in ((darker, "mean of the film"), (nobody, "no site has held-out"), ({}, "no site has held-out")):
        found = attacked(folder, replace(subject, sites=sites), CLAIM, 0.01)
        assert not found.bounds and not found.scope and not found.flagged
        assert "NOT ATTACKED" in found.figures["released weights"] and says in found.figures["released weights"]


def test_losses_tied_where_guesses_end_reassure_nobody(subject: Subject, tmp_path: Path) -> None:
    folder = released(tmp_path / "run", subject.start)
    trained = {(case.site, case.case_id) for site in subject.sites.values() for case in site.train.cases}
    rng = np.random.default_rng(0)

    def coarse(effect: int) -> Callable[..., np.ndarray]:
        def signals(subject: Subject, weights: Weights, data: CaseTensors) -> np.ndarray:
            inside = np.array([(case.site, case.case_id) in trained for case in data.cases])
            patients = {case.patient_id: float(rng.integers(3)) for case in data.cases}
            values = np.array([patients[case.patient_id] for case in data.cases]) + effect * inside
            return np.repeat(values[:, None], 4, axis=1)

        return signals

    with mock.patch("tmca_core.audits.signals.signals", coarse(0)):
        still = attacked(folder, subject, CLAIM, 0.01)
    assert not still.bounds and not still.scope and "NOT ATTACKED" in still.figures["released weights"]
    assert "tied where guesses end" in still.figures["released weights"]
    with mock.patch("tmca_core.audits.signals.signals", coarse(20)):
        assert attacked(folder, subject, CLAIM, 0.01).flagged


def test_an_audit_of_membership_attacks_what_the_runs_folder_released(tmp_path: Path) -> None:
    config = tiny(tmp_path / "c", phantom__sites=2, phantom__cases=90, data__test_fraction=0.4, training__steps=1, federation__rounds=1)
    run = Run.create(tmp_path / "run", config)
    first = subject_of(None, config)
    keep_data(run, first.sites)
    run.write_json("run.json", {"schema": 1, "engine": "inprocess", "tested_round": 1, "privacy": None})
    run.save_checkpoint(Checkpoint(1, first.start, {}))
    audit = membership(run=run.folder, references=3, epsilon=1.0)
    found = audit.measure("target")
    assert [bound.name.startswith("released weights") for bound in found.bounds] == [False, False, True, True]
    assert sum(1 - bound.confidence for bound in found.bounds) == pytest.approx(0.05 * 0.9)  # the rest is the negative control's
    assert "released weights of the last round" not in found.figures
    said = sentence("PASS", ("found 0",), audit, found)
    assert "training made again" in said and "released weights by a threshold" in said
    assert "released weights themselves not being attacked" in sentence("PASS", ("found 0",), audit, Evidence())


@pytest.mark.slow
def test_a_run_without_the_noise_that_its_configuration_names_is_found(subject: Subject, tmp_path: Path) -> None:
    by_heart = {"training.steps": 150, "training.learning_rate": 0.003, "training.schedule": "constant", "training.batch_size": 8}
    *_, last = rehearse(subject.with_values(PLAIN | by_heart), {name: site.train for name, site in subject.sites.items()})
    assert attacked(released(tmp_path / "run", last.released), subject, CLAIM, 0.01).flagged
    assert not attacked(released(tmp_path / "start", subject.start), subject, CLAIM, 0.01).flagged
