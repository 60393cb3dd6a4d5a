"""A run that was submitted to the stage, as it can be seen from outside: its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmca_core.run import Run


@dataclass
class Played:
    """A run and its folder.

    Attributes:
        values: its run-config.
        app: that was submitted.
        number: of the SuperLink.
        starts: how often it was submitted.
    """

    name: str
    folder: Path
    values: Mapping[str, Any]
    app: Path = Path()
    number: int = 0
    starts: int = 0
    _seen: int = field(default=0)

    def submitted(self, number: int) -> None:
        """Note that it goes on under another number."""
        self.number, self.starts = number, self.starts + 1
        self._seen = sum(1 for _ in self.run.events())

    @property
    def run(self) -> Run:
        """Its folder."""
        return Run(self.folder)

    def flat(self) -> str:
        """Its run-config as `flwr run` takes it."""
        text = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in self.values.items()}
        return " ".join(f'{key}="{text[key]}"' if isinstance(value, str) else f"{key}={text[key]}" for key, value in self.values.items())

    def fresh(self) -> list[dict[str, Any]]:
        """Events since it was last submitted."""
        return list(self.run.events())[self._seen :]

    def done(self) -> bool:
        """Whether it has ended by its own account, well or not, since it was last submitted."""
        return any(event["event"] in ("ended", "stopped") for event in self.fresh())

    def why(self) -> str:
        """Why it ended before its time; "": it did not, or does not say."""
        return next((str(event["reason"]) for event in reversed(self.fresh()) if event["event"] == "stopped"), "")

    @property
    def round(self) -> int:
        """The last round that is complete."""
        return max((int(event["round"]) for event in self.run.events("round")), default=0)

    def asked(self) -> int:
        """The last round for which sites were asked to train."""
        return max((int(event["round"]) for event in self.run.events("asked") if event["phase"] == "train"), default=0)

    def trained(self, site: str) -> int:
        """The last round in which a site's update was folded."""
        return max((int(event["round"]) for event in self.run.events("site_train") if event["site"] == site), default=0)

    def faults(self, site: str, after: int = 0) -> list[dict[str, Any]]:
        """What befell a site in rounds above `after`."""
        return [event for event in self.run.events("fault") if event["site"] == site and event["round"] > after]
