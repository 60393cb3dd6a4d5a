"""A Flower user's way: `flwr build`, and `flwr run . --stream` from a copy of the repository's root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch

from tmca_core.run import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VALUES = {
    "phantom.sites": 3,
    "phantom.cases": 12,
    "data.image_size": 32,
    "network.width": 16,
    "network.heads": 2,
    "training.steps": 2,
    "training.batch_size": 4,
    "federation.rounds": 2,
    "federation.min_sites": 3,
    "evaluation.bootstrap": 20,
}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The root as a user has it, without what git does not track."""
    folder = tmp_path / "app"
    folder.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("server", "client", "tmca_core", "simulations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "flower").mkdir()
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def start_superlink(environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """What `flwr run` would start by itself and leave behind; ours, so that it can be ended. It runs in `folder`."""
    port = environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env=environment,
        stdout=(folder / "superlink.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return process
        except OSError:
            time.sleep(0.2)
    stop(process)
    raise AssertionError((folder / "superlink.log").read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that a test has started, with its children."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@pytest.fixture
def superlink(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    neutral = tmp_path / "neutral"
    neutral.mkdir()
    process = start_superlink(environment, neutral)
    yield neutral
    stop(process)


def run_config(values: dict[str, object]) -> str:
    return " ".join(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in values.items())


def flwr(arguments: list[str], app: Path, environment: dict[str, str], seconds: float) -> str:
    done = subprocess.run(
        [str(BIN / "flwr"), *arguments], cwd=app, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def in_process(values: dict[str, object], out: Path, app: Path, environment: dict[str, str]) -> None:
    """The same federation by the in-process engine, from the same copy of the code."""
    code = f"import pathlib, simulations.engine as e, tmca_core.config as c; e.simulate(c.parse({values!r}), pathlib.Path({str(out)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=out.parent, env={**environment, "PYTHONPATH": str(app)}, timeout=120, check=True)


def test_flwr_build_carries_all_that_the_apps_import(app: Path, environment: dict[str, str]) -> None:
    flwr(["build"], app, environment, 120)
    (archive,) = app.glob("*.fab")
    with zipfile.ZipFile(archive) as fab:
        names = set(fab.namelist())
    assert archive.stat().st_size < 10 * 1024**2
    for package in ("server", "client", "tmca_core"):
        carried = {path.relative_to(app).as_posix() for kind in ("*.py", "*.json") for path in (app / package).rglob(kind)}
        assert carried <= names, carried - names
    assert not any(name.startswith("simulations/") for name in names)


def test_flwr_run_completes_with_the_same_weights(app: Path, environment: dict[str, str], superlink: Path, tmp_path: Path) -> None:
    """Flower's default is 2 nodes, the phantom has 3 sites here: one node serves two of them."""
    values = {**VALUES, "data.cache_dir": str(tmp_path / "cache"), "simulation.out": str(tmp_path / "flower-run")}
    output = flwr(["run", ".", "--stream", "--run-config", run_config(values)], app, environment, 300)
    assert "round 2: Dice" in output, output
    assert output.count(f"run folder: {tmp_path / 'flower-run'}") == 2, output
    flower = Run(tmp_path / "flower-run").last_checkpoint()
    assert flower is not None, output
    assert flower.round == 2
    summary = Run(tmp_path / "flower-run").read_json("run.json")
    assert summary["faults"] == []
    assert len(summary["sites"]) == 3
    in_process({**VALUES, "data.cache_dir": str(tmp_path / "cache")}, tmp_path / "here", app, environment)
    here = Run(tmp_path / "here").last_checkpoint()
    assert here is not None
    for name, tensor in here.weights.items():
        torch.testing.assert_close(flower.weights[name], tensor, rtol=0, atol=1e-5)


def test_code_from_another_directory_is_noticed(app: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The package-name trap: a superlink started where another `client` lies. Its workers must not train unnoticed."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("client", "tmca_core"):
        shutil.copytree(app / name, trap / name)
    with (trap / "client" / "site.py").open("a") as file:
        file.write("\n# an older version\n")
    process = start_superlink(environment, trap)
    try:
        values = {**VALUES, "data.cache_dir": str(tmp_path / "cache"), "simulation.out": str(tmp_path / "trapped")}
        command = ["run", ".", "--stream", "--federation-config", "num-supernodes=3", "--run-config", run_config(values)]
        done = subprocess.run(
            [str(BIN / "flwr"), *command], cwd=app, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        stop(process)
    output = done.stdout + done.stderr
    run = Run(tmp_path / "trapped")
    # Either the workers took the submitted code after all, or they were refused; never silently the other code.
    if run.read_json("run.json"):
        assert run.read_json("run.json")["faults"] == []
    else:
        assert "runs other code than the server" in output, output
