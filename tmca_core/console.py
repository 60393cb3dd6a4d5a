"""What a person watches: a live table of rounds on a terminal, plain lines off it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MOST_SITES = 8  # columns that fit a terminal


def run_folder(out: Path | str | None, kind: str) -> Path:
    """The folder the user named, or runs/<kind>-<time>."""
    return Path(out or Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}").expanduser().resolve()


class RoundTable:
    """Consumes events of a run and shows round × site: Dice, with loss, bytes and time a round.

    Use as a context manager; calling it with an event updates the display. Everything goes to stderr.
    """

    def __init__(self, rounds: int, quiet: bool = False) -> None:
        self.rounds = rounds
        self.quiet = quiet
        self.rows: list[dict[str, Any]] = []
        self.current: dict[str, Any] = _blank()
        self.notes: list[str] = []
        self.live: Any = None

    def __enter__(self) -> RoundTable:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of metrics.jsonl (or {"event": "note", "text": …})."""
        kind = event["event"]
        if kind == "site_train":
            self.current["loss"] += [event["loss"]] if event["loss"] is not None else []
            self.current["bytes"] += event.get("bytes_up", 0) + event.get("bytes_down", 0)
        elif kind == "site_eval":
            self.current["dice"][event["site"]] = event["dice_image"]
        elif kind == "fault":
            self._note(f"round {event['round']}: site '{event['site']}' lost its turn: {event['reason']}")
        elif kind == "note":
            self._note(str(event["text"]))
        elif kind == "round":
            row = self.current | {"round": event["round"], "mean": event.get("dice_image"), "seconds": event["seconds"]}
            self.rows.append(row)
            self.current = _blank()
            if not self.live and not self.quiet:
                print(self._line(row), file=sys.stderr, flush=True)
        if self.live:
            self.live.update(self._table())

    def _note(self, text: str) -> None:
        self.notes.append(text)
        if not self.live and not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def _line(self, row: Mapping[str, Any]) -> str:
        told = list(row["dice"].items())[:MOST_SITES]
        sites = "  ".join(f"{site} {'withheld' if dice is None else _figure(dice)}" for site, dice in told)
        return f"round {row['round']}/{self.rounds}  dice {_figure(row['mean'])}  loss {_mean(row['loss'])}  {sites}  {_cost(row)}"

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        sites = list(dict.fromkeys(site for row in [*self.rows, self.current] for site in row["dice"]))[:MOST_SITES]
        table = Table(title="Dice on validation cases, per image")
        for heading in ["round", *sites, "mean", "loss", "MB", "s"]:
            table.add_column(heading, justify="right")
        for row in self.rows[-15:]:
            cells = [_figure(row["dice"].get(site)) for site in sites]
            mb = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "–"
            name = f"{row['round']}/{self.rounds}"
            table.add_row(name, *cells, _figure(row["mean"]), _mean(row["loss"]), mb, f"{row['seconds']:.1f}")
        if self.current["loss"]:
            table.caption = f"round {len(self.rows) + 1}: {len(self.current['loss'])} sites trained"
        return Group(table, *self.notes[-6:])


def _blank() -> dict[str, Any]:
    return {"loss": [], "dice": {}, "bytes": 0}


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(values: list[float]) -> str:
    return _figure(sum(values) / len(values) if values else None)


def _cost(row: Mapping[str, Any]) -> str:
    sent = f"{row['bytes'] / 1e6:.1f} MB  " if row["bytes"] else ""
    return f"{sent}{row['seconds']:.1f} s"
