"""A hospital's node with a policy and a ledger, and a server's messages to it: what goes through the client's public door."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.workspace import open_workspace
from server.exchange import packed
from tmca_core.cases.phantom import write
from tmca_core.config import Config
from tmca_core.messages import ARRAYS, SETTINGS, Hello
from tmca_core.networks import build_network, shared_state
from tmca_core.privacy.ledger import Ledger

POLICY = """
[privacy]
epsilon = {epsilon}
min_patients = 5
max_sample_rate = 0.5
min_noise_multiplier = 0.8
[metrics]
allowed = ["dice_image", "loss"]
round_to = 0.05
min_cases = {min_cases}
"""


def private(**values: Any) -> Config:
    """A tiny private run that a policy like `POLICY` lets in; `a__b=c` sets a.b."""
    base = {
        "data.image_size": 32,
        "network.width": 16,
        "network.heads": 2,
        "training.steps": 2,
        "training.batch_size": 4,
        "federation.rounds": 9,
        "federation.weighting": "uniform",
        "evaluation.bootstrap_rounds": 20,
        "privacy.enabled": True,
        "privacy.noise_multiplier": 1.0,
        "privacy.sample_rate": 0.3,
    }
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})


@dataclass(frozen=True)
class Hospital:
    """One hospital's files in a folder, and its node-config. Of 24 cases, a patient each, 16 train, 3 validate and 5 test."""

    folder: Path
    manifest: Path

    @classmethod
    def make(cls, folder: Path, *, cases: int = 24, epsilon: float = 50.0, min_cases: int = 2, more: str = "") -> Hospital:
        manifest = write(folder / "data", sites=1, cases=cases, seed=0, size=32)
        held_out = ["val"] * (cases // 8) + ["test"] * (cases // 5 + 1)
        splits = ["train"] * (cases - len(held_out)) + held_out
        rewrite(manifest, lambda k, row: {**row, "patient_id": f"patient-{k}", "split": splits[k]})
        (folder / "site.toml").write_text(POLICY.format(epsilon=epsilon, min_cases=min_cases) + more)
        Ledger.create(folder / "ledger")
        return cls(folder, manifest)

    @property
    def node(self) -> dict[str, Any]:
        names = {"manifest": str(self.manifest), "policy": str(self.folder / "site.toml")}
        return {**names, "site": "ghent", "state": str(self.folder / "state"), "cache": str(self.folder / "cache")}

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.folder / "ledger")

    def kinds(self) -> list[str]:
        """What the ledger says after its creation."""
        return [entry["kind"] for entry in self.ledger.read().entries[1:]]

    def decoded(self) -> bool:
        """Whether any case has been read."""
        return (self.folder / "cache" / "decoded").exists()

    def answer(
        self,
        config: Config,
        kind: str,
        *,
        fresh: bool = True,
        sent: dict[str, Any] | None = None,
        node: Any = None,
        weights: Any = None,
        **fields: Any,
    ) -> Message:
        """The reply to a server's message, as a process started for it gives it; with the run-config as `sent` over Flower where given."""
        if fresh:
            open_workspace.cache_clear()
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        said = {"run": "0f", "place": 0, "counted": 0, **fields}
        content = RecordDict({SETTINGS: ConfigRecord(said)})
        if kind != "query":
            content[ARRAYS] = packed(weights or shared_state(build_network(config)))
        message = Message(content, dst_node_id=2, message_type=kind)
        message.metadata.__dict__["_message_id"] = "1"
        app = client.app.make_app(config if sent is None else None)
        return app(message, Context(1, 2, dict(self.node if node is None else node), RecordDict(), sent or {}))

    def train(self, config: Config, round: int = 1, **fields: Any) -> Message:
        return self.answer(config, "train", round=round, **fields)

    def evaluate(self, config: Config, round: int = 1, split: str = "val", **fields: Any) -> Message:
        return self.answer(config, "evaluate", round=round, split=split, **fields)

    def hello(self, config: Config, **fields: Any) -> Hello:
        return Hello.from_values(self.answer(config, "query", **fields).content.config_records[SETTINGS])


def rewrite(manifest: Path, change: Callable[[int, dict[str, str]], dict[str, str]]) -> None:
    """Change every row of a manifest; `change` takes its number and the row."""
    with manifest.open() as file:
        rows = [change(k, row) for k, row in enumerate(csv.DictReader(file))]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def reason(reply: Message) -> str:
    """Why a reply is an error."""
    assert reply.has_error(), reply
    return str(reply.error.reason)


def plain(**values: Any) -> Config:
    """As `private`, without privacy."""
    return private(privacy__enabled=False, **values)
