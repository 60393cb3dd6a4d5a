"""What a run's folder says of the federation right now: its state in one word, its figures, and every site with what it is doing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from server.watch.following import Follower, News, SiteNews
from server.watch.spending import Spending
from tmca_core.config import Config
from tmca_core.errors import LEFT, PAUSED, ConfigError
from tmca_core.report.lenient import mapping, number
from tmca_core.run import Run

State = Literal["empty", "waiting", "running", "silent", "ended", "stopped"]
Tone = Literal["", "live", "good", "wait", "bad"]

KINDS = {"failed": "failed", "late": "too late", "refusal": "refuses", "hello": "not let in", "duplicate": "answered twice"}
"""Kinds of faults in words; all others are answers that the server could not use."""
_DOING = {"train": "training", "val": "validating", "test": "testing"}


@dataclass(frozen=True)
class SiteSight:
    """One site as the page shows it; `why` explains a `now` that is no good."""

    news: SiteNews
    now: str
    tone: Tone
    why: str = ""
    epsilon: float | None = None

    @property
    def dice(self) -> float | None:
        """Its last validation Dice."""
        return self.news.dice[max(self.news.dice)] if self.news.dice else None


@dataclass(frozen=True)
class Sight:
    """All that is shown.

    Attributes:
        state: waiting: for sites; silent: no event for so long that something is probably wrong.
        at: moment of the last event, seconds since 1970, and `age` the seconds since; None without any.
        patience: seconds without an event after which the run counts as silent.
        rounds: that the run is to have; None: not known.
        summary: run.json; {} before the end.
        remark: what could not be read, and why; "".
    """

    state: State
    news: News
    sites: list[SiteSight]
    config: Config | None
    summary: Mapping[str, Any]
    at: float | None
    age: float | None
    patience: float
    remark: str = ""

    @property
    def rounds(self) -> int | None:
        """Rounds that the run is to have."""
        return self.config.federation.rounds if self.config else None

    @property
    def last(self) -> Mapping[str, Any]:
        """The record of the last validated round, {} before the first."""
        measured = [record for _, record in sorted(self.news.done.items()) if number(record.get("dice_image")) is not None]
        return measured[-1] if measured else {}

    @property
    def away(self) -> list[SiteSight]:
        """Sites that are not doing what is asked of them."""
        return [site for site in self.sites if site.tone in ("bad", "wait")]


@dataclass
class Watcher:
    """Looks at a folder; several requests at once share what was read.

    Attributes:
        folder: of the run; it need not be there yet.
        stalled_after: fewest seconds without an event until the run counts as silent.
    """

    folder: Path
    stalled_after: float
    _follower: Follower = field(init=False)
    _spending: Spending = field(default_factory=Spending)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[str, tuple[float, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._follower = Follower(self.folder)

    def look(self, now: float | None = None) -> Sight:
        """The federation now (`now`: seconds since 1970)."""
        with self._lock:
            return self._look(time.time() if now is None else now)

    def _look(self, now: float) -> Sight:
        news = self._follower.look()
        written = self._follower.written() if news.events else None
        last = max(news.last or 0.0, written or 0.0) if news.others or not news.last else news.last
        config, remark = self._config()
        summary = self._json(self.folder / "run.json")
        age = max(0.0, now - last) if last else None
        patience = self._patience(news, config)
        state = self._state(news, config, summary, age, patience)
        spent = self._spent(news, config, summary)
        names = {*news.present, *news.missing, *news.refusing, *self._described()}
        names |= {name for name, site in news.sites.items() if site.turns or site.dice}
        sites = [_site(news.site(name), news, state, spent.get(name)) for name in sorted(names)]
        return Sight(state, news, sites, config, summary if state == "ended" else {}, last or None, age, patience, remark)

    def _state(self, news: News, config: Config | None, summary: Mapping[str, Any], age: float | None, patience: float) -> State:
        if news.stopped:
            return "stopped"
        if news.ended or (news.kind == "site_test" and summary):  # runs of earlier versions do not say that they have ended
            return "ended"
        if not news.events:
            return "empty" if config is None else "waiting"
        if age is not None and age > patience:
            return "silent"
        needed = max(1, config.federation.min_sites) if config else 1
        return "waiting" if not news.phase and news.kind in ("sites", "fault") and len(news.present) < needed else "running"

    def _patience(self, news: News, config: Config | None) -> float:
        """A long round is no silence; nor is waiting for sites as long as the run is set to."""
        longest = max((number(record.get("seconds")) or 0.0 for record in news.done.values()), default=0.0)
        waiting = config.federation.wait if config and not news.phase else 0.0
        return max(self.stalled_after, 3 * longest, waiting)

    def _config(self) -> tuple[Config | None, str]:
        path = self.folder / "config.toml"
        changed = _changed(path)
        if changed is None:
            return None, ""
        known = self._read.get("config")
        if known is None or known[0] != changed:
            try:
                known = changed, (Run(self.folder).config(), "")
            except ConfigError as error:
                known = changed, (None, f"config.toml cannot be read: {error}")
            self._read["config"] = known
        found: tuple[Config | None, str] = known[1]
        return found

    def _json(self, path: Path) -> Mapping[str, Any]:
        """A JSON object, read again when it has changed; {} where there is none that can be read."""
        changed = _changed(path)
        if changed is None:
            return {}
        known = self._read.get(path.name)
        if known is None or known[0] != changed:
            try:
                known = changed, mapping(json.loads(path.read_bytes()))
            except (OSError, ValueError):
                known = changed, {}
            self._read[path.name] = known
        found: Mapping[str, Any] = known[1]
        return found

    def _described(self) -> Mapping[str, int | None]:
        """Training patients by site, as the last checkpoint has them; None: the site keeps their number."""
        folders = Run(self.folder).checkpoints()
        sites = mapping(self._json(folders[-1] / "state.json").get("sites")) if folders else {}
        counts = {str(name): number(mapping(site).get("train_patients")) for name, site in sites.items()}
        return {name: None if count is None else int(count) for name, count in counts.items()}

    def _spent(self, news: News, config: Config | None, summary: Mapping[str, Any]) -> Mapping[str, float]:
        if config is None or not config.privacy.enabled:
            return {}
        if news.ended:
            told = mapping(mapping(summary.get("privacy")).get("epsilon"))
            return {str(name): value for name, found in told.items() if (value := number(found)) is not None}
        return self._spending.after(config, self._described(), news.done)


def _changed(path: Path) -> float | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns + found.st_ino / 2**64


def _site(site: SiteNews, news: News, state: State, epsilon: float | None) -> SiteSight:
    now, tone, why = _now(site, news, state)
    return SiteSight(site, now, tone, why, epsilon)


def _now(site: SiteNews, news: News, state: State) -> tuple[str, Tone, str]:
    """What a site is doing, and if it is not what it should, why."""
    name, fault = site.name, site.fault
    if reason := news.refusing.get(name, ""):
        if PAUSED in reason:
            return "paused by its hospital", "wait", "It is asked again now and then, and comes back when its hospital resumes."
        return ("has left this run", "wait", reason) if LEFT in reason else ("refuses", "bad", reason)
    if name in news.missing:
        return "missing", "bad", "It took part before, and is not connected now."
    current = bool(fault) and fault["round"] == news.round
    if state in ("running", "silent") and news.phase and current and fault["phase"] == news.phase:
        return KINDS.get(fault["kind"], "answer not usable"), "bad", str(fault["reason"])
    if state == "running" and news.phase and name in news.asked:
        return ("has answered", "good", "") if name in news.answered else (_DOING.get(news.phase, "asked"), "live", "")
    if name in mapping(news.done.get(news.round, {}).get("failed")):
        return "lost its last turn", "bad", str(mapping(news.done[news.round]["failed"])[name])
    if state in ("ended", "stopped"):
        return ("took part", "good", "") if site.turns else ("no turn", "", "")
    return ("is there", "good" if name in news.present else "", "") if name in news.present else ("not heard of yet", "", "")
