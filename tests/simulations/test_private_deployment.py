"""A private federation of hospitals that run their own processes: policies hold, ledgers pay, one refuses and is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hospital import Hospital, private

from simulations.processes import Processes
from tmca_core.config import Config
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.run import Run

pytestmark = pytest.mark.slow


def test_two_hospitals_with_policies_one_of_which_refuses_a_turn(processes: Processes, tmp_path: Path) -> None:
    once, twice = (epsilon([NoisySteps(1.0, 0.3, 2 * n)], 1e-5) for n in (1, 2))
    ghent = Hospital.make(tmp_path / "of-ghent")
    hannover = Hospital.make(tmp_path / "of-hannover", epsilon=(once + twice) / 2)
    port = processes.superlink()
    processes.supernode("ghent", port, ghent.node)
    processes.supernode("hannover", port, {**hannover.node, "site": "hannover"})
    config = private(
        federation__rounds=2,
        federation__wait=120.0,
        evaluation__every=2,
        evaluation__bootstrap=20,
        data__cache_dir=str(tmp_path / "servers-cache"),
        simulation__out=str(tmp_path / "run"),
    )
    settings = {key: value for key, value in config.flat().items() if value != Config().flat()[key]}
    code, output = processes.submit(port, {**settings, "federation.min_sites": 1})
    assert code == 0, output
    summary = Run(tmp_path / "run").read_json("run.json")
    assert summary, output
    assert [site["name"] for site in summary["sites"]] == ["ghent", "hannover"]
    assert {site["train_patients"] for site in summary["sites"]} == {None}
    # The refusal came as an error over the SuperLink, and says rule and bound alone.
    (fault,) = summary["faults"]
    assert (fault["site"], fault["round"], fault["phase"], fault["kind"]) == ("hannover", 2, "train", "refusal"), output
    bound = f"bound: ε = {(once + twice) / 2:g} at δ = 1e-05."
    assert fault["reason"].endswith(f"BudgetExhausted: this hospital's policy refuses. Rule: budget of every patient; {bound}"), output
    # Each paid for its rounds before their release, and noted what else it told.
    told = ["evaluation", "figures", "evaluation", "figures"]
    assert ghent.kinds() == ["agreed", "charge", "charge", *told]
    assert hannover.kinds() == ["agreed", "charge", *told]
    spent = {"ghent": twice, "hannover": once}
    assert {hospital: made.ledger.read().epsilon(1e-5) for hospital, made in (("ghent", ghent), ("hannover", hannover))} == spent
    assert summary["privacy"]["epsilon"] == {name: pytest.approx(value, rel=1e-6) for name, value in spent.items()}
    assert set(summary["final"]["per_site"]["ghent"]["withheld"]) >= {"hd95_px", "ci95_low"}
    assert summary["final"]["dice_image"] is not None and summary["final"]["cases"] is None
    assert all(turn["loss"] is None and turn["seconds"] is None for turn in Run(tmp_path / "run").events("site_train"))
