"""A deployment on this machine: one SuperLink, SuperNodes with folders of their own, and `flwr run`; each a process of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tmca_core.errors import ConfigError, FederationError

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
APP = ("pyproject.toml", "LICENSE", "README.md")
"""What Flower needs of the project beside its packages."""


def free_port() -> int:
    """A port that nobody listens on at this moment, and another one at every call."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


_GIVEN: set[int] = set()


def alive(folder: Path) -> dict[str, int]:
    """Name → process of those that `Processes` started below a folder and that still run, whoever started them."""
    found = {}
    for path in sorted(folder.glob("*/pid")):
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[path.parent.name] = int(lock.read())
    return found


def end_all(folder: Path, seconds: float = 20) -> list[str]:
    """End the processes below a folder with their children, at last by force; returns their names."""
    ended = list(alive(folder))
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in alive(folder).values():
            try:
                os.killpg(process, how)
            except ProcessLookupError:
                continue
        end = time.monotonic() + seconds
        while alive(folder) and time.monotonic() < end:
            time.sleep(0.1)
    return ended


class Processes:
    """Started processes, each in a folder of its own below `folder` with its log; `stop` ends them with their children."""

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
        """Start one of Flower's programs as another machine would: with a working folder and a Flower home of its own.

        It holds a lock on its file `pid` for as long as it lives, by which `end_all` knows it again.
        """
        cwd = self.folder / name
        cwd.mkdir(parents=True, exist_ok=True)
        environment = {**self.environment, "FLWR_HOME": str(cwd / "flower")}
        arguments = [str(BIN / command[0]), *command[1:]]
        with (cwd / "log").open("ab") as log, (cwd / "pid").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept: dict[str, Any] = {"pass_fds": (lock.fileno(),), "start_new_session": True}
            self.running[name] = subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, **kept)
            lock.write(str(self.running[name].pid))

    def logs(self) -> str:
        """The end of every log."""
        return "\n".join(f"--- {name}\n{(self.folder / name / 'log').read_text(errors='replace')[-3000:]}" for name in self.running)

    def stop(self) -> None:
        """End all, at last by force."""
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

    def superlink(self) -> int:
        """Start a SuperLink, and return its port once it answers.

        Raises:
            FederationError: it does not within a minute.
        """
        port = free_port()
        self.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        end = time.monotonic() + 60
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    return port
            except OSError:
                if time.monotonic() > end:
                    raise FederationError(f"the SuperLink does not answer.\n{self.logs()}") from None
                time.sleep(0.2)

    def supernode(self, name: str, port: int, node: Mapping[str, object], home: Path | None = None) -> None:
        """Start a hospital's SuperNode with its --node-config; with the site's `home` a worker of its own, which stays between messages."""
        config = " ".join(f'{key}="{value}"' for key, value in node.items())
        runtime = free_port()
        own = ("--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(runtime), "--node-config", config)
        if not home:
            self.start(name, "flower-supernode", *own)
            return
        self.start(name, "tmca", "deploy", "node", "--", *own, "--isolation", "process")
        self.start(f"{name}-worker", "tmca", "deploy", "work", "--home", str(home), "--runtime-api", f"127.0.0.1:{runtime}")

    def submit(self, port: int, values: Mapping[str, object], seconds: float = 900) -> tuple[int, str]:
        """Submit the app with a run-config and wait for its end, at most so many seconds: exit code, and everything that was said."""
        flat = {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}
        config = " ".join(f'{key}="{value}"' if isinstance(values[key], str) else f"{key}={value}" for key, value in flat.items())
        command = [str(BIN / "flwr"), "run", ".", "here", "--stream", "--run-config", config]
        where = {"cwd": self.app(), "env": {**self.environment, "FLWR_HOME": str(self._home(port))}}
        done = subprocess.run(command, **where, capture_output=True, text=True, timeout=seconds, check=False)  # type: ignore[call-overload]
        return done.returncode, done.stdout + done.stderr + self.logs()

    def app(self) -> Path:
        """A copy of the app as it is submitted."""
        app = self.folder / "app"
        if not app.exists():
            if missing := [file for file in APP if not (ROOT / file).exists()]:
                raise ConfigError(f"an app can be submitted from a copy of the sources only: {', '.join(missing)} not found in {ROOT}.")
            app.mkdir()
            for file in APP:
                shutil.copy(ROOT / file, app / file)
            for package in ("server", "client", "tmca_core"):
                shutil.copytree(ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
        return app

    def _home(self, port: int) -> Path:
        """A Flower home that knows the SuperLink as `here`."""
        home = self.folder / "flower"
        home.mkdir(exist_ok=True)
        entry = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (home / "config.toml").write_text(entry)
        return home
