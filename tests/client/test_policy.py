"""A hospital's policy at the client's public door: what it refuses before a case is read, and what it pays."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from flwr.common.constant import ErrorCode
from hospital import Hospital, plain, private, reason, rewrite
from reachable import make_reachable

from tmca_core.messages import ARRAYS, METRICS, REFUSED, SETTINGS, WITHHELD
from tmca_core.privacy import chain
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.wire import tensors_of

# --- what is let in ---------------------------------------------------------------------------------
REFUSALS = [
    ({"privacy__noise_multiplier": 0.5}, "privacy.min_noise_multiplier; bound: at least 0.8"),
    ({"privacy__noise_multiplier": 0.0, "privacy__target_epsilon": 30.0}, "privacy.min_noise_multiplier; bound: at least 0.8"),
    ({"privacy__clip": 11.0}, "privacy.max_clip; bound: at most 10, above 0"),
    ({"privacy__sample_rate": 0.6}, "privacy.max_sample_rate; bound: at most 0.5, above 0"),
    ({"privacy__sample_rate": 0.0}, "metrics.case_counts; bound: false: federation.weighting must be uniform, and of a private run"),
    ({"federation__weighting": "cases"}, "metrics.case_counts; bound: false: federation.weighting must be uniform"),
    ({"training__steps": 100_000}, "privacy.max_steps; bound: at most 100000, above 0"),
    ({"privacy__delta": 1e-4}, "privacy.delta; bound: at most 1e-05, above 0"),
    ({"privacy__target_epsilon": 60.0}, "privacy.epsilon; bound: at most 50 over all runs"),
    ({"network__allow_download": True}, "app.downloads; bound: false"),
    ({"privacy__enabled": False}, "privacy.required; bound: true: privacy.enabled must be set"),
]


@pytest.mark.parametrize(("settings", "rule"), REFUSALS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_what_is_against_the_policy_is_refused_before_a_case_is_read(
    hospital: Hospital, settings: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.workspace.hold_reports", lambda *given: pytest.fail("a report was read"))
    config = private(**settings)
    for kind, round in (("train", 1), ("evaluate", 0)):
        reply = hospital.answer(config, kind, round=round, split="val")
        assert reason(reply).startswith(f"PolicyRefusal: this hospital's policy refuses. Rule: {rule}")
        assert reply.error.code == REFUSED != ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    hello = hospital.hello(config)
    assert hello.site == "ghent" and rule in hello.refusal and hello.frozen == hello.network == "" and hello.train_cases is None
    assert not hospital.decoded() and hospital.kinds() == []


@pytest.mark.parametrize("change", [{"privacy.noise_multiplier": 0.0}, {"privacy.noise_multiplier": float("nan")}, {"privacy.delta": 1.0}])
def test_a_run_without_noise_or_with_figures_that_are_none_is_no_run(hospital: Hospital, change: dict[str, float]) -> None:
    """As it comes over Flower: σ = 0 without a target has no finite ε, whatever a server says of it."""
    reply = hospital.answer(private(), "train", sent={**private().flat(), **change}, round=1)
    assert reason(reply) == "ConfigError: details are in the site's own log"
    assert not hospital.decoded() and hospital.kinds() == []


def test_a_metric_that_a_run_depends_on_has_to_be_allowed(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    policy = (tmp_path / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(policy.replace('"dice_image", ', ""))
    for needed in ({"federation__patience": 3}, {"federation__select": "best"}, {"federation__contribution_every": 1}):
        assert "Rule: metrics.allowed; bound: loss." in hospital.hello(private(**needed)).refusal
    assert hospital.hello(private()).refusal == ""


def test_other_code_than_the_hospital_has_approved_does_not_run(tmp_path: Path) -> None:
    from client.workspace import code_digest

    hospital = Hospital.make(tmp_path, more='[app]\nallowed = ["cafe"]')
    assert reason(hospital.train(private())) == "PolicyRefusal: this hospital's policy refuses. Rule: app.allowed; bound: 1 other hashes."
    (tmp_path / "site.toml").write_text((tmp_path / "site.toml").read_text().replace("cafe", code_digest()))
    assert not hospital.train(private()).has_error()


def test_numbers_of_patients_stay_in_the_hospital_when_they_are_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hospital = Hospital.make(tmp_path, cases=12)
    text = (tmp_path / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(text.replace("min_patients = 5", "min_patients = 11"))
    assert reason(hospital.train(private())) == "PolicyRefusal: this hospital's policy refuses. Rule: privacy.min_patients; bound: 11."
    assert "asked: 8 training patients" in caplog.text
    assert not hospital.decoded()
    # δ of one over the patients, or more
    (tmp_path / "site.toml").write_text(text.replace("[privacy]", "[privacy]\ndelta = 0.2"))
    said = reason(hospital.train(private(privacy__delta=0.15)))
    assert said == "PolicyRefusal: this hospital's policy refuses. Rule: privacy.delta; bound: δ = 0.2 must be below one over their number."


def test_a_patient_without_a_mask_does_not_count(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path, cases=12)
    (tmp_path / "site.toml").write_text((tmp_path / "site.toml").read_text().replace("min_patients = 5", "min_patients = 8"))
    assert not hospital.train(private()).has_error()
    rewrite(hospital.manifest, lambda k, row: {**row, "mask": "" if k < 3 else row["mask"]})
    shutil.rmtree(tmp_path / "cache")
    assert "Rule: privacy.min_patients; bound: 8." in reason(hospital.train(private(), run="1f"))
    assert not hospital.decoded()


def test_a_record_with_pixels_that_are_no_numbers_does_not_count_and_is_not_trained_on(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path, cases=12)
    assert not hospital.train(private()).has_error()

    def as_nifti(k: int, row: dict[str, str]) -> dict[str, str]:
        film = np.random.default_rng(k).normal(0.5, 0.1, (32, 32, 1)).astype(np.float32)
        film[3, 3] = np.nan if k < 3 else 0.5
        nibabel.save(nibabel.Nifti1Image(film, np.eye(4)), hospital.manifest.parent / f"{k}.nii.gz")
        return {**row, "image": f"{k}.nii.gz"}

    rewrite(hospital.manifest, as_nifti)
    unmeasured = private(data__laterality="patient", data__trust_laterality=True)
    reply = hospital.train(unmeasured, run="1f")
    assert not reply.has_error()
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(reply.content[ARRAYS]).values())
    before, after = (entry["patients"] for entry in hospital.ledger.read().charges)
    assert (before, after) == (8, 5)
    text = (tmp_path / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(text.replace("min_patients = 5", "min_patients = 8"))
    said = reason(hospital.train(unmeasured, run="2f"))
    assert said.endswith("Rule: privacy.min_patients; bound: 8.")  # by the table there are eight, and only reading tells
    assert len(hospital.ledger.read().charges) == 2


def test_without_a_policy_only_plain_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hospital = Hospital.make(tmp_path)
    node = {key: value for key, value in hospital.node.items() if key != "policy"}
    reply = hospital.train(private(), node=node)
    assert reply.error.code == REFUSED and "names no policy" in reason(reply) and "policy=" in reason(reply)
    assert "names no policy" in hospital.hello(private(), node=node).refusal
    assert not hospital.decoded()
    reply = hospital.train(plain(), node=node)
    assert set(reply.content[METRICS]) == {"loss", "steps", "cases", "seconds"} and WITHHELD not in reply.content[SETTINGS]
    assert hospital.hello(plain(), node=node).train_cases == 16
    assert "this site has no policy" in caplog.text and hospital.kinds() == []


@pytest.mark.parametrize("text", ["[privacy]\nepsilonn = 3", None])
def test_a_policy_that_cannot_be_read_lets_nothing_in(hospital: Hospital, text: str | None) -> None:
    path = hospital.folder / "site.toml"
    path.unlink() if text is None else path.write_text(text)
    assert reason(hospital.train(plain())) == "ConfigError: details are in the site's own log"
    assert not hospital.decoded()


# --- the terms of a run -----------------------------------------------------------------------------
def test_a_server_that_changes_the_noise_at_round_7_is_refused(hospital: Hospital) -> None:
    for round in (1, 2):
        assert not hospital.train(private(), round, fresh=round == 1).has_error()
    assert hospital.kinds() == ["agreed", "charge", "charge"]
    said = reason(hospital.train(private(privacy__noise_multiplier=0.9), 7))
    rule, _, bound = said.partition("; bound: ")
    assert rule.endswith("Rule: the terms that this run began with") and bound == "noise_multiplier = 1.0."
    assert "sample_rate = 0.3" in reason(hospital.train(private(privacy__sample_rate=0.4), 7))
    assert hospital.kinds() == ["agreed", "charge", "charge"]
    assert not hospital.train(private(), 7).has_error()
    assert not hospital.train(private(privacy__noise_multiplier=0.9), run="ab").has_error()  # a run of its own


# --- what is paid -----------------------------------------------------------------------------------
def test_every_turn_is_on_the_ledger_before_it_leaves_and_says_nothing_else(hospital: Hospital) -> None:
    reply = hospital.train(private())
    (charge,) = hospital.ledger.read().charges
    assert charge["spend"] == {"noise_multiplier": 1.0, "sample_rate": 0.3, "steps": 2}
    assert charge["budget"] == {"epsilon": 50.0, "delta": 1e-5} and charge["patients"] == 16
    assert dict(reply.content[METRICS]) == {"steps": 2} and dict(reply.content[SETTINGS]) == {"round": 1, "weight": 1}
    assert not hospital.train(private()).has_error()  # again, as after a crash of the server
    assert hospital.kinds() == ["agreed", "charge", "restart", "charge"]
    assert hospital.ledger.read().epsilon(1e-5) == epsilon([NoisySteps(1.0, 0.3, 4)], 1e-5)


@pytest.mark.slow
def test_the_budget_holds_over_all_runs_and_a_target_over_one(tmp_path: Path) -> None:
    step = NoisySteps(1.0, 0.3, 2)
    one, two, three = (epsilon([step] * n, 1e-5) for n in (1, 2, 3))
    hospital = Hospital.make(tmp_path, epsilon=(two + three) / 2)
    aiming = private(privacy__target_epsilon=(one + two) / 2)
    assert not hospital.train(aiming, run="aa").has_error()
    said = reason(hospital.train(aiming, 2, run="aa"))
    assert said.startswith("BudgetExhausted: this hospital's policy refuses. Rule: privacy.target_epsilon of the run; bound: ε = ")
    assert not hospital.train(aiming, run="bb").has_error()  # what others have spent is not of this run's target
    said = reason(hospital.train(aiming, run="cc"))
    assert said.startswith("BudgetExhausted: this hospital's policy refuses. Rule: budget of every patient; bound: ε = ")
    assert f"{two:.2f}" not in said and len(hospital.ledger.read().charges) == 2  # what is spent is nobody's business


@pytest.mark.slow
def test_of_two_processes_at_once_one_gets_the_last_of_the_budget(tmp_path: Path) -> None:
    step = NoisySteps(1.0, 0.3, 2)
    hospital = Hospital.make(tmp_path, epsilon=(epsilon([step], 1e-5) + epsilon([step] * 2, 1e-5)) / 2)
    assert hospital.hello(private()).refusal == ""  # the cases are decoded now
    children = [in_child(lambda run=run: hospital.train(private(), run=run)) for run in ("aa", "bb")]  # type: ignore[misc]
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [0, 3]
    assert len(hospital.ledger.read().charges) == 1


def in_child(work: Callable[[], Any]) -> int:
    """A forked process whose exit code is 0 for a good reply, 3 for a refusal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            reply = work()
            code = 0 if not reply.has_error() else 3 if reply.error.code == REFUSED else 1
        finally:
            os._exit(code)
    return child


def changed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"steps":2', b'"steps":1'))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: (folder / "ledger.jsonl").write_bytes(b"".join((folder / "ledger.jsonl").open("rb").readlines()[:2])),
    "edited": lambda folder: changed(folder / "ledger.jsonl"),
    "missing": lambda folder: (folder / "ledger.jsonl").unlink(),
    "all missing": lambda folder: shutil.rmtree(folder),
    "a cohort missing": lambda folder: shutil.rmtree(folder / "cohorts"),
}


def test_nothing_is_trained_or_told_over_a_damaged_ledger(hospital: Hospital) -> None:
    for round in (1, 2):
        assert not hospital.train(private(), round, fresh=round == 1).has_error()
    ledger, whole = hospital.folder / "ledger", hospital.folder / "whole"
    shutil.copytree(ledger, whole)
    for damage in DAMAGE.values():
        damage(ledger)
        for reply in (hospital.train(private(), 3), hospital.evaluate(private(), 2)):
            assert reply.error.code == REFUSED
            assert reason(reply) == "LedgerError: details are in the site's own log"
        assert hospital.hello(private()).refusal == "LedgerError: details are in the site's own log"
        shutil.rmtree(ledger, ignore_errors=True)
        shutil.copytree(whole, ledger)
    assert not hospital.evaluate(private(), 2).has_error()  # once it is put back as it was


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only_refuses_and_is_recovered_from(hospital: Hospital) -> None:
    assert not hospital.train(private()).has_error()
    spent = hospital.ledger.read().epsilon(1e-5)
    size = (hospital.folder / "ledger" / "ledger.jsonl").stat().st_size

    def with_little_room() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
        return hospital.train(private(), 2)

    def as_nobody() -> Any:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return hospital.train(private(), 2)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(with_little_room), 0)[1]) == 3
    torn = hospital.ledger.read()
    assert torn.state == "interrupted" and torn.epsilon(1e-5) > spent  # it counts, though nothing left
    for path in [hospital.folder, *hospital.folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (hospital.folder / "ledger").rglob("*"):
        os.chown(path, 65534, 65534) if os.getuid() == 0 else None
    (hospital.folder / "ledger" / "site.key").chmod(0o400)
    make_reachable(hospital.folder.parent)
    assert os.waitstatus_to_exitcode(os.waitpid(in_child(as_nobody), 0)[1]) == 3
    for path in [hospital.folder, *hospital.folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (hospital.folder / "ledger" / "site.key").chmod(0o600)
    assert not hospital.train(private(), 2).has_error()
    assert hospital.kinds() == ["agreed", "charge", "charge", "recovered", "restart", "charge"]


def test_a_clock_set_back_costs_nothing_and_forgets_nothing(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hospital.train(private()).has_error()

    class Past(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(1999, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(chain, "datetime", Past)
    assert not hospital.train(private(), 2).has_error()
    spent = hospital.ledger.read()
    assert spent.charges[-1]["clock"] == "set back"
    assert spent.epsilon(1e-5) == epsilon([NoisySteps(1.0, 0.3, 4)], 1e-5)
