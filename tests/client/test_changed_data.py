"""A hospital's manifest that changes or vanishes in the middle of a run: one line for the server, and recovery once it is back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.workspace import open_workspace
from tmca_core.cases.phantom import write
from tmca_core.config import Config
from tmca_core.messages import SETTINGS


@pytest.fixture
def config() -> Config:
    return Config().with_values({"data.image_size": 32, "network.width": 16, "network.heads": 2})


def answer(config: Config, node: dict[str, str], kind: str = "train", round: int = 2, run: str = "0f") -> str:
    """The reason why a message without weights is refused, as a process started for it gives it."""
    open_workspace.cache_clear()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    content = RecordDict({SETTINGS: ConfigRecord({"round": round, "run": run, "place": 0, "split": "val"})})
    message = Message(content, dst_node_id=2, message_type=kind)
    message.metadata.__dict__["_message_id"] = "1"
    reply = client.app.make_app(config)(message, Context(1, 2, dict(node), RecordDict(), {}))
    assert reply.has_error()
    return str(reply.error.reason)


def test_changed_and_vanished_data(config: Config, tmp_path: Path) -> None:
    manifest = write(tmp_path / "data", sites=1, cases=12, seed=0, size=32)
    node = {"manifest": str(manifest), "state": str(tmp_path / "state"), "cache": str(tmp_path / "cache")}
    complete = "FederationError: the server's message holds no 'arrays'."
    assert answer(config, node) == complete
    text = manifest.read_text()
    lines = text.splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    assert answer(config, node).startswith("FederationError: the site's cases are not those that this run began with (")
    manifest.unlink()
    assert answer(config, node) == "ConfigError: details are in the site's own log"
    manifest.write_text(text)
    assert answer(config, node) == complete


@pytest.mark.parametrize(("kind", "round"), [("train", 0), ("train", 31), ("train", 10**12), ("evaluate", 31)])
def test_a_round_that_the_run_has_not_is_refused(config: Config, tmp_path: Path, kind: str, round: int) -> None:
    """The round decides which of the site's own files are dropped."""
    config = config.with_values({"federation.rounds": 30, "federation.algorithm": "ditto"})
    manifest = write(tmp_path / "data", sites=1, cases=12, seed=0, size=32)
    node = {"manifest": str(manifest), "state": str(tmp_path / "state"), "cache": str(tmp_path / "cache")}
    first = 1 if kind == "train" else 0
    assert answer(config, node, kind, round) == f"FederationError: the server names round {round}; this run has rounds {first} to 30."


def test_only_the_newest_runs_of_a_site_are_kept(config: Config, tmp_path: Path) -> None:
    from client.site import KEPT_RUNS

    manifest = write(tmp_path / "data", sites=1, cases=12, seed=0, size=32)
    node = {"manifest": str(manifest), "state": str(tmp_path / "state"), "cache": str(tmp_path / "cache")}
    answer(config, node)
    (folder,) = (path.parent for path in (tmp_path / "state").glob("*/0f"))
    (folder / "notes").mkdir()  # somebody else's
    for i in range(KEPT_RUNS + 2):
        (folder / f"a{i:x}").mkdir()
        os.utime(folder / f"a{i:x}", (1000 + i, 1000 + i))
    answer(config, node)
    assert len(list(folder.iterdir())) == KEPT_RUNS + 4  # nothing is new, nothing is dropped
    answer(config, node, run="ff")
    left = {path.name for path in folder.iterdir()}
    assert left == {"notes", "0f", "ff", *(f"a{i:x}" for i in range(4, KEPT_RUNS + 2))}
