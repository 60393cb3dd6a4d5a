"""Simulated hospitals with policies of their own: one refuses and the others go on, all refuse, and figures that nobody tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from policed import SITES, config, policies

from simulations.engine import simulate
from simulations.experiment import run_experiment
from tmca_core.cli import main
from tmca_core.config import Config
from tmca_core.console import RoundTable
from tmca_core.errors import PolicyRefusal
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Ledger
from tmca_core.report.html import write_report
from tmca_core.run import Run


def test_one_hospital_refuses_and_the_others_pay_and_go_on(tmp_path: Path) -> None:
    folder = policies(tmp_path, ("phantom-01", "min_noise_multiplier = 0.8", "min_noise_multiplier = 2.0"))
    summary = run_experiment(config(folder), tmp_path / "run", lambda event: None)
    (fault,) = summary["faults"]
    assert fault["site"] == "phantom-01" and fault["kind"] == "refusal" and "Rule: privacy.min_noise_multiplier" in fault["reason"]
    assert summary["rejections"] == {} and [site["name"] for site in summary["sites"]] == ["phantom-00", "phantom-02"]
    assert {site["train_patients"] for site in summary["sites"]} == {None}
    spent = epsilon([NoisySteps(1.0, 0.3, 4)], 1e-5)
    for site in ("phantom-00", "phantom-02"):
        entries = Ledger.open(folder / site).read().entries
        assert [entry["round"] for entry in entries if entry["kind"] == "charge"] == [1, 2]
        assert [entry["split"] for entry in entries if entry["kind"] == "evaluation"] == ["val", "val", "test"]
        assert Ledger.open(folder / site).read().epsilon(1e-5) == pytest.approx(spent, rel=1e-6)
        assert summary["privacy"]["epsilon"][site] == pytest.approx(spent, rel=1e-6)
        assert [round for round, _ in summary["privacy"]["sites"][site]["history"]] == [1, 2]
    assert [entry["kind"] for entry in Ledger.open(folder / "phantom-01").read().entries] == ["created"]
    final = summary["final"]
    assert final["mean_over"] == "sites" and final["withheld"] == ["phantom-00", "phantom-02"]
    told = [final["per_site"][site]["dice_image"] for site in final["withheld"]]
    assert final["dice_image"] == pytest.approx(sum(told) / 2) and final["cases"] is None and final["hd95_px"] is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "withheld by the site's policy" in page and "phantom-01" in page


def test_no_baselines_are_trained_beside_the_policies(tmp_path: Path) -> None:
    folder, said = policies(tmp_path), []
    one_round = config(folder, simulation__baselines=True, federation__rounds=1, training__steps=1)
    summary = run_experiment(one_round, tmp_path / "run", lambda event: said.append(event.get("text", "")))
    assert summary["baselines"] == {"pooled": None, "local": {}} and any(text.startswith("no baselines") for text in said)
    assert [path.name for path in Run(tmp_path / "run").folder.glob("checkpoints/*") if not path.name.startswith("round-")] == []


def test_where_every_figure_is_withheld_no_case_is_shown_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = policies(tmp_path, ("", "min_cases = 2", "min_cases = 99"))
    with RoundTable(1) as table:
        run_experiment(config(folder, federation__rounds=1, training__steps=1), tmp_path / "run", table)
    assert "phantom-00 withheld" in capsys.readouterr().err
    assert not (tmp_path / "run" / "examples").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "withhold what the network reaches" in page and "no film and no report leaves them" in page
    for untrue in ("has not ended", "holds no validation", "was not measured", "no one-sided report", "<figure>"):
        assert untrue not in page


def test_where_all_refuse_the_command_ends_with_3_and_run_json_names_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = policies(tmp_path, ("", "max_sample_rate = 0.5", "max_sample_rate = 0.1"))
    settings = [f"--set={key}={value}" for key, value in config(folder).flat().items() if value != Config().flat()[key]]
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "--out", str(tmp_path / "run"), "--json", *settings])
    assert stopped.value.code == 3
    assert "Rule: privacy.max_sample_rate" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {fault["site"] for fault in summary["faults"]} == set(SITES)
    assert all("Rule: privacy.max_sample_rate" in fault["reason"] for fault in summary["faults"])
    assert "has not ended" in write_report(Run(tmp_path / "run")).read_text()


def test_a_budget_that_ends_in_the_middle_ends_that_hospitals_part(tmp_path: Path) -> None:
    one, two = (epsilon([NoisySteps(1.0, 0.3, 2 * n)], 1e-5) for n in (1, 2))
    folder = policies(tmp_path, ("phantom-02", "epsilon = 50", f"epsilon = {(one + two) / 2}"))
    summary = simulate(config(folder), tmp_path / "run")
    (fault,) = summary["faults"]
    assert (fault["site"], fault["round"], fault["kind"]) == ("phantom-02", 2, "refusal")
    assert summary["privacy"]["epsilon"]["phantom-02"] == pytest.approx(one, rel=1e-6)
    assert summary["privacy"]["epsilon"]["phantom-00"] == pytest.approx(two, rel=1e-6)
    (tmp_path / "tight").mkdir()
    tight = policies(tmp_path / "tight", ("", "epsilon = 50", f"epsilon = {(one + two) / 2}"))
    with pytest.raises(PolicyRefusal, match=r"0 usable updates, 1 are needed .*phantom-00: the site refuses: BudgetExhausted"):
        simulate(config(tight), tmp_path / "run2")
    assert json.loads((tmp_path / "run2" / "run.json").read_text())["privacy"]["epsilon"]["phantom-00"] == pytest.approx(one, rel=1e-6)
    assert Run(tmp_path / "run2").last_checkpoint().round == 1  # type: ignore[union-attr]


def test_early_stopping_without_a_figure_says_that_it_has_none(tmp_path: Path) -> None:
    folder = policies(tmp_path, ("", "min_cases = 2", "min_cases = 99"))
    notes: list[str] = []
    summary = simulate(
        config(folder, federation__patience=1, federation__rounds=3),
        tmp_path / "run",
        lambda event: notes.append(event["text"]) if event["event"] == "note" else None,
    )
    (said,) = [text for text in notes if "withholds its validation Dice" in text]
    assert "federation.patience" in said
    assert summary["stopped_early"] is None and summary["best_round"] is None and summary["final"]["dice_image"] is None
    assert len(Ledger.open(folder / "phantom-00").read().charges) == 3


def test_a_site_without_a_policy_among_sites_that_have_one_is_an_error(tmp_path: Path) -> None:
    folder = policies(tmp_path)
    (folder / "phantom-01.toml").unlink()
    summary = simulate(config(folder), tmp_path / "run")
    assert any(fault["kind"] == "failed" and "phantom-01.toml" in fault["reason"] for fault in summary["faults"])
    assert len(Ledger.open(folder / "phantom-01").read().entries) == 1
