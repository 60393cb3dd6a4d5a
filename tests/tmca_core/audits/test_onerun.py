"""Canaries and their scores, the project's own and from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_runs import tiny
from tmca_core.audits.conduct import conduct
from tmca_core.audits.onerun import CANARY, KINDS, log_odds, make_canaries, one_run, told_apart
from tmca_core.audits.rehearsal import subject_of
from tmca_core.cli import main
from tmca_core.errors import AuditInvalid, ConfigError
from tmca_core.run import Checkpoint, Run
from tmca_core.training.centralised import keep_data


def table(path: Path, members: list[float], others: list[float], *, bare: bool = False) -> Path:
    """Scores of the target; with `bare` also those of the same pipeline without privacy, which nobody could mistake."""
    rows = [f"{value},1,target" for value in members] + [f"{value},0,target" for value in others]
    rows += [f"{k + 1000 * member},{member},positive" for k in range(100) for member in (0, 1)] if bare else []
    path.write_text("score,member,arm\n" + "\n".join(rows) + "\n")
    return path


def test_scores_of_others_pass_fail_and_lack_power(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clear = table(tmp_path / "clear.csv", (5 + rng.normal(size=100)).tolist(), rng.normal(size=100).tolist())
    blind = table(tmp_path / "blind.csv", rng.normal(size=100).tolist(), rng.normal(size=100).tolist())
    found = conduct(one_run(scores=clear, epsilon=1.0), tmp_path / "a")
    assert found.verdict == "FAIL" and found.to_json()["registered"]["guesses"] == 60
    assert found.to_json()["figures"]["right guesses"] == "60 of 60, on 200 canaries"
    alone = conduct(one_run(scores=blind, epsilon=1.0), tmp_path / "b")
    assert alone.verdict == "NO POWER" and alone.exit_code == 5 and "add rows whose arm is 'positive'" in alone.sentence
    assert "NOT MADE" in alone.to_json()["figures"]["distribution check"]
    controlled = table(tmp_path / "controlled.csv", rng.normal(size=100).tolist(), rng.normal(size=100).tolist(), bare=True)
    assert conduct(one_run(scores=controlled, epsilon=1.0), tmp_path / "e").verdict == "PASS"
    weak = conduct(one_run(scores=clear, epsilon=9.0), tmp_path / "c")
    assert weak.verdict == "NO POWER" and weak.exit_code == 5
    open_ended = conduct(one_run(scores=clear), tmp_path / "d")
    assert open_ended.verdict == "NO POWER" and "no clearance" in open_ended.sentence and open_ended.to_json()["bounds"][0]["value"] > 1
    assert open_ended.to_json()["controls"]["positive"]["flagged"]


def test_scores_that_allow_no_conclusion_and_wrong_orders_are_refused(tmp_path: Path) -> None:
    tied = table(tmp_path / "tied.csv", [1.0] * 50, [1.0] * 50)
    with pytest.raises(AuditInvalid, match="tied"):
        one_run(scores=tied, epsilon=1.0)
    with pytest.raises(AuditInvalid, match="too few"):
        one_run(scores=table(tmp_path / "few.csv", [1.0, 2.0], [0.0, 3.0]), epsilon=1.0)
    with pytest.raises(AuditInvalid, match="too few"):
        one_run(canaries=10)
    with pytest.raises(ConfigError, match="known are"):
        one_run(kinds="image,sound")
    with pytest.raises(ConfigError, match="give one of"):
        one_run(scores=tied, run=tmp_path)
    with pytest.raises(ConfigError, match="more than"):
        one_run(scores=table(tmp_path / "x.csv", list(map(float, range(20))), list(map(float, range(20, 40)))), guesses=41, epsilon=1.0)


def test_kinds_that_are_told_apart_clearly_are_guessed_first() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random(4000) < 0.5
    clear, blurred = (rng.normal(size=4000) + distance * inside for distance in (6.0, 3.0))
    odds = log_odds(clear), log_odds(blurred)
    for values, found, distance in zip((clear, blurred), odds, (6.0, 3.0), strict=True):
        assert (np.argsort(found) == np.argsort(values)).all()
        assert np.polyfit(values, found, 1)[0] == pytest.approx(distance, rel=0.2)  # log-odds of unit normals rise by their distance
    assert np.abs(odds[0]).mean() > 2 * np.abs(odds[1]).mean()
    assert (log_odds(np.ones(5)) == 0).all() and np.isfinite(log_odds(np.array([0.0] * 5 + [1.0] * 5))).all()


def test_canaries_are_patients_of_one_case_that_nothing_else_explains(tmp_path: Path) -> None:
    subject = subject_of(None, tiny(tmp_path))
    made = make_canaries(subject, 36)
    assert sorted(made) == sorted(subject.sites) and sum(map(len, made.values())) == 36
    for site, data in made.items():
        assert data.patients == len(data) and all(case.site == site and case.patient_id.startswith(CANARY) for case in data.cases)
        kinds = [case.metadata["kind"] for case in data.cases]
        assert all(kinds.count(kind) == len(data) / 3 for kind in KINDS)
        assert (data.masks.flatten(1).sum(1) == (subject.config.data.image_size // 4) ** 2).all()
        reports = {case.text for case in subject.sites[site].train.cases}
        assert not reports & {case.text for case in data.cases if case.metadata["kind"] == "report"}
    other = make_canaries(subject, 36)
    assert any((made[site].images != other[site].images).any() for site in made)  # nobody can know them beforehand


def test_every_canary_gets_a_score_and_about_half_take_part(tmp_path: Path) -> None:
    subject = subject_of(None, tiny(tmp_path, federation__rounds=1, training__steps=1))
    scores, kinds = told_apart(subject, make_canaries(subject, 60))
    assert len(scores.members) + len(scores.others) == 60 and 10 <= len(scores.members) <= 50
    assert sum(len(part.members) for part in kinds.values()) == len(scores.members)


def test_the_audit_of_a_copied_run_gives_the_same_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(tmp_path / "cache", federation__rounds=1, training__steps=1)
    run = Run.create(tmp_path / "run", config)
    subject = subject_of(None, config)
    keep_data(run, subject.sites)
    run.save_checkpoint(Checkpoint(1, subject.start, {}))
    run.write_json("run.json", {"schema": 1, "engine": "inprocess", "privacy": None})
    copy = shutil.copytree(run.folder, tmp_path / "elsewhere" / "run")
    found, order = [], ["audit", "one-run", "--canaries", "60", "--json"]
    for folder in (run.folder, copy):
        with pytest.raises(SystemExit) as stop:
            main([*order, "--run", str(folder), "--out", str(tmp_path / "out" / folder.parent.name)])
        found.append((stop.value.code, json.loads(capsys.readouterr().out)))
    assert [code for code, _ in found] == [5, 5] and found[0][1]["verdict"] == found[1][1]["verdict"] == "NO POWER"
    assert found[0][1]["registered"] == found[1][1]["registered"] and found[0][1]["claim"]["epsilon"] is None
