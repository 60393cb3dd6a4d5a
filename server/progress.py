"""What a run remembers besides its weights: counters, faults, the sites; it lies in every checkpoint and ends up in run.json."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from server.best import best_round
from server.fairness import fairness, site_dice
from server.private import private_summary
from tmca_core.config import Config
from tmca_core.errors import WeightsError
from tmca_core.messages import Hello
from tmca_core.training.scores import SiteSummary
from tmca_core.training.suspects import swapped_sides
from tmca_core.training.told import combine_told

# What run.json repeats of every round.
FAIRNESS = ("round", "dice_image", "worst_site", "worst_dice", "spread", "worst_decile")


@dataclass
class Progress:
    """Counters that go on where a resumed run stopped.

    Attributes:
        run: name of this run for the sites, so that one does not take up the optimiser state of another run.
        steps: mean local optimiser steps so far.
        history: one record a round. `faults`: every turn a site lost, and every reply that was refused.
        sites: run.json's entries by name.
        turns: seconds of every turn in training, by site. `late`: by how many seconds its late answers were late.
        norms: size of the last accepted updates (`server.screening.size_of`).
        contribution: Dice gained by having a site, by site, one figure a round in which that was measured.
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
    turns: dict[str, list[float]] = field(default_factory=dict)
    late: dict[str, list[float]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    contribution: dict[str, list[float]] = field(default_factory=dict)
    resumed_from: int | None = None
    _since: float = field(default_factory=time.perf_counter)

    @classmethod
    def new(cls) -> Progress:
        """Of a run that starts."""
        return cls(uuid.uuid4().hex[:12])

    @classmethod
    def from_values(cls, values: Mapping[str, Any], resumed_from: int) -> Progress:
        """Of a run that goes on.

        Raises:
            WeightsError: another version wrote the values.
        """
        known = {entry.name for entry in fields(cls)} - {"_since"}
        if wrong := sorted(known ^ values.keys()):
            raise WeightsError(
                f"the checkpoint of round {resumed_from} was written by another version of the program ({', '.join(wrong)} differ): "
                "go on with that version, or choose another --out."
            )
        return cls(**{**values, "resumed_from": resumed_from})

    def as_values(self) -> dict[str, Any]:
        """JSON values, copied: ten times as fast as `asdict`, which matters where a thousand sites are on record."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "_since"}
        copied: dict[str, Any] = json.loads(json.dumps(values))
        return copied

    def describe(self, hellos: Iterable[Hello]) -> None:
        """Note who the sites are."""
        for hello in hellos:
            self.sites[hello.site] = {
                "name": hello.site,
                "patients": hello.patients,
                "train_patients": hello.train_patients,
                "train_cases": hello.train_cases,
                "val_cases": hello.val_cases,
                "test_cases": hello.test_cases,
                "skipped": hello.skipped,
            }

    def count(self, site: str, up: int, down: int, seconds: float) -> None:
        """One site's turn."""
        self.bytes_up, self.bytes_down, self.site_rounds = self.bytes_up + up, self.bytes_down + down, self.site_rounds + 1
        self.turns.setdefault(site, []).append(round(seconds, 3))

    def rejections(self) -> dict[str, dict[str, int]]:
        """How many answers of a site were refused by the server, by kind; a turn lost in another way is none of them."""
        counts: dict[str, dict[str, int]] = {}
        for fault in self.faults:
            if fault["kind"] not in ("failed", "late", "refusal"):
                of_site = counts.setdefault(fault["site"], {})
                of_site[fault["kind"]] = of_site.get(fault["kind"], 0) + 1
        return {site: counts[site] for site in sorted(counts)}

    def stragglers(self) -> dict[str, dict[str, Any]]:
        """Seconds of a site's turns and their median, and how late its late answers were."""
        return {
            site: {
                "turns": self.turns.get(site, []),
                "median_seconds": statistics.median(self.turns[site]) if site in self.turns else None,
                "late": sum(fault["site"] == site and fault["kind"] == "late" for fault in self.faults),
                "late_by": self.late.get(site, []),
            }
            for site in sorted({*self.turns, *self.late, *(fault["site"] for fault in self.faults if fault["kind"] == "late")})
        }

    def add_seconds(self, kind: str, seconds: float) -> None:
        """Time spent on something."""
        self.seconds[kind] += seconds

    def tick(self) -> None:
        """Bring the total up to now."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._since
        self._since = now

    def summary(
        self, config: Config, engine: str, test: Mapping[str, SiteSummary], peak_rss_mb: float, asked: Mapping[str, list[int]]
    ) -> dict[str, Any]:
        """run.json. `baselines` is filled in by whoever trains them; `asked`: `server.private.asked_for`."""
        self.tick()
        last = self.history[-1]["round"] if self.history else 0
        best = best_round(self.history)
        final, counterfactual = combine_told(dict(sorted(test.items())), config.data.target_names)
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
            "best_round": best,
            "tested_round": best if config.federation.select == "best" and best is not None else last,
            "stopped_early": last if last < config.federation.rounds else None,
            "fairness": {**fairness(site_dice(test)), "rounds": [{key: record[key] for key in FAIRNESS} for record in self.history]},
            "contribution": {site: statistics.fmean(gains) for site, gains in sorted(self.contribution.items())},
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
            "rejections": self.rejections(),
            "stragglers": self.stragglers(),
            "suspects": swapped_sides({site: summary for site, summary in test.items() if "cases" in summary}),
            "skipped": sum(site["skipped"] or 0 for site in self.sites.values()),
            "privacy": private_summary(config, self.sites.values(), asked),
        }
