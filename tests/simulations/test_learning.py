"""The science on a small scale: the federation learns, obeys the text, and an image-only network cannot follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.engine import simulate
from tmca_core.config import Config

pytestmark = pytest.mark.slow

LUNGS = Path(__file__).parents[2] / "../shared/data/cxr-lungs/cases.csv"


def test_real_lungs_follow_the_report_within_five_rounds(tmp_path: Path) -> None:
    if not LUNGS.exists():
        pytest.skip("the development data are not here")
    values = {"data.manifest": str(LUNGS.resolve()), "data.cache_dir": str(tmp_path / "cache"), "federation.rounds": 5}
    summary = simulate(Config().with_values(values), tmp_path / "run")
    assert summary["final"]["dice_image"] > 0.85
    assert summary["final"]["laterality_error"] < 0.05
    assert summary["counterfactual"]["swapped"] < 0.1


def test_an_image_only_network_stays_behind_on_the_phantom(tmp_path: Path) -> None:
    base = {"data.cache_dir": str(tmp_path / "cache"), "data.image_size": 96, "phantom.cases": 60, "federation.rounds": 5}
    guided = simulate(Config().with_values(base), tmp_path / "guide")
    blind = simulate(Config().with_values(base | {"network.name": "unet"}), tmp_path / "unet")
    assert guided["final"]["dice_image"] > blind["final"]["dice_image"] + 0.15
    assert guided["counterfactual"]["swapped"] < guided["counterfactual"]["true"] - 0.3
    assert blind["counterfactual"]["swapped"] == blind["counterfactual"]["true"]
