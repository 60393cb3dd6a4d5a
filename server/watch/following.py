"""Follows the run's metrics.jsonl while somebody else writes it: events, as what is known now.

A resumed run repeats the round that was cut off; what is told of it later replaces what was told before.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tmca_core.report.lenient import mapping, number

ARM = "federated"
MOST_FAULTS = 500
_FILE = "metrics.jsonl"


@dataclass
class SiteNews:
    """What has been heard of one site.

    Attributes:
        seen: moment of its last answer of any kind, seconds since 1970.
        turns: rounds in which its update was taken; `seconds` of training by round, as it says or as was waited.
        dice: mean Dice on its validation cases by round; `tested`: on its test cases.
        up, down: bytes from it and to it.
        faults: turns lost or answers refused, by kind; `fault`: the last one.
    """

    name: str
    seen: float | None = None
    turns: set[int] = field(default_factory=set)
    seconds: dict[int, float] = field(default_factory=dict)
    dice: dict[int, float] = field(default_factory=dict)
    tested: float | None = None
    up: int = 0
    down: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    fault: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class News:
    """The run as its events tell it.

    Attributes:
        round: that is being done or was done last.
        phase: "train", "val" or "test" while sites are asked; "" between.
        asked: sites asked in this phase, `answered` those of them that have, and `since` when it began.
        done: records of finished rounds.
        present, missing: names; `refusing`: name → why.
        faults, notes: the last ones, oldest first; `lost` counts all.
        others: rounds of other arms than the federation (`tmca simulate` trains baselines in the same folder).
        ended: the run is through; `stopped`: why it stopped before that, "" where it did not.
        last: moment of the newest event that says when it was; `kind`: what it was.
    """

    round: int = 0
    phase: str = ""
    since: float | None = None
    asked: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    done: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    sites: dict[str, SiteNews] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    refusing: dict[str, str] = field(default_factory=dict)
    faults: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_FAULTS))
    lost: int = 0
    notes: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=20))
    others: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    stopped: str = ""
    last: float | None = None
    kind: str = ""
    events: int = 0

    def site(self, name: str) -> SiteNews:
        """The news of a site, whether or not it was heard of before."""
        return self.sites.setdefault(name, SiteNews(name))

    def take(self, event: Mapping[str, Any]) -> None:
        """One event. Fields that are missing or of another type are passed over: another version may have written them."""
        kind, at, arm = str(event.get("event", "")), _moment(event.get("time")), str(event.get("arm", ARM))
        self.events += 1
        self.last = at or self.last
        round = int(number(event.get("round")) or 0)
        if arm != ARM:
            self.others[arm] = round
            return
        self.kind = kind
        self.ended, self.stopped = kind == "ended", str(event.get("reason", "")) if kind == "stopped" else ""
        self.round = max(self.round, round)
        name = str(event.get("site", ""))
        if kind == "sites":
            self.present, self.missing = _names(event.get("present")), _names(event.get("missing"))
            self.refusing = {str(site): str(reason) for site, reason in mapping(event.get("refusing")).items()}
            for site in self.present:
                self.site(site).seen = at or self.site(site).seen
        elif kind == "asked":
            self._ask(round, str(event.get("phase", "")), _names(event.get("sites")), at)
        elif kind == "site_train" and name:
            self._train(self.site(name), round, event, at)
        elif kind in ("site_eval", "site_test") and name:
            self._evaluate(self.site(name), round, number(event.get("dice_image")), at, tested=kind == "site_test")
        elif kind == "fault":
            self._fault(name, event, at)
        elif kind == "note":
            self.notes.append({"round": round, "text": str(event.get("text", "")), "at": at})
        elif kind == "round":
            self.done[round] = event
            self.phase = ""
        elif kind in ("ended", "stopped"):
            self.phase = ""

    def _ask(self, round: int, phase: str, sites: set[str], at: float | None) -> None:
        if phase == "train":  # a resumed run begins again where it was
            self.done = {k: record for k, record in self.done.items() if k < round}
            self.round = round
        self.phase, self.since, self.asked, self.answered = phase, at, sites, set()

    def _train(self, site: SiteNews, round: int, event: Mapping[str, Any], at: float | None) -> None:
        self.answered.add(site.name)
        site.seen = at or site.seen
        site.turns.add(round)
        waited = at - self.since if at and self.since and self.phase == "train" else None
        if (seconds := number(event.get("seconds"))) is not None or (seconds := waited) is not None:
            site.seconds[round] = seconds
        site.up += int(number(event.get("bytes_up")) or 0)
        site.down += int(number(event.get("bytes_down")) or 0)

    def _evaluate(self, site: SiteNews, round: int, dice: float | None, at: float | None, *, tested: bool) -> None:
        self.answered.add(site.name)
        site.seen = at or site.seen
        if tested:
            site.tested = dice
        elif dice is not None:
            site.dice[round] = dice

    def _fault(self, name: str, event: Mapping[str, Any], at: float | None) -> None:
        kind = str(event.get("kind", "failed"))
        told = {key: str(event.get(key, "")) for key in ("site", "phase", "reason")}
        fault = {**told, "kind": kind, "round": int(number(event.get("round")) or 0), "at": at}
        self.faults.append(fault)
        self.lost += 1
        site = self.site(name)
        site.faults[kind] += 1
        site.fault = fault
        if kind not in ("late", "duplicate"):  # it did answer, if only to say no
            site.seen = at or site.seen


@dataclass
class Follower:
    """Reads what has been added to a run's events since the last look; a line that is not whole yet waits for its end."""

    folder: Path
    news: News = field(default_factory=News)
    _at: int = 0
    _file: tuple[int, int] = (0, 0)

    def look(self) -> News:
        """The news by now. A file that was replaced or has become shorter is read anew."""
        try:
            with (self.folder / _FILE).open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._file or found.st_size < self._at:
                    self.news, self._at, self._file = News(), 0, (found.st_dev, found.st_ino)
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            if self._at:
                self.news, self._at, self._file = News(), 0, (0, 0)
            return self.news
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # torn by a crash, and ended by the run that went on
                continue
            if isinstance(event, dict):
                self.news.take(event)
        return self.news

    def written(self) -> float | None:
        """When the events were last added to, seconds since 1970; None: there are none."""
        try:
            return (self.folder / _FILE).stat().st_mtime
        except OSError:
            return None


def _names(value: object) -> set[str]:
    return {str(name) for name in value} if isinstance(value, list) else set()


def _moment(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp() if value else None
    except ValueError:
        return None
