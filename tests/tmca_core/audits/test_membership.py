"""Who took part: from scores that are made up, and from trainings that learn by heart."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.support.tiny_runs import tiny
from tmca_core.audits import attribute
from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.conduct import conduct
from tmca_core.audits.membership import PLAIN, Trained, evidence, membership, observe
from tmca_core.audits.rehearsal import subject_of
from tmca_core.audits.scores import Scores, area, dealt_anew
from tmca_core.audits.subjects import key
from tmca_core.cli import main
from tmca_core.errors import AuditInvalid, ConfigError

LEARNT_BY_HEART = [
    "data.image_size=32", "data.val_fraction=0", "data.test_fraction=0.05", "phantom.sites=2", "phantom.cases=40", "network.width=16",
    "network.heads=2", "training.epochs=10", "training.batch_size=8", "training.learning_rate=0.003", "training.schedule=constant",
    "federation.rounds=3", *(f"{name}={value}" for name, value in PLAIN.items()),
]  # fmt: skip


def trained(effect: float, seed: int, models: int = 9, patients: int = 120) -> Trained:
    """Two cases a patient; the second signal of the released model, and nothing else, rises in those who took part."""
    rng = np.random.default_rng(seed)
    coins = rng.random((models, patients)) < 0.5
    patient = np.repeat(np.arange(patients), 2)
    seen = rng.normal(size=(models, 3, 2 * patients, 2))
    seen[:, 0, :, 1] += effect * coins[:, patient]
    return Trained(seen, coins[:, patient], patient, [f"p{i}" for i in range(patients)], ("loss", "Dice"))


def test_the_attack_is_chosen_on_the_references_and_leaks_are_bounded() -> None:
    leaky = trained(3.0, 0)
    chosen, scores = leaky.best()
    assert chosen.startswith("released model: Dice") and scores.auc > 0.95
    found = evidence(leaky, of_epsilon(0.5, 1e-5), 40, 0.05)
    assert found.flagged and found.figures["attack"] == chosen
    assert "patients AUC" in found.figures["federation: loss, LiRA"] and "cases AUC" in found.figures["federation: loss, LiRA"]


def test_the_choice_does_not_look_at_the_targets_coins() -> None:
    leaky = trained(3.0, 1)
    other = Trained(leaky.seen, np.concatenate([~leaky.coins[:1], leaky.coins[1:]]), leaky.patient, leaky.names, leaky.signals)
    assert leaky.best()[0] == other.best()[0]


def test_where_there_is_nothing_nothing_is_found() -> None:
    areas = [trained(0.0, seed).best()[1] for seed in range(2, 6)]
    assert all(abs(scores.auc - 0.5) < 0.2 for scores in areas)
    assert not any(evidence(trained(0.0, seed), of_epsilon(0.3, 1e-5), 40, 0.05).flagged for seed in range(2, 6))


def test_intervals_of_a_leak_dealt_anew_hold_a_half_as_often_as_they_say() -> None:
    scores = trained(3.0, 0).best()[1]
    assert scores.auc_interval(0.999)[0] > 0.5
    intervals = [dealt_anew(scores).auc_interval() for _ in range(40)]
    assert sum(low <= 0.5 <= high for low, high in intervals) >= 32  # 38 expected; fewer than 32 once in some thousands


def test_a_patient_is_the_mean_of_its_cases() -> None:
    one = trained(0.0, 0, patients=12)
    values = np.arange(24.0)
    people = one.by_patient(values, 0)
    assert sorted([*people.members, *people.others]) == [2 * i + 0.5 for i in range(12)]
    cases = one.by_case(values, 0)
    assert len(cases.members) == 2 * len(people.members) and len(set(cases.member_groups or ())) == len(people.members)


def test_every_model_is_trained_on_its_own_members_and_seen_at_every_case(tmp_path: Path) -> None:
    subject = subject_of(None, tiny(tmp_path, phantom__sites=2, federation__rounds=1, training__steps=1))
    pool = {name: site.train for name, site in subject.sites.items()}
    names = sorted({key(site, case.patient_id) for site, data in pool.items() for case in data.cases})
    found = observe(subject, pool, names, 2)
    cases = sum(map(len, pool.values()))
    assert found.seen.shape == (2, 2, cases, 4) and found.coins.shape == (2, cases)
    assert (found.seen[0] != found.seen[1]).any()
    for index in range(len(names)):
        assert len(set(found.coins[0, found.patient == index])) == 1  # a patient's cases stay together


def test_scores_tied_where_guesses_end_may_refute_and_never_reassure() -> None:
    settings = ["phantom.sites=1", "phantom.cases=120", "data.image_size=32", "network.width=16", "network.heads=2"]
    rng = np.random.default_rng(0)
    for effect, tied in ((0.0, True), (9.0, False)):
        scores = Scores(rng.integers(3, size=60) + effect, rng.integers(3, size=60) + 0.0)
        with (
            mock.patch("tmca_core.audits.membership.observe", return_value=trained(effect, 0)),
            mock.patch.object(Trained, "best", return_value=("an attack of few values", scores)),
        ):
            audit = membership(references=8, assignments=settings, epsilon=0.5)
            found = audit.measure("target")
            assert not audit.measure("positive").invalid
        assert found.flagged != tied and bool(found.invalid) == tied
        assert not tied or "tied where guesses end" in found.invalid[0]


def test_too_little_to_go_by_is_said(tmp_path: Path) -> None:
    with pytest.raises(AuditInvalid, match="too few"):
        membership(assignments=["phantom.sites=1", "phantom.cases=12", "data.image_size=32", "network.width=16", "network.heads=2"])
    with pytest.raises(ConfigError, match="three at least"):
        membership(references=2)


def test_kinds_of_hospitals_are_told_from_what_differs_and_from_nothing_else() -> None:
    rng = np.random.default_rng(0)
    kinds, features = rng.random(82) < 0.5, rng.normal(size=(82, 60))
    seen, asked = attribute.one_after_another(features, kinds)
    assert (asked == kinds[20:]).all() and abs(area(seen[asked], seen[~asked]) - 0.5) < 0.3
    features[:, 7] += 3 * kinds
    features[:, 9] -= 3 * kinds
    seen, asked = attribute.one_after_another(features, kinds)
    found = attribute.bounded("scanner", Scores(seen[asked], seen[~asked]), 0.6, 0.015)
    assert area(seen[asked], seen[~asked]) > 0.9 and found.exceeds and found.value < area(seen[asked], seen[~asked])
    assert (attribute.one_after_another(features[:50], kinds[:50])[0] != seen[:38]).any()  # another first part was left out
    later = attribute.one_after_another(np.concatenate([features[:81], 0 * features[:1]]), kinds)[0]
    assert (later[:-1] == seen[:-1]).all()  # nothing is learnt from what comes after


def test_a_bound_on_telling_hospitals_apart_by_hand() -> None:
    right = Scores(np.full(10, 1.0), np.full(10, -1.0))
    assert attribute.bounded("scanner", right, 0.6, 0.015).value == pytest.approx(0.015 ** (1 / 20))  # all of 20 right
    wrong = attribute.bounded("scanner", Scores(right.others, right.members), 0.6, 0.015)
    assert wrong.value == 0.0 and wrong.attainable == pytest.approx(0.015 ** (1 / 20))


def test_updates_that_know_nothing_of_a_hospital_are_flagged_no_more_often_than_stated() -> None:
    rng, share = np.random.default_rng(0), attribute.CONTROL
    target = negative = 0
    for _ in range(300):
        parts = [attribute.one_after_another(rng.normal(size=(40, 64)), rng.random(40) < 0.5) for _ in range(3)]
        scores = [Scores(seen[asked], seen[~asked]) for seen, asked in parts]
        target += any(attribute.bounded("", one, 0.5, (1 - share) * 0.05 / 3).exceeds for one in scores)
        negative += any(attribute.bounded("", dealt_anew(one), 0.5, share * 0.05 / 3).exceeds for one in scores)
    assert target <= 22 and negative <= 7  # 13.5 and 1.5 allowed on average; more by chance once in a hundred, if there were no grain


@pytest.mark.parametrize("rates", ((0.6, 0.6), (0.9, 0.3), (0.5, 0.9)))
def test_a_tolerated_auc_that_is_the_true_one_is_refuted_no_more_often_than_stated(rates: tuple[float, float]) -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(2000):
        kinds = rng.random(30) < 0.5
        seen = np.where(rng.random(30) < np.where(kinds, rates[0], 1 - rates[1]), 1.0, -1.0)
        found += attribute.bounded("", Scores(seen[kinds], seen[~kinds]), sum(rates) / 2, 0.05).exceeds
    assert found <= 130  # 100 allowed; three standard deviations


def test_where_no_update_is_seen_attribute_is_invalid_and_decides_over_nobody(tmp_path: Path) -> None:
    report = conduct(attribute.attribute(assignments=["federation.secure=true", *LEARNT_BY_HEART[:7]]), tmp_path)
    assert report.verdict == "INVALID" and "secure aggregation" in report.sentence
    assert report.audit and report.audit.informs_only
    assert not attribute.attribute(assignments=LEARNT_BY_HEART[:7], most=0.6).informs_only


@pytest.mark.slow
def test_a_federation_that_learns_by_heart_gives_its_patients_away(tmp_path: Path) -> None:
    report = conduct(membership(references=4, assignments=LEARNT_BY_HEART), tmp_path)
    value = report.to_json()
    assert report.verdict == "NO POWER" and "no clearance" in report.sentence  # nothing is promised
    assert value["figures"]["largest AUC of all attacks, patients"] >= 0.8 and value["scores"]["auc"] > 0.75
    assert value["controls"]["positive"]["flagged"] and not value["controls"]["negative"]["flagged"]
    control = report.evidence["negative"].scores
    assert control is not None
    low, high = control.auc_interval(0.999)  # one deal: the 95 % interval would miss once in twenty
    assert low <= 0.5 <= high


@pytest.mark.slow
def test_what_a_hospital_is_like_is_told_from_its_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["audit", "attribute", "--shadows", "20", "--steps", "3", "--most", "0.6", "--out", str(tmp_path), "--json"]
    with pytest.raises(SystemExit) as stop:
        main([*order, *(part for setting in LEARNT_BY_HEART for part in ("--set", setting))])
    value = json.loads(capsys.readouterr().out)
    assert stop.value.code == 4 and value["verdict"] == "FAIL" and value["claim"]["unit"] == "hospital"
    assert [bound["claim"] for bound in value["bounds"]] == [0.6] * 3 and value["figures"]["AUC of prevalence"] > 0.8
    assert not value["controls"]["negative"]["flagged"]
