"""Logs as JSON lines, for whoever collects them: `TMCA_LOG=json`. They hold no patient data.

A line has `time`, `level`, `logger`, `message`, and `run`, `round` and `site` where these are known. What a site's rooms put into a message
(an error's text, a path, the name of a case) may say who a patient is, so of it only numbers and the program's own words are kept, and the
rest reads "[withheld]"; the plain log at the site has it. A server's rooms know nothing of any case, and what they say is kept whole. What
other packages say is withheld whole: a library may put a header's text into any message.
"""

from __future__ import annotations

import builtins
import json
import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tmca_core import errors
from tmca_core.errors import ConfigError

VARIABLE = "TMCA_LOG"
PLAIN, JSON = "text", "json"
ROOMS = ("tmca_core", "client", "server", "simulations", "flwr.client", "flwr.server")
"""Loggers of this project; of those below `flwr` Flower's own settings decide as long as nobody asks for JSON."""
_CASELESS = ("server", "simulations")  # rooms where no case is ever read
_WITHHELD = "[withheld]"
_FACTS = ("run", "round", "site")
_WORDS = {
    *("query", "train", "evaluate", "secure", "val", "test"),
    *(
        name
        for room in (builtins, errors)
        for name, value in vars(room).items()
        if isinstance(value, type) and issubclass(value, Exception)
    ),
}
_around: ContextVar[Mapping[str, Any] | None] = ContextVar("around", default=None)


@contextmanager
def about(**facts: Any) -> Iterator[None]:
    """What is logged meanwhile is about this `run`, `round` or `site`; empty values are not known."""
    token = _around.set({**(_around.get() or {}), **{name: value for name, value in facts.items() if value not in ("", None)}})
    try:
        yield
    finally:
        _around.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback is reduced to the kind of error and the place in the code."""
        facts = {**(_around.get() or {}), **{name: getattr(record, name) for name in _FACTS if hasattr(record, name)}}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record, facts),
            **{name: facts[name] for name in _FACTS if name in facts},
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["place"] = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}" for frame in frames[-5:]]
        return json.dumps(line, default=str)


def formatter() -> logging.Formatter:
    """As `TMCA_LOG` says.

    Raises:
        ConfigError: it says neither text nor json.
    """
    chosen = os.environ.get(VARIABLE, PLAIN)
    if chosen not in (PLAIN, JSON):
        raise ConfigError(f"{VARIABLE}={chosen}: logs are written as {PLAIN} or as {JSON}.")
    return JsonLines() if chosen == JSON else logging.Formatter("%(message)s")


def listen_under_flower() -> None:
    """In a process that Flower has started: where JSON is asked for, this project's loggers write it to stderr, at once and once.

    Raises:
        ConfigError: see `formatter`.
    """
    lines = formatter()
    if not isinstance(lines, JsonLines) or any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers):
        return
    for name in ROOMS:
        room = logging.getLogger(name)
        if not any(isinstance(handler.formatter, JsonLines) for handler in room.handlers):
            handler = logging.StreamHandler()
            handler.setFormatter(lines)
            room.addHandler(handler)
            room.setLevel(logging.INFO)
            room.propagate = False


def _message(record: logging.LogRecord, facts: Mapping[str, Any]) -> str:
    """The text, of a site's rooms without what might be of a case; of foreign ones (pydicom, httpx) nothing, whose words are not ours."""
    if not any(f"{record.name}.".startswith(f"{room}.") for room in ROOMS):
        return _WITHHELD
    if record.name.removeprefix("flwr.").split(".")[0] in _CASELESS or not record.args:
        return record.getMessage()
    known = _WORDS | {str(value) for value in facts.values()}
    if isinstance(record.args, Mapping):
        return str(record.msg) % {key: _harmless(value, known) for key, value in record.args.items()}
    return str(record.msg) % tuple(_harmless(value, known) for value in record.args)


def _harmless(value: object, known: set[str]) -> object:
    return value if value is None or isinstance(value, (int, float)) or (isinstance(value, str) and value in known) else _WITHHELD
