"""A grid of made-up sites that mask: the real half of a site, around updates that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from made_up_sites import ROOT, Tiny

from client import secure
from client.door import Door
from server.exchange import TensorArray
from simulations.inprocess import InProcessGrid, Weather
from tmca_core.config import Config
from tmca_core.digests import source_digest
from tmca_core.messages import ARRAYS, METRICS, SETTINGS, Hello, spec_digest, spec_of
from tmca_core.networks import frozen_digest, shared_state
from tmca_core.training.scores import CaseScore, site_summary

NAMES = ("aarhus", "berlin", "cork", "delft", "essen")
STAGES = ("keys", "shares", "train", "agree", "unmask")

Change = Callable[[dict[str, Any]], Any]


def settings(**values: Any) -> Config:
    base = {
        "federation.rounds": 1, "federation.poll": 0.01, "federation.wait": 5.0, "evaluation.bootstrap": 0, "training.steps": 2,
        "federation.secure": True, "federation.max_norm_ratio": 0.0, "federation.weighting": "uniform", "federation.secure_range": 1.0,
    }  # fmt: skip
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})


class MaskedSites:
    """Site i moves every shared number by (i + 1)/10 a round.

    Attributes:
        gone: (site, stage) at which a site does not answer.
        steps: moves of sites other than the usual.
        weights: what a site is sent to train on in the place of the round's weights, by name.
        on_request: stage → changes the fields of a message before its site reads them; they hold the name of the site as "site".
        on_answer: (site, stage) → changes the fields of an answer.
        asked: every (site, stage) that came.
        sent: what the server got to see in the place of updates.
    """

    def __init__(self, config: Config, folder: Path, names: tuple[str, ...] = NAMES) -> None:
        self.config, self.folder, self.names = config, folder, names
        self.gone: set[tuple[str, str]] = set()
        self.steps: dict[str, float] = {}
        self.weights: dict[str, ArrayRecord] = {}
        self.on_request: dict[str, Change] = {}
        self.on_answer: dict[tuple[str, str], Change] = {}
        self.asked: list[tuple[str, str]] = []
        self.sent: dict[str, torch.Tensor] = {}
        self.app = ClientApp()
        self.app.query()(self._query)
        self.app.query("secure")(self._secure)
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def grid(self, weather: Weather | None = None) -> InProcessGrid:
        return InProcessGrid(self.app, len(self.names), weather)

    def _query(self, message: Message, context: Context) -> Message:
        network = Tiny()
        digests = self.config.digest(), spec_digest(spec_of(shared_state(network))), frozen_digest(network), source_digest(ROOT)
        hello = Hello(self._name(context), 9, 5, 10, 4, 5, 0, *digests)
        return Message(RecordDict({SETTINGS: ConfigRecord(hello.as_values())}), reply_to=message)

    def _secure(self, message: Message, context: Context) -> Message:
        site, stage = self._site(context), str(message.content[SETTINGS]["stage"])
        content = self._arrived(site.name, stage, message.content)
        answer = secure.answer(site, content, context.node_config)
        self.on_answer.get((site.name, stage), lambda fields: None)(answer[SETTINGS])
        return Message(answer, reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        site = self._site(context)
        content = self._arrived(site.name, "train", message.content)
        step = self.steps.get(site.name, (self.names.index(site.name) + 1) / 10)
        moved = {name: torch.full_like(tensor, step) for name, tensor in shared_state(Tiny()).items()}
        tensors, self.unsent = secure.masked(site, content, moved, {})
        arrays = ArrayRecord()
        for name, tensor in tensors.items():
            arrays[name] = TensorArray(tensor)
            self.sent[site.name] = tensor
        fields = ConfigRecord({"round": content[SETTINGS]["round"], "weight": 1})
        metrics = MetricRecord({"loss": 0.5, "steps": 2, "cases": 16, "seconds": 1e-6})
        self.on_answer.get((site.name, "train"), lambda fields: None)(fields)
        return Message(RecordDict({ARRAYS: arrays, SETTINGS: fields, METRICS: metrics}), reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        split, name = str(message.content[SETTINGS]["split"]), self._name(context)
        cases = range({"val": 4, "test": 5}[split])
        scores = [CaseScore(f"{i}", f"p{i}", name, 5, 10, 10, 0.5, 0.3, 2.0, None, None, 0.7, {}) for i in cases]
        summary = site_summary(scores, bootstrap=0, seed=0)
        return Message(RecordDict({METRICS: MetricRecord({**summary}), SETTINGS: ConfigRecord({"split": split})}), reply_to=message)

    def _arrived(self, name: str, stage: str, content: RecordDict) -> RecordDict:
        self.asked.append((name, stage))
        if (name, stage) in self.gone:
            raise ConnectionError("the line is dead")
        fields = {**content[SETTINGS], "site": name}
        self.on_request.get(stage, lambda fields: None)(fields)
        arrays = {ARRAYS: self.weights.get(name, content[ARRAYS])} if ARRAYS in content else {}
        return RecordDict({SETTINGS: ConfigRecord(fields), **arrays})

    def _site(self, context: Context) -> Any:
        return SimpleNamespace(
            name=self._name(context), state=self.folder, durable=False, workspace=SimpleNamespace(config=self.config), door=Door(),
            data=SimpleNamespace(),
        )  # fmt: skip

    def _name(self, context: Context) -> str:
        return self.names[int(context.node_config["partition-id"])]
