"""A disk that is full, for real (a limit on the size of files), and a folder that is none: one clear error, nothing half-written counts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from made_up_sites import A_ROUND, Sites, Tiny, assert_weights, settings

from server import rounds
from server.app import federate
from tmca_core.config import Config
from tmca_core.errors import StorageError
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def run_with_limit(pipe: Connection, config: Config, out: Path, limit: int, after: int) -> None:
    """In a process of its own: no file may grow above `limit` bytes once round `after` is over."""
    done = 0

    def watch(event: object) -> None:
        nonlocal done
        done += isinstance(event, dict) and event["event"] == "round"
        if done == after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    try:
        federate(Sites(config).grid(), config, out, watch)
        pipe.send("done")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("keep", ["off", "on"])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(tmp_path: Path, keep: str) -> None:
    config = settings(federation__rounds=4, federation__keep_replies=keep)
    out = tmp_path / "run"
    here, there = multiprocessing.Pipe()
    # 60 bytes hold no safetensors file, and metrics.jsonl is longer already.
    process = multiprocessing.get_context("fork").Process(target=run_with_limit, args=(there, config, out, 60, 2))
    process.start()
    assert here.poll(60)
    said = here.recv()
    process.join(20)
    assert process.exitcode == 0
    assert said.startswith(f"StorageError: cannot write {out}"), said
    assert "File too large" in said or "os error 27" in said, said
    # The second round's checkpoint may still have been under way when the disk was full.
    kept = Run(out).checkpoints()
    assert [path.name for path in kept] in (["round-000", "round-001"], ["round-000", "round-001", "round-002"])
    assert any(f"{path.name} is kept whole in {out / 'checkpoints'}; make room" in said for path in kept[1:]), said
    last = len(kept) - 1
    assert_weights(out, last * A_ROUND)
    summary = federate(Sites(config).grid(), config, out, None)
    assert summary["resumed_from"] == last
    assert_weights(out, 4 * A_ROUND)


@pytest.mark.parametrize("spot", ["model.safetensors", "training.safetensors", "state.json"])
def test_a_checkpoint_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: str) -> None:
    config = settings(federation__rounds=2, training__ema=0.9)
    out = tmp_path / "run"
    federate(Sites(config).grid(), config, out, None)
    shutil.rmtree(out / "checkpoints" / "round-002")
    from tmca_core import run as module

    real = module._write_checkpoint

    def fail(checkpoint: module.Checkpoint, folder: Path) -> None:
        real(checkpoint, folder)
        (folder / spot).unlink()
        raise OSError(28, "No space left on device", str(folder / spot))

    monkeypatch.setattr(module, "_write_checkpoint", fail)
    with pytest.raises(StorageError, match=r"No space left on device.*round-001 is kept whole"):
        federate(Sites(config).grid(), config, out, None)
    monkeypatch.undo()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["round-000", "round-001"]


def test_a_run_folder_below_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*Not a directory.*No round is kept yet"):
        federate(Sites(settings()).grid(), settings(), tmp_path / "file" / "run", None)


@pytest.mark.skipif(os.geteuid() == 0 or sys.platform != "linux", reason="the superuser writes everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        federate(Sites(settings()).grid(), settings(), tmp_path / "locked" / "run", None)


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path: Path) -> None:
    config = settings(federation__rounds=1)
    out = tmp_path / "run"
    federate(Sites(config).grid(), config, out, None)
    final = out / "checkpoints" / "round-001"
    final.rename(final.with_name(".round-001.1.tmp"))
    (final.with_name(".round-001.1.tmp") / "state.json").unlink()
    federate(Sites(config).grid(), config, out, None)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["round-000", "round-001"]
    assert_weights(out, A_ROUND)
