"""A hospital's manifest that changes or vanishes in the middle of a run: one line for the server, and recovery once it is back."""

from __future__ import annotations

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


def answer(config: Config, node: dict[str, str]) -> str:
    """The reason why a train message without weights is refused, as a process started for it gives it."""
    open_workspace.cache_clear()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    content = RecordDict({SETTINGS: ConfigRecord({"round": 2, "run": "0f", "place": 0})})
    message = Message(content, dst_node_id=2, message_type="train")
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
