"""`tmca train` with noise: charged to the hospital's ledger, under its policy, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hospital import Hospital, private, rewrite

from tmca_core.cli import main
from tmca_core.config import Config
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Ledger
from tmca_core.run import Run


def train(hospital: Hospital, out: Path, capsys: pytest.CaptureFixture[str], *more: str, **values: Any) -> tuple[int, dict[str, Any], str]:
    config = private(federation__rounds=2, data__cache_dir=str(hospital.folder / "cache"), evaluation__bootstrap=20, **values)
    settings = [f"--set={key}={value}" for key, value in config.flat().items() if value != Config().flat()[key]]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--manifest", str(hospital.manifest), "--out", str(out), "--json", *settings, *more])
    said = capsys.readouterr()
    return int(ended.value.code or 0), json.loads(said.out) if said.out else {}, said.err


def test_a_private_training_pays_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hospital = Hospital.make(tmp_path)
    policy = f"--policy={tmp_path / 'site.toml'}"
    code, summary, _ = train(hospital, tmp_path / "run", capsys, policy)
    assert code == 0
    assert hospital.kinds() == ["agreed", "charge", "evaluation", "charge", "evaluation", "evaluation"]
    spent = epsilon([NoisySteps(1.0, 0.3, 4)], 1e-5)
    stated = summary["privacy"]
    assert stated["epsilon"] == {"pooled": pytest.approx(spent, rel=1e-6)} and stated["over_all_runs"] == pytest.approx(spent, rel=1e-6)
    assert [round for round, _ in stated["sites"]["pooled"]["history"]] == [1, 2] and stated["sites"]["pooled"]["patients"] == 16
    assert all(event["loss"] is None for event in Run(tmp_path / "run").events("site_train"))
    assert "<h2>Privacy</h2>" in (tmp_path / "run" / "report.html").read_text()
    # the same command again goes on with nothing: it has ended
    code, again, _ = train(hospital, tmp_path / "run", capsys, policy)
    assert code == 0 and hospital.kinds().count("charge") == 2 and again["privacy"]["epsilon"] == stated["epsilon"]
    # another run on the same patients counts what is spent
    code, other, _ = train(hospital, tmp_path / "other", capsys, policy, "--site=phantom-00")
    assert other["privacy"]["epsilon"] == {"local:phantom-00": pytest.approx(spent, rel=1e-6)}
    assert other["privacy"]["over_all_runs"] == pytest.approx(epsilon([NoisySteps(1.0, 0.3, 8)], 1e-5), rel=1e-6)


def test_the_budget_and_the_rules_of_the_hospital_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (epsilon([NoisySteps(1.0, 0.3, 2 * n)], 1e-5) for n in (1, 2))
    hospital = Hospital.make(tmp_path, epsilon=(one + two) / 2)
    policy = f"--policy={tmp_path / 'site.toml'}"
    code, _, said = train(hospital, tmp_path / "quiet", capsys, policy, privacy__noise_multiplier=0.7)
    assert code == 3 and "Rule: privacy.min_noise_multiplier" in said and hospital.kinds() == []
    code, _, said = train(hospital, tmp_path / "run", capsys, policy)
    assert code == 3 and "this hospital's budget is" in said and hospital.kinds().count("charge") == 1
    assert Run(tmp_path / "run").last_checkpoint().round == 1  # type: ignore[union-attr]


def test_private_and_policy_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hospital = Hospital.make(tmp_path)
    code, _, said = train(hospital, tmp_path / "run", capsys)
    assert code == 3 and "--policy site.toml" in said
    code, _, said = train(hospital, tmp_path / "run", capsys, f"--policy={tmp_path / 'site.toml'}", privacy__enabled=False)
    assert code == 2 and "--policy is of private training" in said
    assert not (tmp_path / "run").exists() and hospital.kinds() == []


def test_a_run_goes_on_with_the_ledger_and_the_patients_that_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hospital, run = Hospital.make(tmp_path), tmp_path / "run"
    policy = f"--policy={tmp_path / 'site.toml'}"
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "site.toml").read_text() + '[ledger]\nfolder = "elsewhere"\n')
    Ledger.create(tmp_path / "elsewhere")
    assert train(hospital, run, capsys, policy)[0] == 0

    def refused(*more: str) -> str:
        code, _, said = train(hospital, run, capsys, *more)
        assert code == 3 and "would be understated" in said and len(Ledger.open(tmp_path / "elsewhere").read().entries) == 1
        return said

    assert "no charge for round 1, 2:" in refused(f"--policy={other}")  # it has ended
    named = (run / "privacy.json").read_bytes()
    (run / "privacy.json").unlink()
    assert "privacy.json" in refused(policy)
    (run / "privacy.json").write_bytes(named)
    shutil.rmtree(run / "checkpoints" / "round-002")  # as after a kill in round 2
    assert "no charge for round 1:" in refused(f"--policy={other}")
    rewrite(hospital.manifest, lambda k, row: {**row, "patient_id": f"patient-{k // 2 if k < 16 else k}"})
    code, _, said = train(hospital, run, capsys, policy)
    assert code == 2 and "data.json" in said and hospital.kinds().count("charge") == 2
    rewrite(hospital.manifest, lambda k, row: {**row, "patient_id": f"patient-{k}"})
    code, summary, _ = train(hospital, run, capsys, policy)
    assert code == 0 and summary["privacy"]["sites"]["pooled"]["steps"] == 6 and hospital.kinds().count("charge") == 3


@pytest.mark.parametrize(("setting", "value"), [("delta", "1e-15"), ("clip", "1e-320"), ("noise_multiplier", "1e300")])
def test_what_no_finite_epsilon_goes_with_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, value: str
) -> None:
    hospital = Hospital.make(tmp_path)
    more = (f"--policy={tmp_path / 'site.toml'}", f"--set=privacy.{setting}={value}")
    code, _, said = train(hospital, tmp_path / "run", capsys, *more)
    assert code == 2 and f"'privacy.{setting}': Input should be" in said and "unexpected" not in said and hospital.kinds() == []
