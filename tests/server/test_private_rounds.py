"""What the server says of a private run's ε, where rounds were done again, ended in failure, or were refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from made_up_sites import CASES, NAMES, Sites, Tiny, settings

from server import rounds
from server.app import federate
from server.private import asked_for
from tmca_core.config import Config
from tmca_core.errors import FederationError
from tmca_core.messages import METRICS, REFUSED, SETTINGS
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.run import Run


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def private(**values: Any) -> Config:
    base = {"privacy__enabled": True, "privacy__noise_multiplier": 2.0, "privacy__sample_rate": 0.5, "federation__rounds": 2}
    return settings(**{**base, "federation__max_norm_ratio": 0.0, **values})


class Noised(Sites):
    """The made-up sites without plain figures; `spoils` replaces the reply of a site in its n-th turn."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.spoils: dict[tuple[str, int], Any] = {}

    def _train(self, message: Message, context: Any) -> Message:
        reply = super()._train(message, context)
        site = self._site(context)
        spoilt = self.spoils.get((site, [name for name, _ in self.turns].count(site)))
        if isinstance(spoilt, BaseException):
            raise spoilt
        if spoilt is not None:
            return Message(spoilt, reply_to=message)
        content: RecordDict = reply.content
        content[METRICS] = MetricRecord({"steps": 2})
        content[SETTINGS]["weight"] = CASES[site]
        return reply


def spent(rounds: int) -> float:
    return epsilon([NoisySteps(2.0, 0.5, 2 * rounds)], 1e-5)


def test_rounds_that_crashed_or_failed_are_in_run_json(tmp_path: Path) -> None:
    """Round 1 is answered by all; round 2 by one before the server is killed, by two of three in an attempt that fails, then by all."""
    config = private(federation__min_sites=3)
    sites, out = Noised(config), tmp_path / "run"
    sites.spoils = {(NAMES[1], 2): KeyboardInterrupt(), (NAMES[2], 2): ConnectionError("the line is dead")}
    with pytest.raises(KeyboardInterrupt):
        federate(sites.grid(), config, out, None)
    with pytest.raises(FederationError, match="2 usable updates, 3 are needed"):
        federate(sites.grid(), config, out, None)
    stated = federate(sites.grid(), config, out, None)["privacy"]
    assert asked_for(Run(out), config) == {name: [1, 2, 2, 2] for name in NAMES}
    assert stated["epsilon"] == pytest.approx(dict.fromkeys(NAMES, spent(4)))
    assert stated["steps"] == 8


def test_a_turn_that_was_refused_costs_nothing(tmp_path: Path) -> None:
    config = private()
    sites = Noised(config)
    sites.spoils = {(NAMES[1], 2): Error(REFUSED, "PolicyRefusal: the hospital's budget")}
    stated = federate(sites.grid(), config, tmp_path / "run", None)["privacy"]
    assert stated["epsilon"] == pytest.approx({NAMES[0]: spent(2), NAMES[1]: spent(1), NAMES[2]: spent(2)})
