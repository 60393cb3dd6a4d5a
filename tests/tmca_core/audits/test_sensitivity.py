"""Remove-one and replace-one on the real step, with records made to do harm; and claims that come from a run's folder."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from simulations.engine import simulate
from tests.support.tiny_runs import tiny
from tmca_core.audits import claims
from tmca_core.audits.conduct import ARMS, conduct, judge, register, sentence
from tmca_core.audits.interface import Audit, Evidence
from tmca_core.audits.rehearsal import material_of
from tmca_core.audits.sensitivity import measured, sensitivity
from tmca_core.audits.shipped import adversaries, shipped_step
from tmca_core.cli import main
from tmca_core.config import load
from tmca_core.errors import AuditInvalid, ConfigError, NotApplicable
from tmca_core.privacy import gradients, training
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Charge, Ledger
from tmca_core.run import Checkpoint, Run
from tmca_core.training.centralised import keep_data

TINY = ["data.image_size=32", "phantom.sites=1", "phantom.cases=12", "network.width=16", "network.heads=2"]


def test_the_shipped_step_keeps_both_neighbours_within_their_bounds() -> None:
    step = shipped_step(load(None, TINY), small=True)
    evidence = {arm: measured(step, arm) for arm in ARMS}
    assert judge(evidence)[0] == "PASS"
    removed, exchanged = evidence["target"].bounds
    assert removed.value == pytest.approx(1.0, abs=1e-4) and 1.5 < exchanged.value <= 2.0002
    assert all(bound.value > 10 for bound in evidence["positive"].bounds) and evidence["negative"].bounds[0].value == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ("guide", "tmca-ssa"))
def test_real_networks_do_too(name: str, tmp_path: Path) -> None:
    report = conduct(sensitivity(assignments=[*TINY, f"network.name={name}"]), tmp_path)
    assert report.verdict == "PASS", report.sentence


def test_clipping_single_cases_in_the_place_of_patients_is_found() -> None:
    clipped_sum = gradients.clipped_sum

    def by_case(network: Any, drawn: Any, losses: Any, clip: float, **rest: Any) -> Any:
        ones = torch.ones(len(drawn.batch), dtype=torch.int64)
        return clipped_sum(network, gradients.Drawn(drawn.batch, ones), losses, clip, **rest)

    with mock.patch.object(training, "clipped_sum", by_case):
        found = measured(shipped_step(load(None, TINY), small=True), "target")
    assert found.bounds[0].exceeds and found.bounds[0].value == pytest.approx(3.0, abs=1e-3)  # a patient has three cases


def test_records_made_to_do_harm_belong_to_one_patient_and_differ() -> None:
    step = shipped_step(load(None, TINY), small=True)
    records = adversaries(step.others)
    assert all(record.patients == 1 and len(record) == 3 for record in records.values())
    assert not {case.patient_id for case in step.others.cases} & {case.patient_id for case in records["film, mask none, no report"].cases}
    assert len({round(math.hypot(*step.lengths(record).values()), 6) for record in records.values()}) > 5


def finished(
    folder: Path, private: bool = True, charged: int = 4, sites: str = "a", engine: str = "inprocess", restart: bool = False
) -> Path:
    """A run's folder as a private simulation of `sites` leaves it, with `charged` of the four steps on the ledger of site a; untrained.

    With `restart` they are charged twice, and the ledger notes that the round was done again.
    """
    values = {"privacy.enabled": True, "privacy.noise_multiplier": 1.5} if private else {}
    config = tiny(folder / "cache", **values)
    run, stood_on = Run.create(folder / "run", config), material_of(None, config)
    keep_data(run, stood_on.sites)
    run.save_checkpoint(Checkpoint(config.federation.rounds, dict(stood_on.network.state_dict()), {}))
    stated = {
        "unit": "patient", "relation": "add/remove", "delta": 1e-5, "accountant": "PLD",
        "epsilon": dict.fromkeys(sites, epsilon([NoisySteps(1.5, 0.25, 4)], 1e-5)),
    }  # fmt: skip
    run.write_json("run.json", {"schema": 1, "engine": engine, "privacy": stated if private else None})
    if private and charged:
        ledger = Ledger.create(run.folder / "ledger" / "a")
        charge = Charge(NoisySteps(1.5, 0.25, charged), run="x", round=1, config=config.digest())
        ledger.charge(charge, ["p", "q"], None)
        ledger.charge(replace(charge, config="of another run", spend=NoisySteps(1.0, 0.25, 9)), ["p", "q"], None)
        ledger.charge(replace(charge, purpose="data check", spend=NoisySteps(3.0, 1.0, 1)), ["p", "q"], None)
        if restart:
            ledger.note("restart", run="x", round=1)
            ledger.charge(charge, ["p", "q"], None)
    return run.folder


def test_the_claim_of_a_run_agrees_with_its_ledger_wherever_it_is_copied(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    claim = claims.of_run(folder)
    assert claim.epsilon == pytest.approx(epsilon([NoisySteps(1.5, 0.25, 4)], 1e-5)) and len(claim.ledger) == 1
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "run")
    assert claims.of_run(copy).to_json() == claim.to_json()
    assert claims.of_run(finished(tmp_path / "plain", private=False)).epsilon == math.inf


def test_a_ledger_agrees_with_the_claim_in_both_directions(tmp_path: Path) -> None:
    with pytest.raises(AuditInvalid, match="more was released than is claimed"):
        claims.of_run(finished(tmp_path / "dearer", charged=8))
    with pytest.raises(AuditInvalid, match="without a charge"):
        claims.of_run(finished(tmp_path / "cheaper", charged=3))
    with pytest.raises(AuditInvalid, match="more was released than is claimed"):  # a round that was done again was released again
        claims.of_run(finished(tmp_path / "again", restart=True))


def test_a_claim_is_of_what_ledgers_account_for_and_of_all_sites(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    run, summary = Run(folder), Run(folder).read_json("run.json")

    def refused(says: str, **changed: object) -> None:
        run.write_json("run.json", summary | changed)
        with pytest.raises(AuditInvalid, match=says):
            claims.of_run(folder)

    for key, other in (("unit", "hospital"), ("unit", None), ("relation", "replace-one"), ("accountant", "certified")):
        refused(f"'privacy.{key}' is {other!r}", privacy=summary["privacy"] | {key: other})
    refused("the engine is 'Inprocess'", engine="Inprocess")
    refused("site 'b' took part in training and has no ε", sites=[{"name": "b", "train_patients": 9}])
    refused("'sites' is no list of named sites", sites=3)
    run.write_json("asked.json", {"a": [1], "b": [1]})
    refused("site 'b' took part in training and has no ε")
    run.write_json("asked.json", {"a": [1], "b": []})  # whose policy refused
    run.write_json("run.json", summary | {"sites": [{"name": "b", "train_patients": 9}]})
    assert claims.of_run(folder).ledger


def test_a_ledger_of_another_site_does_not_vouch(tmp_path: Path) -> None:
    folder = finished(tmp_path, charged=0)
    ledger = Ledger.create(folder / "ledger" / "a")
    ledger.charge(Charge(NoisySteps(1.5, 0.25, 4), run="x", round=1, config=Run(folder).config().digest()), ["p", "q"], None)
    summary = Run(folder).read_json("run.json")
    for patients, good in ((2, True), (3, False)):
        Run(folder).write_json("run.json", summary | {"sites": [{"name": "a", "train_patients": patients}]})
        with nullcontext() if good else pytest.raises(AuditInvalid, match="its ledger charged 2: it is another site's"):
            claims.of_run(folder)


def test_a_round_that_the_server_asked_for_twice_may_have_been_begun_once(tmp_path: Path) -> None:
    folder = finished(tmp_path, charged=2)  # run.json counts two requests of two steps each; the server was stopped after the first
    Run(folder).write_json("asked.json", {"a": [1, 1]})
    assert len(claims.of_run(folder).ledger) == 1
    Run(folder).write_json("asked.json", {"a": [1, 2]})
    with pytest.raises(AuditInvalid, match="without a charge"):
        claims.of_run(folder)


def test_a_round_that_a_site_failed_in_before_its_charge_is_no_contradiction(tmp_path: Path) -> None:
    folder = finished(tmp_path, charged=2)  # run.json counts both rounds of two steps each, the site paid for the first
    Run(folder).log("round", round=1, completed=["a"], failed={})
    with pytest.raises(AuditInvalid, match="without a charge"):
        claims.of_run(folder)
    Run(folder).log("round", round=2, completed=[], failed={"a": "it did not answer"})
    assert len(claims.of_run(folder).ledger) == 1


@pytest.mark.slow
def test_a_simulation_in_which_sites_drop_out_agrees_with_its_ledgers(tmp_path: Path) -> None:
    private = {"privacy__enabled": True, "privacy__noise_multiplier": 1.5, "simulation__baselines": False}
    simulate(tiny(tmp_path / "c", scenario__dropout=0.3, training__steps=1, **private), tmp_path / "run")
    failed = [record["failed"] for record in Run(tmp_path / "run").events("round")]
    claim = claims.of_run(tmp_path / "run")
    assert any(failed) and len(claim.ledger) == 9 - sum(map(len, failed)) and not claim.reservation


def test_a_simulated_site_without_a_ledger_is_invalid_and_a_deployed_one_is_not_vouched_for(tmp_path: Path) -> None:
    with pytest.raises(AuditInvalid, match="site 'b' of a simulated run"):
        claims.of_run(finished(tmp_path / "simulated", sites="ab"))
    partly = claims.of_run(finished(tmp_path / "deployed", sites="ab", engine="deployment"))
    unvouched = "held against data that no file of the run vouches for"
    assert partly.reservation == f"stated by run.json, not vouched for by a ledger (of b) and {unvouched}" and len(partly.ledger) == 1
    bare = claims.of_run(finished(tmp_path / "bare", charged=0, engine="deployment"))
    assert "no ledger is there" in bare.source and bare.to_json()["reservation"].endswith(f"(of a) and {unvouched}")
    said = sentence("PASS", ("found 0",), Audit("third", "", "", bare, 0.05, {}, lambda arm: Evidence()), Evidence())
    assert "not vouched for by a ledger" in said


def test_a_run_that_does_not_hold_together_is_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path, charged=2)
    with pytest.raises(SystemExit) as stop:
        main(["audit", "all", str(folder), "--out", str(tmp_path / "out"), "--only", "sensitivity", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 5 and found["verdict"] == "INVALID" and "without a charge" in found["sentence"]
    (folder / "run.json").unlink()
    with pytest.raises(AuditInvalid, match="did not finish"):
        claims.of_run(folder)
    with pytest.raises(AuditInvalid, match="is no run"):
        claims.of_run(tmp_path)
    other = finished(tmp_path / "other")
    (other / "ledger" / "a" / "ledger.jsonl").write_text("{}\n")
    with pytest.raises(AuditInvalid, match="ledger of site 'a'"):
        claims.of_run(other)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    (
        ("run.json", {"epsilon": None}, "no 'epsilon'"),
        ("run.json", {"delta": None}, "no 'delta'"),
        ("run.json", {"epsilon": {"a": "8"}}, "the ε of site 'a' is '8'"),
        ("run.json", {"epsilon": {}}, "states no site's ε"),
        ("run.json", {"delta": 0}, "δ is 0"),
        ("run.json", {"privacy": [1]}, "'privacy' is no object"),
        ("run.json", "[1]", "run.json is no JSON object"),
        ("run.json", "{", "run.json cannot be read"),
        ("asked.json", "{", "asked.json cannot be read"),
        ("asked.json", '{"a": 1}', "no list of rounds"),
        ("metrics.jsonl", "[1]\n", "a line is no JSON object"),
        ("metrics.jsonl", '{"event": "round", "failed": {"a": "gone"}}\n', "a round has no number"),
    ),
)
def test_a_folder_that_no_run_wrote_is_invalid_and_says_what_is_wrong(file: str, content: Any, says: str, tmp_path: Path) -> None:
    folder = finished(tmp_path)
    if isinstance(content, dict):
        summary = Run(folder).read_json("run.json")
        privacy = content.pop("privacy", None) or {k: v for k, v in (summary["privacy"] | content).items() if v is not None}
        content = json.dumps(summary | {"privacy": privacy})
    (folder / file).write_text(content)
    with pytest.raises(AuditInvalid, match=says):
        claims.of_run(folder)


def test_steps_without_privacy_are_not_audited_as_private_ones(tmp_path: Path) -> None:
    plain = finished(tmp_path, private=False)
    for given in ({"run": plain}, {"config": plain / "config.toml"}):
        with pytest.raises(NotApplicable, match="trains without privacy"):
            sensitivity(**given)
    assert sensitivity(assignments=TINY).claim.epsilon == math.inf  # the shipped step, which somebody may want to look at


def test_a_run_is_not_audited_under_other_settings_than_its_own(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    with pytest.raises(ConfigError, match="another training than the run's"):
        sensitivity(run=folder, assignments=["training.loss=dice"])
    audit = sensitivity(run=folder, assignments=[f"data.cache_dir={tmp_path / 'elsewhere'}"])
    assert audit.registered["configuration_sha256"] == Run(folder).config().digest() and len(str(audit.registered["data_sha256"])) == 64


@pytest.mark.parametrize("name", ("data.json", "splits.json", "checkpoints"))
def test_a_step_of_a_run_whose_data_or_model_is_not_known_is_invalid(name: str, tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder / name).rename(tmp_path / name)
    with pytest.raises(AuditInvalid, match=name.removesuffix("s")):
        sensitivity(run=folder)
    assert not (folder / name).exists()  # nothing is written into what is audited


def test_a_copy_under_another_name_is_the_same_audit(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "of another name")
    first = register(sensitivity(run=folder), tmp_path / "out")
    assert register(sensitivity(run=copy), tmp_path / "out") == first
