"""A hospital's policy at the client's public door: what it lets out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hospital import Hospital, plain, private, reason

import client.private
from client.view.accounts import Books, in_words
from tmca_core.cli import main
from tmca_core.errors import BudgetExhausted
from tmca_core.messages import METRICS, SETTINGS, WITHHELD
from tmca_core.networks import build_network, shared_state
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.planning import make_plan


def test_an_evaluation_tells_allowed_means_rounded_and_notes_them(hospital: Hospital) -> None:
    for split in ("val", "test"):
        reply = hospital.evaluate(private(), split=split)
        told = dict(reply.content[METRICS])
        assert set(told) == {"dice_image", "loss"} and reply.content[SETTINGS][WITHHELD] is True
        assert all(round(value / 0.05) * 0.05 == pytest.approx(value, abs=1e-9) for value in told.values())
    entries = hospital.ledger.read().entries[2:]
    assert [entry["kind"] for entry in entries] == ["evaluation", "figures"] * 2
    assert [entry["split"] for entry in entries[::2]] == ["val", "test"]
    assert entries[1]["names"] == ["dice_image", "loss"] and entries[1]["count"] == 2 and entries[1]["purpose"] == "val"


def test_a_server_that_sends_scaled_weights_learns_no_more_than_a_rough_figure(hospital: Hospital) -> None:
    """The loss of a head with weights a million times too large would be a case's grey value, to any number of digits."""
    start = shared_state(build_network(private()))
    told = hospital.evaluate(private(), weights={**start, "head.weight": start["head.weight"] * 1e6}).content[METRICS]
    assert told["loss"] == 5.0


def test_the_loss_stays_at_home_unless_the_hospital_says_otherwise(hospital: Hospital) -> None:
    path = hospital.folder / "site.toml"
    path.write_text(path.read_text().replace('allowed = ["dice_image", "loss"]\n', ""))
    assert set(hospital.evaluate(private()).content[METRICS]) == {"dice_image"}


def test_one_model_is_measured_a_round_and_split(hospital: Hospital) -> None:
    start = shared_state(build_network(private()))
    other = {name: tensor + 1e-3 if tensor.is_floating_point() else tensor for name, tensor in start.items()}
    first = dict(hospital.evaluate(private(), weights=start).content[METRICS])
    assert dict(hospital.evaluate(private(), weights=start).content[METRICS]) == first  # the server was started again
    for settings, weights in ((private(), other), (private(evaluation__threshold=0.4), start)):
        reply = hospital.evaluate(settings, weights=weights)
        assert dict(reply.content[METRICS]) == {} and reply.content[SETTINGS][WITHHELD] is True
    for elsewhere in ({"split": "test"}, {"round": 2}, {"run": "ab"}):
        assert set(hospital.evaluate(private(), weights=other, **elsewhere).content[METRICS]) == {"dice_image", "loss"}
    assert hospital.kinds().count("evaluation") == hospital.kinds().count("figures") == 5


def test_a_run_that_compares_models_of_one_round_is_refused(hospital: Hospital) -> None:
    assert (
        "one model a round and split: federation.contribution_every must be 0"
        in hospital.hello(private(federation__contribution_every=1)).refusal
    )


def test_figures_over_too_few_cases_stay(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path, min_cases=4)
    assert dict(hospital.evaluate(private(), split="val").content[METRICS]) == {}  # three cases
    assert set(hospital.evaluate(private(), split="test").content[METRICS]) == {"dice_image", "loss"}  # five
    assert hospital.kinds() == ["agreed", "evaluation", "evaluation", "figures"]


def test_where_no_figure_may_leave_nothing_is_evaluated(hospital: Hospital) -> None:
    path = hospital.folder / "site.toml"
    path.write_text(path.read_text().replace('["dice_image", "loss"]', "[]"))
    reply = hospital.evaluate(private())
    assert dict(reply.content[METRICS]) == {} and reply.content[SETTINGS][WITHHELD] is True
    assert hospital.kinds() == ["agreed"]


def test_counts_leave_only_as_tens(tmp_path: Path) -> None:
    quiet = Hospital.make(tmp_path / "quiet").hello(private())
    assert {quiet.patients, quiet.train_patients, quiet.train_cases, quiet.val_cases, quiet.test_cases, quiet.skipped} == {None}
    hospital = Hospital.make(tmp_path / "open")
    path = tmp_path / "open" / "site.toml"
    path.write_text(path.read_text().replace("[metrics]", "[metrics]\ncase_counts = true"))
    by_cases = private(federation__weighting="cases", privacy__sample_rate=0.0)
    hello = hospital.hello(by_cases)
    assert (hello.patients, hello.train_patients, hello.train_cases, hello.val_cases, hello.test_cases) == (20, 10, 10, 0, 0)
    reply = hospital.train(by_cases)
    assert reply.content[SETTINGS]["weight"] == hello.weight("cases") == 10  # the true one is 16
    assert hospital.ledger.read().charges[0]["spend"]["sample_rate"] == 0.4  # 4 of 10
    noted = [(entry["purpose"], entry["count"]) for entry in hospital.ledger.read().entries if entry["kind"] == "figures"]
    assert noted == [("hello", 6), ("training", 1)]


def test_a_plain_run_under_a_policy_tells_what_is_allowed(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    path = tmp_path / "site.toml"
    path.write_text(path.read_text().replace("[privacy]", "[privacy]\nrequired = false"))
    reply = hospital.train(plain())
    told = dict(reply.content[METRICS])
    assert set(told) == {"steps", "loss"} and reply.content[SETTINGS][WITHHELD] is True
    assert round(float(told["loss"]) / 0.05) * 0.05 == pytest.approx(told["loss"])
    assert hospital.kinds() == ["agreed", "charge", "figures"]
    assert "training.steps must be set" in reason(hospital.train(plain(training__steps=0), run="ab"))


def test_after_a_plain_update_no_epsilon_holds_for_its_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A pilot without noise, then a private run on the same patients: its ε alone would say what nobody can."""
    hospital = Hospital.make(tmp_path)
    path = tmp_path / "site.toml"
    text = path.read_text()
    path.write_text(text.replace("[privacy]", "[privacy]\nrequired = false"))
    assert not hospital.train(private(), run="aa").has_error()
    alone = hospital.ledger.read().epsilon(1e-5)
    assert not hospital.train(plain(), run="bb").has_error()
    (_, update), whole = hospital.ledger.read().charges, hospital.ledger.read()
    assert (update["purpose"], update["run"], update["round"], update["patients"]) == ("plain update", "bb", 1, 16)
    assert math.isinf(whole.epsilon(1e-5)) and whole.noised.epsilon(1e-5) == alone == epsilon([NoisySteps(1.0, 0.3, 2)], 1e-5)
    assert whole.epsilon(1e-5, hospital.ledger.hashes(["somebody else"])) == 0.0

    assert "none holds after plain updates of the same patients" in reason(hospital.train(private(), run="cc"))
    assert "beside_plain" in caplog.text and len(hospital.ledger.read().charges) == 2
    shown, told = json_of(capsys, "privacy", "ledger", "show", str(tmp_path / "ledger"))
    assert shown["epsilon"] == {"pld": None, "prv": None, "rdp": None} and shown["replace_one"] is None
    assert shown["plain_updates"] == 1 and shown["noised_alone"]["pld"] == pytest.approx(alone)
    assert "plain updates that have left: 1; no ε holds for their patients" in told
    policy, told = json_of(capsys, "privacy", "policy", str(path))
    assert policy["spent"] is None and "beside 1 plain updates" in told
    with pytest.raises(BudgetExhausted, match="no noise gives them a finite ε"):
        make_plan(0.1, 10, 1e-5, noise=1.0, before=hospital.ledger.read().compositions())
    (account,) = Books([path]).look()
    assert (account.plain, account.rounds) == (1, 0) and account.spent == pytest.approx(alone)
    assert in_words(account.entries[-1 - whole.entries.index(update)])[0] == "Update without noise of round 1 left"

    path.write_text(path.read_text().replace("[privacy]", '[privacy]\nbeside_plain = "the pilot was of our phantoms"'))
    assert not hospital.train(private(), run="dd").has_error()
    assert hospital.ledger.read().noised.epsilon(1e-5) == epsilon([NoisySteps(1.0, 0.3, 4)], 1e-5)


def json_of(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[dict[str, Any], str]:
    """What a command prints as JSON, and as text."""
    said = []
    for more in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert not ended.value.code
        said.append(capsys.readouterr().out)
    return json.loads(said[0]), said[1]


def test_another_step_under_a_name_that_was_tested_is_tested_again(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network, losses and engine are no terms of a run: a later round may come with others."""
    tested = []
    check = client.private.check_site
    monkeypatch.setattr(client.private, "check_site", lambda *given: tested.append(given[3].digest()) or check(*given))
    for round, config in enumerate((private(), private(), private(privacy__engine="loop"), private(privacy__engine="loop")), 1):
        assert not hospital.train(config, round).has_error()
    assert len(tested) == len(set(tested)) == 2


def test_the_divisor_of_a_noised_sum_does_not_tell_the_number_of_patients(tmp_path: Path) -> None:
    """σ C / b is the noise that everybody sees: with b = q N it would tell N."""
    from client.door import Door

    hospital = Hospital.make(tmp_path)
    door = Door.of(tmp_path / "site.toml")
    assert {door.mechanism(private(), patients).expected for patients in (16, 18, 400)} == {4.0}
    assert Door().mechanism(private(), 20).expected == pytest.approx(6.0)
    assert hospital.kinds() == []


def test_changed_cases_are_named_by_split_and_not_counted(hospital: Hospital) -> None:
    assert not hospital.train(private()).has_error()
    lines = hospital.manifest.read_text().splitlines(keepends=True)
    hospital.manifest.write_text("".join(lines[:-1]))
    said = reason(hospital.train(private(), 2))
    assert said.startswith("FederationError: the site's cases are not those that this run began with (test). ")
    assert hospital.kinds() == ["agreed", "charge"]
