"""What a run remembers besides its weights: counters, faults, the sites; it lies in every checkpoint and ends up in run.json."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tmca_core.config import Config
from tmca_core.messages import Hello
from tmca_core.training.scores import SiteSummary, combine


@dataclass
class Progress:
    """Counters that go on where a resumed run stopped.

    Attributes:
        run: name of this run for the sites, so that one does not take up the optimiser state of another run.
        steps: mean local optimiser steps so far.
        history: one record a round. `faults`: every turn a site lost.
        sites: run.json's entries by name.
        seconds: `training`: the sites' own, summed (sites that train at the same time add up); `communication`: wall time of
            the training phases that is neither that nor aggregation; `aggregation`, `evaluation`: wall; `total`: wall.
    """

    run: str
    steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    site_rounds: int = 0
    full_state: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("total", "training", "communication", "aggregation", "evaluation"), 0.0)
    )
    resumed_from: int | None = None
    _since: float = field(default_factory=time.perf_counter)

    @classmethod
    def new(cls) -> Progress:
        """Of a run that starts."""
        return cls(uuid.uuid4().hex[:12])

    @classmethod
    def from_values(cls, values: Mapping[str, Any], resumed_from: int) -> Progress:
        """Of a run that goes on."""
        return cls(**{**values, "resumed_from": resumed_from})

    def as_values(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        del values["_since"]
        return values

    def describe(self, hellos: Iterable[Hello]) -> None:
        """Note who the sites are."""
        for hello in hellos:
            self.sites[hello.site] = {
                "name": hello.site,
                "patients": hello.patients,
                "train_cases": hello.train_cases,
                "val_cases": hello.val_cases,
                "test_cases": hello.test_cases,
                "skipped": hello.skipped,
            }

    def count(self, up: int, down: int) -> None:
        """One site's turn."""
        self.bytes_up, self.bytes_down, self.site_rounds = self.bytes_up + up, self.bytes_down + down, self.site_rounds + 1

    def add_seconds(self, kind: str, seconds: float) -> None:
        """Time spent on something."""
        self.seconds[kind] += seconds

    def tick(self) -> None:
        """Bring the total up to now."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._since
        self._since = now

    def summary(self, config: Config, engine: str, test: Mapping[str, SiteSummary], peak_rss_mb: float) -> dict[str, Any]:
        """run.json. `baselines` is filled in by whoever trains them."""
        self.tick()
        final, counterfactual = combine(dict(sorted(test.items())), config.data.target_names)
        turns = max(1, self.site_rounds)
        return {
            "schema": 1,
            "network": config.network.name,
            "engine": engine,
            "algorithm": config.federation.algorithm,
            "seed": config.seed,
            "rounds": config.federation.rounds,
            "sites": [self.sites[name] for name in sorted(self.sites)],
            "final": final,
            "counterfactual": counterfactual,
            "baselines": {"pooled": None, "local": {}},
            "bytes": {
                "up_per_site_round": round(self.bytes_up / turns),
                "down_per_site_round": round(self.bytes_down / turns),
                "full_state": self.full_state,
            },
            "seconds": self.seconds,
            "peak_rss_mb": peak_rss_mb,
            "resumed_from": self.resumed_from,
            "faults": self.faults,
            "skipped": sum(site["skipped"] for site in self.sites.values()),
            "privacy": None,
        }
