"""The same for machines: figures in Prometheus's text format, and a health check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.watch.sight import Sight, SiteSight
from server.watch.telling import short
from tmca_core.report.lenient import number

STATES = ("empty", "waiting", "running", "silent", "ended", "stopped")
MOST_SITES = 5000
"""So many sites have figures of their own; a hostile site that calls itself anew each time shall not fill somebody's database."""


def health(sight: Sight) -> dict[str, Any]:
    """Whether the run lives.

    Returns:
        `state`; `live`: it goes on or has ended well; `stalled`: nothing has happened for `stalled_after_seconds`.
    """
    return {
        "state": sight.state,
        "live": sight.state in ("waiting", "running"),
        "stalled": sight.state == "silent",
        "round": sight.news.round,
        "rounds": sight.rounds,
        "last_event_seconds": None if sight.age is None else round(sight.age, 3),
        "stalled_after_seconds": round(sight.patience, 3),
        "sites": {"known": len(sight.sites), "away": len(sight.away)},
    }


def exposition(sight: Sight) -> str:
    """All figures in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(sight))
    return generate_latest(registry).decode()


def label(name: str) -> str:
    """A site's name as the value of a label: no longer than a table's, and as different from others' as the names are."""
    text = short(name)
    return text if text == name else f"{text} {sha256(name.encode(errors='replace')).hexdigest()[:8]}"


class _Collector:
    def __init__(self, sight: Sight) -> None:
        self.sight = sight

    def collect(self) -> Iterator[Metric]:
        sight, last = self.sight, self.sight.last
        states = GaugeMetricFamily("tmca_run_state", "1 for the state that the run is in.", labels=["state"])
        for state in STATES:
            states.add_metric([state], float(state == sight.state))
        yield states
        yield _gauge("tmca_round", "The round that is being done, from 1.", sight.news.round)
        yield _gauge("tmca_rounds_planned", "Rounds that the run is to have.", sight.rounds)
        yield CounterMetricFamily("tmca_rounds_done", "Rounds that are done.", len(sight.news.done))
        if sight.news.done:
            seconds = sight.news.done[max(sight.news.done)].get("seconds")
            yield _gauge("tmca_round_duration_seconds", "How long the last round took.", seconds)
        yield _gauge("tmca_last_event_age_seconds", "Time since anything happened.", sight.age)
        yield _gauge("tmca_stalled", "1: nothing has happened for longer than it should.", float(sight.state == "silent"))
        yield _gauge("tmca_validation_dice_ratio", "Dice on all sites' validation cases, 0 to 1.", last.get("dice_image"))
        yield _gauge("tmca_worst_site_dice_ratio", "Dice of the worst site on its validation cases, 0 to 1.", last.get("worst_dice"))
        yield _gauge("tmca_sites_away", "Sites that are missing, late, paused or refuse.", len(sight.away))
        yield from self._sites()

    def _sites(self) -> Iterator[Metric]:
        rows = self.sight.sites[:MOST_SITES]
        gauges: list[tuple[str, str, Callable[[SiteSight], object]]] = [
            ("tmca_site_up", "1: the site does what it is asked; 0: it is missing, late, paused or refuses.", _up),
            ("tmca_site_last_seen_timestamp_seconds", "When the site last answered, since 1970.", lambda row: row.news.seen),
            ("tmca_site_dice_ratio", "The site's last validation Dice, 0 to 1.", lambda row: row.dice),
            ("tmca_site_epsilon", "Privacy that the site has spent in this run.", lambda row: row.epsilon),
        ]
        counters: list[tuple[str, str, Callable[[SiteSight], float]]] = [
            ("tmca_site_turns", "Updates of the site that were taken.", lambda row: len(row.news.turns)),
            ("tmca_site_training_seconds", "Time of the site's turns.", lambda row: sum(row.news.seconds.values())),
            ("tmca_site_sent_bytes", "Bytes from the site.", lambda row: row.news.up),
            ("tmca_site_received_bytes", "Bytes to the site.", lambda row: row.news.down),
        ]
        for name, told, value in gauges:
            gauge = GaugeMetricFamily(name, told, labels=["site"])
            for row in rows:
                if (found := number(value(row))) is not None:
                    gauge.add_metric([label(row.news.name)], found)
            yield gauge
        for name, told, count in counters:
            counter = CounterMetricFamily(name, told, labels=["site"])
            for row in rows:
                counter.add_metric([label(row.news.name)], count(row))
            yield counter
        faults = CounterMetricFamily("tmca_site_faults", "Turns lost and answers refused, by kind.", labels=["site", "kind"])
        for row in rows:
            for kind, times in sorted(row.news.faults.items()):
                faults.add_metric([label(row.news.name), label(kind)], times)
        yield faults


def _up(row: SiteSight) -> float:
    return float(row.tone not in ("bad", "wait"))


def _gauge(name: str, told: str, value: object) -> Metric:
    """A gauge; without its sample where the value is not known."""
    gauge = GaugeMetricFamily(name, told)
    if (found := number(value)) is not None:
        gauge.add_metric([], found)
    return gauge
