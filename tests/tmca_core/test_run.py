import json
from pathlib import Path

import pytest
import torch

from tmca_core.config import parse
from tmca_core.errors import ConfigError, WeightsError
from tmca_core.run import Checkpoint, Run, load_checkpoint


def test_run_resumes_with_the_same_configuration_and_refuses_another(tmp_path: Path) -> None:
    config = parse({"training.epochs": 3})
    Run.create(tmp_path / "a", config)
    assert Run.create(tmp_path / "a", config).config() == config
    with pytest.raises(ConfigError, match=r"training\.epochs was 3, is 4"):
        Run.create(tmp_path / "a", config.with_values({"training.epochs": 4}))


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty"):
        Run.create(tmp_path, parse({}))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_torn_last_event_is_passed_over_and_later_events_are_whole(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", parse({}))
    run.log("round", round=1)
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "round", "rou')
    run.log("round", round=2)
    assert [e["round"] for e in run.events("round")] == [1, 2]


def test_checkpoints_come_back_exactly_and_old_ones_can_be_let_go(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", parse({}))
    for round in (1, 2, 10):
        run.save_checkpoint(Checkpoint(round, {"w": torch.full((2, 2), float(round))}, {"best": 0.5}, {"m": torch.ones(1)}), keep=2)
    assert [p.name for p in run.checkpoints()] == ["round-002", "round-010"]
    last = run.last_checkpoint()
    assert last is not None
    assert (last.round, last.state, last.weights["w"][0, 0].item(), last.training["m"].item()) == (10, {"best": 0.5}, 10.0, 1.0)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", parse({}))
    folder = run.save_checkpoint(Checkpoint(1, {"w": torch.ones(100)}, {}))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="round-001"):
        load_checkpoint(folder)


def test_half_written_checkpoints_are_never_taken_for_whole_ones(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", parse({}))
    run.save_checkpoint(Checkpoint(1, {"w": torch.ones(1)}, {}))
    (run.folder / "checkpoints" / ".round-002.77.tmp").mkdir()
    last = run.last_checkpoint()
    assert last is not None and last.round == 1


def test_json_documents_refuse_nan(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", parse({}))
    run.write_json("run.json", {"a": 1})
    with pytest.raises(ValueError):
        run.write_json("run.json", {"a": float("nan")})
    assert json.loads((run.folder / "run.json").read_text()) == {"a": 1}
