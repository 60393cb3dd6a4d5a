"""The ablation table at its smallest: what it trains, what it writes, and that it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.bench import ablation, step
from simulations.bench.ablation_variants import VARIANTS
from simulations.bench.commands import bench
from tmca_core.config import parse
from tmca_core.networks import NETWORKS
from tmca_core.networks.tmca import Tmca

SMALL = [
    part
    for setting in ("phantom.sites=1", "phantom.cases=8", "data.image_size=32", "network.width=16", "training.batch_size=2")
    for part in ("--set", setting)
]


def run(out: Path, *more: str) -> dict[str, object]:
    done = CliRunner().invoke(
        bench, ["ablation", "--out", str(out), "--steps", "8", "--seeds", "2", "--workers", "1", *SMALL, *more, "--json"]
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_a_table_of_means_and_deviations_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    figures = run(tmp_path / "table", "--variants", "guide,ssa+prior")["figures"]
    rows = json.loads((tmp_path / "table" / "ablation.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["guide", "ssa+prior"]
    first, second = rows[0]["dice_image"]["values"]
    assert rows[0]["dice_image"]["mean"] == pytest.approx((first + second) / 2) == figures["phantom.guide.dice_image"]
    assert rows[0]["dice_image"]["sd"] == pytest.approx(abs(first - second) / 2**0.5)
    costs = json.loads((tmp_path / "table" / "costs-phantom.json").read_text())
    assert costs["costs"]["guide"] == pytest.approx(1, abs=0.5)
    table = (tmp_path / "table" / "ablation.md").read_text()
    assert "| `guide` the base |" in table and " ± " in table
    steps = json.loads((tmp_path / "table" / "runs" / "phantom-guide-0" / "result.json").read_text())
    assert set(steps) == set(ablation.MEASURES)

    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "table" / "runs").glob("*/result.json")}
    again = run(tmp_path / "table", "--variants", "guide,ssa+prior,unet")["figures"]
    assert all(path.stat().st_mtime_ns == when for path, when in trained.items()) and len(trained) == 4
    assert {key: again[key] for key in figures} == figures and "phantom.unet.dice_image" in again


def test_what_a_step_costs_has_the_contrast_at_its_share_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, contrast = [], Tmca._contrast
    monkeypatch.setattr(
        Tmca, "_contrast", lambda self, hidden, level, target: levels.append(level) or contrast(self, hidden, level, target)
    )

    def timed(work: Callable[[], object]) -> float:
        levels.clear()
        work()
        return 1.0 + len(levels)

    monkeypatch.setattr(step, "timed", timed)
    settings = {
        "a": {"network.name": "tmca"}, "b": {"network.name": "tmca", "tmca.share": 1.0},
        "c": {"network.name": "tmca", "tmca.alignment": "off"}, "d": {"network.name": "tmca-ssa", "tmca.contrasted": "all"},
    }  # fmt: skip
    config = parse({"phantom.sites": 1, "phantom.cases": 8, "data.image_size": 32, "network.width": 16, "training.batch_size": 2})
    ratios = ablation._step_ratios(config, settings, repeats=2)
    assert ratios == pytest.approx({"a": 0.25 * 5 + 0.75, "b": 5, "c": 1, "d": 0.25 * 5 + 0.75})


def test_a_table_of_other_settings_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(tmp_path / "table", "--variants", "guide")
    for other in (["--set", "training.learning_rate=0.01"], ["--steps", "16"]):
        done = CliRunner().invoke(
            bench, ["ablation", "--out", str(tmp_path / "table"), "--steps", "8", "--seeds", "1", "--variants", "guide", *SMALL, *other]
        )
        assert done.exit_code != 0 and "other" in str(done.exception), done.exception


@pytest.mark.parametrize("wrong", [["--variants", "guide,gide"], ["--no-phantom"]])
def test_what_cannot_be_trained_is_said(tmp_path: Path, wrong: list[str]) -> None:
    done = CliRunner().invoke(bench, ["ablation", "--out", str(tmp_path), *wrong])
    assert done.exit_code != 0
    assert any(word in str(done.exception) for word in ("gide", "nothing to train on"))


def test_every_variant_is_a_valid_configuration_of_its_own() -> None:
    configs = [parse(dict(variant.settings)) for variant in VARIANTS]
    assert len({config.digest() for config in configs}) == len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert {config.network.name for config in configs} == set(NETWORKS.names())
