"""Three tiny trainings whose losses are on record: a change of any of them is a change of method, and has to be meant.

Run this file to record them anew: python tests/tmca_core/training/test_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tmca_core.cases.sites import load_sites
from tmca_core.config import parse
from tmca_core.networks import build_network
from tmca_core.training.centralised import build_pipeline, concatenate
from tmca_core.training.loop import fit

RECORD = Path(__file__).with_name("golden.json")
STEPS = 8
SETTINGS = {
    "phantom.sites": 2, "phantom.cases": 8, "data.image_size": 64, "network.width": 32, "training.steps": 1, "federation.rounds": STEPS,
    "training.warmup": 0.25, "data.val_fraction": 0.0,
}  # fmt: skip
# The contrast on every step: by chance it would be taken on two of eight, and hardly at all by tmca-ssa, which places most reports itself.
CURVES: dict[str, dict[str, float]] = {"guide": {}, "tmca": {"tmca.share": 1.0}, "tmca-ssa": {}}


def losses(name: str, cache: Path) -> list[float]:
    """Loss of every step: one step a round."""
    config = parse(SETTINGS | CURVES[name] | {"network.name": name, "data.cache_dir": str(cache)})
    network = build_network(config)
    pipeline = build_pipeline(network, config)
    train = concatenate([site.train for site in load_sites(config).values()])
    state, found = None, []
    for round in range(1, STEPS + 1):
        result = fit(network, train, pipeline, config, round=round, site="all", state=state, device=torch.device("cpu"))
        state = result.state
        found.append(result.loss)
    return found


@pytest.mark.parametrize("name", CURVES)
def test_losses_are_those_on_record(name: str, tmp_path: Path) -> None:
    # Processors add in different orders: what that leaves after eight steps is far below what any change of method does.
    assert losses(name, tmp_path) == pytest.approx(json.loads(RECORD.read_text())[name], rel=2e-3)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {name: [round(loss, 6) for loss in losses(name, Path(folder))] for name in CURVES}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
