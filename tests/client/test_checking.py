"""A hospital's answer to the data check: what its policy lets out, rounded; what stays, by name; what it costs where it is noised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hospital import Hospital, private, reason, rewrite

from tmca_core.cases.figures import COUNTS, figures_of
from tmca_core.config import Config
from tmca_core.messages import KEPT, METRICS, REFUSED, SETTINGS, WITHHELD
from tmca_core.privacy.accounting import NoisySteps, epsilon

FIGURES = figures_of(("lesion",))
EVERY = 'allowed = ["dice_image", "loss"]', 'allowed = ["dice_image", "loss", "data.*"]'


def change(hospital: Hospital, *pairs: tuple[str, str]) -> None:
    path = hospital.folder / "site.toml"
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def told(reply: Any) -> tuple[dict[str, float], list[str]]:
    assert not reply.has_error(), reply.error.reason
    settings = reply.content.config_records[SETTINGS]
    assert bool(settings.get(WITHHELD)) == bool(settings.get(KEPT))
    return dict(reply.content.metric_records[METRICS]), list(settings.get(KEPT, []))


def check(hospital: Hospital, config: Config, **options: Any) -> tuple[dict[str, float], list[str]]:
    return told(hospital.answer(config, "query.check", **options))


def test_a_policy_that_names_none_of_its_figures_keeps_all(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    values, kept = check(hospital, private())
    assert values == {} and kept == [*COUNTS, *FIGURES]
    assert hospital.kinds() == ["agreed"]  # no figure left


def test_what_is_allowed_leaves_rounded_and_is_noted(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    change(hospital, ('"loss"]', '"loss", "data.intensity_mean", "data.sides_patient"]'))
    values, kept = check(hospital, private())
    assert values.keys() == {"data.intensity_mean", "data.sides_patient"}
    assert {*kept} == {*COUNTS, *FIGURES} - values.keys()
    assert all(round(value / 0.05, 6).is_integer() for value in values.values())  # round_to
    (entry,) = [entry for entry in hospital.ledger.read().entries if entry["kind"] == "figures"]
    assert entry["names"] == sorted(values) and entry["purpose"] == "data check"


def test_figures_over_too_few_patients_stay(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path, min_cases=25)  # there are 24
    change(hospital, EVERY)
    assert check(hospital, private())[0] == {}
    change(hospital, ("min_cases = 25", "min_cases = 24"))
    values, kept = check(hospital, private())
    assert "data.intensity_mean" in values and {"data.sides_patient", "data.sides_image"} <= {*kept}  # not every report has one side
    change(hospital, ("min_cases = 24", "min_cases = 2\ncase_counts = true"))
    values, kept = check(hospital, private())
    assert (values["data.patients"], values["data.cases"], values["data.skipped"]) == (20, 20, 0) and kept == []
    assert values["data.sides_patient"] == 1 and values["data.prevalence"] > 0.8 and values["data.language_en"] > 0.8


def test_noised_figures_are_charged_before_they_leave_and_end_with_the_budget(tmp_path: Path) -> None:
    one = epsilon([NoisySteps(4.0, 1.0, 1)], 1e-5)
    hospital = Hospital.make(tmp_path, epsilon=one * 1.2)
    change(hospital, EVERY, ("round_to = 0.05", "round_to = 0.01\ncheck_noise = 4.0"))
    values, _ = check(hospital, private())
    spent = hospital.ledger.read()
    (charge,) = spent.charges
    assert charge["purpose"] == "data check" and charge["patients"] == 24
    assert spent.epsilon(1e-5) == pytest.approx(one, rel=1e-6)
    assert all(0 <= value <= 1 for name, value in values.items() if name in FIGURES)
    reply = hospital.answer(private(), "query.check")
    assert reply.error.code == REFUSED and reason(reply).startswith("BudgetExhausted: this hospital's policy refuses.")
    assert len(hospital.ledger.read().charges) == 1


def test_the_check_is_no_part_of_the_runs_own_account(tmp_path: Path) -> None:
    """The self-test before a run's first private round is not skipped because its data were checked."""
    hospital = Hospital.make(tmp_path)
    change(hospital, EVERY, ("round_to = 0.05", "round_to = 0.05\ncheck_noise = 8.0"))
    check(hospital, private())
    assert not hospital.train(private()).has_error()
    assert [entry["run"] for entry in hospital.ledger.read().charges] == ["check-0f", "0f"]


def test_noise_hides_what_rounding_would_show(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path, epsilon=1e4)
    change(hospital, EVERY, ("round_to = 0.05", "round_to = 0.01\ncheck_noise = 1.0"))
    seen = {check(hospital, private(), fresh=False)[0].get("data.intensity_mean") for _ in range(4)}
    assert len(seen) > 1


def test_cases_may_be_put_right_after_a_check_and_not_after_a_round(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    change(hospital, EVERY)
    before, _ = check(hospital, private())
    rewrite(hospital.manifest, lambda k, row: {**row, "report": row["report"] + " There is no effusion."})
    after, _ = check(hospital, private())
    assert after["data.report_words"] >= before["data.report_words"]
    assert not hospital.train(private()).has_error()
    rewrite(hospital.manifest, lambda k, row: {**row, "report": "Normal."})
    assert "are not those that this run began with" in reason(hospital.train(private(), round=2))


def test_a_request_against_the_policy_is_refused_before_a_case_is_read(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    change(hospital, EVERY)
    reply = hospital.answer(private(privacy__noise_multiplier=0.5), "query.check")
    assert reply.error.code == REFUSED and "privacy.min_noise_multiplier" in reason(reply) and not hospital.decoded()


def test_without_a_policy_rounding_and_a_smallest_number_hold_all_the_same(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    node = {key: value for key, value in hospital.node.items() if key != "policy"}
    plain = private(privacy__enabled=False)
    values, kept = check(hospital, plain, node=node)
    assert (values["data.patients"], values["data.cases"]) == (24, 24) and kept == []
    assert all(round(value * 100, 6).is_integer() for value in values.values())
    rewrite(hospital.manifest, lambda k, row: {**row, "report": row["report"] if k < 4 else "Normal heart."})
    _, kept = check(hospital, plain, node=node)
    assert "data.sides_patient" in kept  # of four patients at most
