"""`attempts.jsonl`: what was tried in an audit's folder, the attempts that nobody let come to an end included.

An attempt has a line when it begins and another when it ends, which names the first by its number in the file (`ends`). Whoever sees a
FAIL coming and stops the process, or code under audit that does, leaves the first behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tmca_core.errors import ConfigError

FILE = "attempts.jsonl"
BROKEN_OFF = "BROKEN OFF"


def begin(name: str, folder: Path) -> int:
    """Write down that an attempt begins, before it has measured anything; gives the number of its line, from 0.

    Raises:
        ConfigError: the list is damaged.
    """
    number = len(_lines(folder))
    _append(folder, name, BROKEN_OFF, "It began, and its end was not written down.", {})
    return number


def end(name: str, folder: Path, verdict: str, sentence: str, exceeded: str, begun: int | None) -> None:
    """Write down how an attempt ended.

    Args:
        exceeded: what the target had exceeded where the verdict could not be FAIL; empty: nothing.
        begun: number of the line with which it began; None: it was over before it could begin.
    """
    _append(folder, name, verdict, sentence, ({"exceeded": exceeded} if exceeded else {}) | ({} if begun is None else {"ends": begun}))


def of(name: str, folder: Path, begun: int | None = None) -> tuple[dict[str, Any], ...]:
    """Attempts at an audit that the folder lists, oldest first; one without an end is BROKEN OFF.

    Args:
        begun: number of the line with which the present attempt began, which is none of them.

    Raises:
        ConfigError: the list is damaged.
    """
    lines = _lines(folder)
    over = {line.get("ends") for line in lines} | {begun}
    return tuple(
        {key: value for key, value in line.items() if key != "ends"}
        for number, line in enumerate(lines)
        if line["audit"] == name and number not in over
    )


def numbers(before: Sequence[Mapping[str, Any]], verdict: str) -> list[int]:
    """Which of these attempts had this verdict, counted from 1."""
    return [k for k, line in enumerate(before, 1) if line["verdict"] == verdict]


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        whole = all({"audit", "verdict", "sentence"} <= line.keys() for line in lines)
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise ConfigError(f"{path} cannot be read: it lists the attempts of this audit. Choose another --out.")
    return lines


def _append(folder: Path, name: str, verdict: str, sentence: str, more: Mapping[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"audit": name, "time": now, "verdict": verdict, "sentence": sentence, **more}) + "\n")
        file.flush()
        os.fsync(file.fileno())
