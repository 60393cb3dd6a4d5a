"""The runs that a site has been part of, from its own folders: when they asked, what the model reaches here, and what that gains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from client.standing import Standing
from client.view.accounts import Account
from tmca_core.errors import ConfigError
from tmca_core.report.lenient import mapping, number

SCORES = "scores.jsonl"  # `client.memory.Memory.note_scores` writes it


@dataclass
class RunSight:
    """One run as the site knows it.

    Attributes:
        name: as the server calls it.
        first, last: moments of the first and last thing known, seconds since 1970.
        rounds: paid rounds of training, by the ledgers.
        dice: validation Dice on the site's own cases by round; `tested`: on its test cases at the end.
        left: when the site left it; "".
    """

    name: str
    first: float | None = None
    last: float | None = None
    rounds: set[int] = field(default_factory=set)
    dice: dict[int, float] = field(default_factory=dict)
    tested: float | None = None
    left: str = ""

    def seen(self, moment: float | None) -> None:
        """Something happened then."""
        if moment is not None:
            self.first = moment if self.first is None else min(self.first, moment)
            self.last = moment if self.last is None else max(self.last, moment)


def known_runs(state: Path, accounts: Sequence[Account], standing: Standing) -> list[RunSight]:
    """All runs, the newest first."""
    runs: dict[str, RunSight] = {}
    for folder in _folders(state):
        run = runs.setdefault(folder.name, RunSight(folder.name))
        for path in [folder, *folder.iterdir()]:
            run.seen(path.stat().st_mtime)
        _read_scores(folder / SCORES, run)
    for account in accounts:
        for entry in account.entries:
            if name := str(entry.get("run", "")):
                run = runs.setdefault(name, RunSight(name))
                run.seen(_moment(entry.get("time")))
                if entry["kind"] == "charge":
                    run.rounds.add(int(entry.get("round", 0)))
    for name, when in standing.left.items():
        run = runs.setdefault(name, RunSight(name))
        run.left = when
        run.seen(_moment(when))
    return sorted(runs.values(), key=lambda run: -(run.last or 0.0))


def site_names(state: Path) -> list[str]:
    """Names of the sites that remember something here."""
    return sorted({unquote(folder.parent.name) for folder in _folders(state)})


def dice_of(folder: Path, site: str = "") -> float:
    """Dice per image on held-out patients that a training or an evaluation has written into a folder.

    Args:
        folder: of `tmca train --out` or of `tmca evaluate --out`.
        site: whose; "": of all cases.

    Raises:
        ConfigError: there is none.
    """
    for name in ("evaluation.json", "run.json"):
        try:
            final = mapping(mapping(json.loads((folder / name).read_bytes())).get("final"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder / name} cannot be read: {error}.") from None
        own = mapping(mapping(final.get("per_site")).get(site)) if site else {}
        if (dice := number(own.get("dice_image", final.get("dice_image")))) is not None:
            return dice
    raise ConfigError(f"{folder} holds no measured model: name the --out of a `tmca train --site …` or of a `tmca evaluate`.")


def _folders(state: Path) -> list[Path]:
    return [path for path in state.glob("*/*") if path.is_dir() and re.fullmatch(r"[0-9a-f]{1,32}", path.name)]


def _read_scores(path: Path, run: RunSight) -> None:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            score: Mapping[str, Any] = mapping(json.loads(line))
        except ValueError:  # torn by a crash
            continue
        dice, round = number(score.get("dice_image")), number(score.get("round"))
        if dice is None or round is None:
            continue
        if score.get("split") == "test":
            run.tested = dice
        else:
            run.dice[int(round)] = dice


def _moment(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp() if value else None
    except ValueError:
        return None
