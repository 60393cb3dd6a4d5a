"""Every audit of one run's folder: what is passed on, what does not apply, and that no report gets lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.support.tiny_runs import tiny
from tests.tmca_core.audits.test_sensitivity import finished
from tmca_core.audits import commands
from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.interface import AUDITS, Arm, Audit, Bound, Evidence
from tmca_core.audits.rehearsal import material_of
from tmca_core.audits.subjects import Beta, Held, RunFolder, Settings
from tmca_core.cli import main
from tmca_core.errors import WeightsError
from tmca_core.run import Checkpoint, Run
from tmca_core.training.centralised import keep_data

GIVEN: list[dict[str, Any]] = []


def third(run: RunFolder = None, assignments: Settings = None, epsilon: Held = 0.0, beta: Beta = 0.05) -> Audit:
    """An audit that notes what it was given, and whose target cannot be read."""
    GIVEN.append({"run": run, "assignments": assignments, "epsilon": epsilon, "beta": beta})

    def measure(arm: Arm) -> Evidence:
        raise WeightsError("the checkpoint is damaged.")

    return Audit("third", "", "", of_epsilon(1.0, 1e-5), beta, {}, measure)


def fourth(run: RunFolder = None) -> Audit:
    """An audit that passes."""
    arms = {arm: Evidence((Bound("b", "ε", 2.0 if arm == "positive" else 0.0, 1.0),)) for arm in ("target", "positive", "negative")}
    return Audit("fourth", "", "", of_epsilon(1.0, 1e-5), 0.05, {}, arms.__getitem__)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    entries = {"third": third, "fourth": fourth}
    assert commands.AUDITS is AUDITS  # ours are registered before these two are, and stay when they go
    with mock.patch.dict(AUDITS._factories, entries):
        yield


def audited(capsys: pytest.CaptureFixture[str], *order: object) -> tuple[object, dict[str, Any]]:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "all", *map(str, order), "--json"])
    return stop.value.code, json.loads(capsys.readouterr().out or "{}")


def test_options_reach_the_audits_that_have_them_and_no_report_gets_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = finished(tmp_path), tmp_path / "out"
    options = ("--set", "data.manifest=there.csv", "--epsilon", "3", "--beta", "0.1")
    code, value = audited(capsys, run, "--out", out, "--only", "fourth,third", *options)
    assert GIVEN[-1] == {"run": run, "assignments": ["data.manifest=there.csv"], "epsilon": 3.0, "beta": 0.1}
    assert code == 5 and {name: report["verdict"] for name, report in value["audits"].items()} == {"fourth": "PASS", "third": "INVALID"}
    assert "the checkpoint is damaged" in value["sentence"] and "damaged" in (out / "third" / "attempts.jsonl").read_text()
    (out / "fourth" / "registered.json").write_text("{}\n")  # the folder is another audit's
    code, value = audited(capsys, run, "--out", out, "--only", "fourth,third", *options)
    assert code == 5 and "fixes another audit" in value["audits"]["fourth"]["sentence"] and value["audits"]["third"]["attempt"] == 2
    assert len((out / "fourth" / "attempts.jsonl").read_text().splitlines()) == 2  # begun and ended, once
    assert audited(capsys, run, "--beta", "2")[0] == audited(capsys, run, "--set", "data.no_such=1")[0] == 2


def test_an_audit_that_failed_is_not_left_out_of_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(run: RunFolder = None) -> Audit:
        arms = {arm: Evidence((Bound("b", "ε", 0.0 if arm == "negative" else 2.0, 1.0),)) for arm in ("target", "positive", "negative")}
        return Audit("third", "", "", of_epsilon(1.0, 1e-5), 0.05, {}, arms.__getitem__)

    run, out = finished(tmp_path), tmp_path / "out"
    code, value = audited(capsys, run, "--out", out, "--only", "fourth")
    assert code == 0 and "Not made, so that this verdict says nothing of what they would find" in value["sentence"]
    assert "third" in value["sentence"].partition("Not made")[2] and "Not made" in (out / "audit.html").read_text()
    with mock.patch.dict(AUDITS._factories, {"third": fails}):
        assert audited(capsys, run, "--out", out, "--only", "third")[0] == 4
    code, value = audited(capsys, run, "--out", out, "--only", "fourth")
    assert code == 4 and value["verdict"] == "FAIL" and "takes nothing back" in value["audits"]["third"]["sentence"]
    assert audited(capsys, run, "--out", run)[0] == 2  # in which nothing is changed


def test_an_error_of_a_library_takes_no_finished_report_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fifth(run: RunFolder = None) -> Audit:
        raise MemoryError("no room for 9 GB")

    def sixth(run: RunFolder = None) -> Audit:
        def measure(arm: Arm) -> Evidence:
            raise RuntimeError("shapes do not fit")

        return Audit("sixth", "", "", of_epsilon(1.0, 1e-5), 0.05, {}, measure)

    with mock.patch.dict(AUDITS._factories, {"fifth": fifth, "sixth": sixth}):
        run, out = finished(tmp_path), tmp_path / "out"
        code, value = audited(capsys, run, "--out", out, "--only", "fourth,fifth,sixth")
        reports = value["audits"]
        assert code == 5 and reports["fourth"]["verdict"] == "PASS" and (out / "audit.html").exists()
        assert "MemoryError: no room for 9 GB" in reports["fifth"]["sentence"]
        assert "RuntimeError: shapes do not fit" in reports["sixth"]["sentence"]
        (out / "sixth" / "attempts.jsonl").write_text("torn\n")
        _, value = audited(capsys, run, "--out", out, "--only", "fourth,sixth")
        assert "cannot be read" in value["audits"]["sixth"]["sentence"] and value["audits"]["fourth"]["verdict"] == "PASS"


def test_audits_that_a_configuration_does_not_allow_do_not_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path / "c")
    run, material = Run.create(tmp_path / "run", config), material_of(None, config)
    keep_data(run, material.sites)
    run.save_checkpoint(Checkpoint(3, dict(material.network.state_dict()), {}))
    run.write_json("run.json", {"schema": 1, "engine": "centralised", "arm": "pooled", "privacy": None})
    code, value = audited(capsys, run.folder, "--out", tmp_path / "a", "--only", "sensitivity,mechanism,inversion,fourth")
    assert code == 0 and value["verdict"] == "PASS"
    assert "nothing of the kind in this configuration: sensitivity, mechanism, inversion. Not made" in value["sentence"]
    assert audited(capsys, run.folder, "--out", tmp_path / "b", "--only", "sensitivity,inversion")[1]["verdict"] == "INVALID"
