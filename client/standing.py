"""Whether a hospital takes part at all: it may pause, resume, and leave a run for good, at any moment and without asking anybody.

One file in the site's state folder says so. It is looked at before a message is answered, and again before an answer leaves.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tmca_core.errors import LEFT, PAUSED, ConfigError, SiteAway

FILE = "standing.json"


@dataclass(frozen=True)
class Standing:
    """What the hospital has decided.

    Attributes:
        paused: since when (ISO 8601, UTC); "": it takes part.
        left: runs that it has left, and when.
    """

    paused: str = ""
    left: Mapping[str, str] = field(default_factory=dict)


def read_standing(state: Path) -> Standing:
    """The standing of the site whose state folder this is; where there is no file, it takes part in everything.

    Raises:
        SiteAway: the file is there and cannot be read, so that nobody can say whether the hospital wants to take part.
    """
    path = state / FILE
    try:
        found = Standing(**json.loads(path.read_bytes()))
        if not isinstance(found.paused, str) or not isinstance(found.left, dict):
            raise ValueError("it holds other things than it should")
    except FileNotFoundError:
        return Standing()
    except (OSError, ValueError, TypeError) as error:
        raise SiteAway(
            f"{path} cannot be read ({error}), so nobody knows whether this site is paused or which runs it left: nothing is answered. "
            "Put it right, or remove it where it says nothing that matters.",
            f"Rule: {PAUSED}; bound: what it has decided cannot be read.",
        ) from None
    return found


def hold_to_standing(state: Path, run: str) -> None:
    """Answer nothing that the hospital does not want answered.

    Args:
        state: the site's state folder.
        run: the server's name for it; "": it has not said.

    Raises:
        SiteAway: the site is paused, or has left the run.
    """
    standing = read_standing(state)
    if run and run in standing.left:
        raise SiteAway(f"this site left run {run} at {standing.left[run]}.", f"Rule: {LEFT}; bound: for good, in this run.")
    if standing.paused:
        raise SiteAway(f"this site is paused since {standing.paused}.", f"Rule: {PAUSED}; bound: until it resumes.")


def pause(state: Path) -> Standing:
    """Answer nothing from now on.

    Raises:
        ConfigError: there is no such folder, or it cannot be written.
        SiteAway: what is there cannot be read.
    """
    with _changing(state) as before:
        return _write(state, replace(before, paused=before.paused or _now()))


def resume(state: Path) -> Standing:
    """Answer again, save in runs that were left.

    Raises:
        ConfigError: there is no such folder, or it cannot be written.
    """
    with _changing(state) as before:
        return _write(state, replace(before, paused=""))


def leave(state: Path, run: str) -> Standing:
    """Answer nothing of a run any more; there is no way back into it.

    Raises:
        ConfigError: there is no such folder, or it cannot be written.
    """
    with _changing(state) as before:
        return _write(state, replace(before, left={run: _now(), **before.left}))


def hold_to_owner(home: Path) -> None:
    """Write nothing into a site's folder as somebody else than the user whose worker has to read it.

    Raises:
        ConfigError: the folder belongs to another user.
    """
    if home.exists() and (owner := home.stat().st_uid) != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise ConfigError(
            f"{home} belongs to {name}, whose worker could not read what another user writes there: run this as that user, "
            f"sudo -u '{name}' and the same command. Nothing has changed."
        )


@contextmanager
def _changing(state: Path) -> Iterator[Standing]:
    """The standing as it is, while nobody else changes it. A damaged file stays: nobody knows which runs it says were left."""
    if not state.is_dir():
        raise ConfigError(
            f"{state} does not exist. Name the folder that state=… of the SuperNode's --node-config names; if no run has come by yet, make "
            "it first."
        )
    hold_to_owner(state)
    try:
        with (state / ".standing.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield read_standing(state)
    except OSError as error:
        raise ConfigError(f"{state / FILE} cannot be written: {error}. Nothing has changed.") from None


def _write(state: Path, standing: Standing) -> Standing:
    from tmca_core.run import write_atomically

    write_atomically(state / FILE, json.dumps(asdict(standing), indent=1) + "\n")
    return standing


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
