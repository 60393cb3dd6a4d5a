"""The data check from command to run.json, in one process: sites with policies, a site that is unlike the others, and then the training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from policed import SITES, config, policies
from tiny_runs import tiny

from simulations.engine import simulate
from tmca_core.cases.phantom import write
from tmca_core.cli import main
from tmca_core.config import Config, parse
from tmca_core.errors import ConfigError
from tmca_core.privacy.ledger import Ledger
from tmca_core.run import Run


def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def told(settings: Config) -> list[str]:
    return [f"--set={key}={value}" for key, value in settings.flat().items() if value != Config().flat()[key]]


def test_trouble_at_a_site_is_said_before_anything_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path / "data", sites=3, cases=24, seed=0, size=32)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    odd = sorted({row["site"] for row in rows})[1]
    for row in rows:
        if row["site"] == odd:  # sides that mean nothing: what the manifest says of them is trusted
            row["report"] = f"Consolidation in the {'left' if int(row['case_id'][-1]) % 2 else 'right'} lung."
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    settings = tiny(tmp_path / "cache", data__manifest=str(manifest), federation__check="only", federation__rounds=1)
    code, out, err = tmca(capsys, "simulate", "--out", tmp_path / "run", *told(settings))
    assert code == 0, err
    assert f"site '{odd}': reports and masks agree on the side in" in out and "nothing was trained" in out
    assert [path.name for path in Run(tmp_path / "run").checkpoints()] == ["round-000"]
    assert json.loads((tmp_path / "run" / "data_check.json").read_text())["sites"][odd]["cases"] == 24


@pytest.mark.slow
def test_training_after_a_check_is_the_training_without_one(tmp_path: Path) -> None:
    settings = tiny(tmp_path / "cache", federation__rounds=2)
    without = simulate(settings, tmp_path / "a")
    checked = simulate(settings.with_values({"federation.check": "true"}), tmp_path / "b")
    assert "data_check" not in without and len(checked.pop("data_check")["sites"]) == 3
    assert checked["final"] == without["final"] and checked["bytes"] == without["bytes"] and checked.keys() == without.keys()
    weights = [Run(tmp_path / name).checkpoint(2).weights for name in "ab"]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_each_hospitals_policy_decides_what_of_it_is_told(tmp_path: Path) -> None:
    folder = policies(
        tmp_path,
        (SITES[0], '"dice_image", ', '"dice_image", "data.intensity_mean", '),
        (SITES[1], '["dice_image"', '["dice_image", "data.*"'),
        (SITES[1], "round_to = 0.05", "round_to = 0.05\ncheck_noise = 0.5"),
    )
    summary = simulate(config(folder, federation__check="only"), tmp_path / "run")
    found = summary["data_check"]
    first, second, third = (found["sites"][site] for site in SITES)
    assert [name for name, value in first.items() if value is not None] == ["intensity_mean"]
    assert second["intensity_mean"] is not None and second["patients"] is None
    assert all(value is None for value in third.values()) and "intensity_mean" in found["withheld"][SITES[2]]
    assert "intensity_mean" not in found["withheld"][SITES[0]] + found["withheld"][SITES[1]]
    charges = [len(Ledger.open(folder / site).read().charges) for site in SITES]
    assert charges == [0, 1, 0]


@pytest.mark.parametrize(("given", "held"), [(True, "true"), (False, "false"), ("only", "only")])
def test_the_setting_is_a_word_or_a_bool(given: object, held: str) -> None:
    assert parse({"federation.check": given}).federation.check == held
    with pytest.raises(ConfigError, match=r"federation\.check"):
        parse({"federation.check": "maybe"})
