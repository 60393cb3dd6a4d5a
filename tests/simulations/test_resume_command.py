"""The command killed with its workers at work: they end with it, and the same command finishes the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = {
    "phantom.sites": 3, "phantom.cases": 12, "data.image_size": 32, "network.width": 16, "training.batch_size": 2,
    "training.epochs": 6, "federation.rounds": 4, "evaluation.bootstrap": 20,
}  # fmt: skip


def command(folder: Path) -> list[str]:
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "tmca_core.cli", "simulate", "--out", str(folder / "run"), *sets]


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def gone(pid: int) -> bool:
    """No such process, or one that has ended and only waits to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_with_its_workers_and_resumed(tmp_path: Path, how: signal.Signals) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A suite run in the background of a shell has SIGINT ignored, and children inherit that: a terminal's have it not.
    running = subprocess.Popen(command(tmp_path), env=environment, text=True, preexec_fn=heed_interrupts, **pipes)
    end = time.monotonic() + 120
    while not list((tmp_path / "run" / "checkpoints" / "pooled").glob("round-*")):
        assert running.poll() is None and time.monotonic() < end, running.communicate()
        time.sleep(0.05)
    workers = children(running.pid)
    assert workers
    busy = subprocess.run(command(tmp_path), env=environment, capture_output=True, text=True, check=False)
    assert busy.returncode == 2 and "another process is at work" in busy.stderr
    running.send_signal(how)
    _, said = running.communicate(timeout=30)
    if how != signal.SIGKILL:
        assert running.returncode == 130 and "Traceback" not in said, said
    end = time.monotonic() + 10
    while not all(gone(worker) for worker in workers):
        assert time.monotonic() < end, workers
        time.sleep(0.05)
    done = subprocess.run(command(tmp_path), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(summary["baselines"]["local"]) == {"phantom-00", "phantom-01", "phantom-02"}
    assert summary["baselines"]["pooled"] is not None
