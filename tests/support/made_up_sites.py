"""A grid of made-up sites whose every update is known, for tests of the round loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from server import rounds
from server.exchange import TensorArray
from simulations.inprocess import InProcessGrid
from tmca_core.config import Config
from tmca_core.digests import source_digest
from tmca_core.messages import ARRAYS, METRICS, SETTINGS, Hello, spec_digest, spec_of
from tmca_core.networks import Network, frozen_digest, shared_state
from tmca_core.run import Run
from tmca_core.training.scores import CaseScore, site_summary
from tmca_core.wire import tensors_of

NAMES = ("ghent", "hannover", "iowa")
CASES = {"ghent": 10, "hannover": 30, "iowa": 60}
HELD_OUT = {"val": 4, "test": 5}
ROOT = Path(rounds.__file__).parents[1]

Twist = Callable[[RecordDict], Any]


class Tiny(Network):
    """Two shared tensors, one frozen, one personal."""

    uses_text = False
    personal = ("norm.",)

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.a = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.b = nn.Parameter(torch.tensor(4.0))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.norm.weight)


def settings(**values: Any) -> Config:
    base = {"federation.rounds": 3, "federation.poll": 0.01, "federation.wait": 5.0, "evaluation.bootstrap": 0, "training.steps": 2}
    return Config().with_values(base | {key.replace("__", "."): value for key, value in values.items()})


class Sites:
    """A ClientApp whose site i moves every shared tensor by (i + 1)/10 a round; `twists` spoil single replies."""

    def __init__(self, config: Config, names: tuple[str, ...] = NAMES) -> None:
        self.config, self.names = config, names
        self.twists: dict[tuple[str, int], Twist] = {}
        self.hello: dict[str, dict[str, Any]] = {}
        self.turns: list[tuple[str, int]] = []
        self.seen: list[tuple[str, dict[str, Tensor]]] = []
        self.app = ClientApp()
        self.app.query()(self._query)
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def grid(self) -> InProcessGrid:
        return InProcessGrid(self.app, len(self.names))

    def _query(self, message: Message, context: Context) -> Message:
        site, network = self._site(context), Tiny()
        own = Hello(
            site=site,
            patients=CASES[site] // 2 + 4,
            train_patients=CASES[site] // 2,
            train_cases=CASES[site],
            val_cases=HELD_OUT["val"],
            test_cases=HELD_OUT["test"],
            skipped=1,
            config=self.config.digest(),
            network=spec_digest(spec_of(shared_state(network))),
            frozen=frozen_digest(network),
            code=source_digest(ROOT),
        ).as_values()
        change = self.hello.get(site, {})
        if "raise" in change:
            raise RuntimeError(change["raise"])
        return Message(RecordDict({SETTINGS: ConfigRecord({**own, **change})}), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        site, round = self._site(context), int(message.content[SETTINGS]["round"])
        self.turns.append((site, round))
        step = (NAMES.index(site) + 1) / 10
        arrays = ArrayRecord()
        for name, tensor in tensors_of(message.content[ARRAYS]).items():
            arrays[name] = TensorArray(torch.full_like(tensor, step))
        reply = RecordDict(
            {
                ARRAYS: arrays,
                SETTINGS: ConfigRecord({"round": round, "weight": CASES[site]}),
                # So few seconds that the answer takes longer.
                METRICS: MetricRecord({"loss": 0.5, "steps": 2, "cases": 16, "seconds": 1e-6}),
            }
        )
        twisted = self.twists.get((site, round), lambda content: content)(reply)
        return Message(twisted, reply_to=message) if isinstance(twisted, RecordDict) else twisted

    def _evaluate(self, message: Message, context: Context) -> Message:
        site = self._site(context)
        self.seen.append((site, {name: tensor.clone() for name, tensor in tensors_of(message.content[ARRAYS]).items()}))
        dice = 0.5 + NAMES.index(site) / 10
        split = str(message.content[SETTINGS]["split"])
        cases = range(HELD_OUT[split])
        scores = [CaseScore(f"{i}", f"p{i}", site, 5, 10, 10, dice, 0.3, 2.0, None, None, 0.7, {}) for i in cases]
        summary = site_summary(scores, bootstrap=0, seed=0)
        reply = RecordDict({METRICS: MetricRecord({**summary}), SETTINGS: ConfigRecord({"split": split})})
        twisted = self.twists.get((site, -1), lambda content: content)(reply)
        return Message(twisted, reply_to=message)

    def _site(self, context: Context) -> str:
        return self.names[int(context.node_config["partition-id"])]


def final_weights(out: Path) -> dict[str, Tensor]:
    last = Run(out).last_checkpoint()
    assert last is not None
    return last.weights


def moved(by: float) -> dict[str, Tensor]:
    start = Tiny().state_dict()
    return {"a": start["a"] + by, "b": start["b"] + by, "fixed": start["fixed"], "norm.weight": start["norm.weight"]}


def assert_weights(out: Path, by: float) -> None:
    torch.testing.assert_close(final_weights(out), moved(by))


# (10·0.1 + 30·0.2 + 60·0.3) / 100
A_ROUND = 0.25
