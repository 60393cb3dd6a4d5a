"""ε that each site has spent by now, worked out beside the requests: it takes seconds, and a page does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tmca_core.config import Config
from tmca_core.errors import TmcaError

Rounds = Mapping[int, Mapping[str, Any]]


@dataclass
class Spending:
    """The last ε by site that is worked out, and the one that is being worked out.

    Attributes:
        known: site → ε; `upto`: the round it is after.
    """

    known: Mapping[str, float] = field(default_factory=dict)
    upto: int = 0
    _asked: tuple[int, int] = (0, 0)
    _coming: Future[Mapping[str, float]] | None = None
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "spending"))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def after(self, config: Config, patients: Mapping[str, int | None], done: Rounds) -> Mapping[str, float]:
        """What is known; has the next figures worked out where rounds were added.

        Args:
            config: of a private run.
            patients: training patients by site; None: its policy keeps their number.
            done: records of the finished rounds.
        """
        with self._lock:
            if self._coming and self._coming.done():
                self.known, self.upto = self._coming.result(), self._asked[0]
                self._coming = None
            key = max(done, default=0), len(done)
            if self._coming is None and key != self._asked:
                self._asked = key
                self._coming = self._worker.submit(spent, config, dict(patients), dict(done))
            return self.known


def spent(config: Config, patients: Mapping[str, int | None], done: Rounds) -> dict[str, float]:
    """ε by site if every turn it was asked for was released; what its policy refused was not. Rounds done twice count in its own ledger."""
    from tmca_core.privacy.accounting import NoisySteps, epsilon
    from tmca_core.privacy.planning import mechanism_of

    turns: dict[str, int] = {}
    for record in done.values():
        asked = {*record.get("completed", ()), *record.get("failed", ()), *record.get("surplus", ())}
        for site in asked - {*record.get("refused", ())}:
            turns[site] = turns.get(site, 0) + 1
    found = {}
    for site, count in sorted(turns.items()):
        try:
            each = mechanism_of(config, patients.get(site) or 1)
            steps = NoisySteps(each.noise_multiplier, each.sample_rate, each.steps * count)
            found[site] = epsilon([steps], config.privacy.delta, coarse=True)
        except TmcaError:  # the settings allow no such figure for this site; the run itself says so
            continue
    return found
