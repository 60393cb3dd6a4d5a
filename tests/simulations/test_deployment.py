"""A real deployment: one SuperLink and two SuperNodes, each a process of its own with its own manifest on its own disk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tmca_core.cases.phantom import write
from tmca_core.run import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROUNDS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """Processes started by a test, ended with their children when it is over."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, *command: str) -> None:
        cwd = self.folder / name
        cwd.mkdir()
        log = (cwd / "log").open("wb")
        # A Flower home of its own: every process is another machine.
        environment = {**self.environment, "FLWR_HOME": str(cwd / "flower")}
        arguments = [str(BIN / command[0]), *command[1:]]
        self.running[name] = subprocess.Popen(
            arguments, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{(self.folder / name / 'log').read_text(errors='replace')[-3000:]}" for name in self.running)

    def stop(self) -> None:
        for how in (signal.SIGTERM, signal.SIGKILL):
            for process in self.running.values():
                try:
                    os.killpg(process.pid, how)
                except ProcessLookupError:
                    continue
            for process in self.running.values():
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    continue


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.stop()


def test_two_hospitals_train_and_converge(processes: Processes, tmp_path: Path) -> None:
    hospitals = ("ghent", "hannover")
    manifests = {name: write(tmp_path / f"data-{name}", sites=1, cases=24, seed=seed, size=64) for seed, name in enumerate(hospitals)}
    port = free_port()
    processes.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    end = time.monotonic() + 60
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
        except OSError:
            assert time.monotonic() < end, processes.logs()
            time.sleep(0.2)
    for name in hospitals:
        node = f'manifest="{manifests[name]}" site="{name}" state="{tmp_path / f"state-{name}"}" cache="{tmp_path / f"cache-{name}"}"'
        command = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()), "--node-config", node)
        processes.start(name, *command)
    app = tmp_path / "app"
    app.mkdir()
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, app / file)
    for package in ("server", "client", "tmca_core"):
        shutil.copytree(ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "flower"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    values = {
        "data.image_size": 64,
        "data.cache_dir": str(tmp_path / "servers-cache"),
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 16,
        "training.batch_size": 6,
        "training.learning_rate": 0.003,
        "federation.rounds": ROUNDS,
        "federation.min_sites": 2,
        "federation.wait": 120.0,
        "evaluation.every": ROUNDS,
        "evaluation.bootstrap": 20,
        "simulation.out": str(tmp_path / "run"),
    }
    config = " ".join(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in values.items())
    command = [str(BIN / "flwr"), "run", ".", "here", "--stream", "--run-config", config]
    done = subprocess.run(command, cwd=app, env=processes.environment, capture_output=True, text=True, timeout=420, check=False)
    output = done.stdout + done.stderr + processes.logs()
    assert done.returncode == 0, output
    run = Run(tmp_path / "run")
    summary = run.read_json("run.json")
    assert summary, output
    assert summary["engine"] == "deployment"
    assert [site["name"] for site in summary["sites"]] == list(hospitals)
    assert summary["faults"] == [], output
    assert set(summary["final"]["per_site"]) == set(hospitals)
    # Each hospital's images and token features went where the hospital said, not where the run did.
    assert not (tmp_path / "servers-cache" / "decoded").exists()
    assert all(list((tmp_path / f"cache-{name}" / "decoded").iterdir()) for name in hospitals)
    losses = {(event["site"], event["round"]): event["loss"] for event in run.events("site_train")}
    for name in hospitals:
        assert losses[name, ROUNDS] < losses[name, 1], losses
        # Its optimiser state lies on its own disk and survived the end of each ClientApp process.
        assert [path.name for path in sorted((tmp_path / f"state-{name}").rglob("*.safetensors"))] == [
            f"round-{ROUNDS - 1:03d}.safetensors",
            f"round-{ROUNDS:03d}.safetensors",
        ]
