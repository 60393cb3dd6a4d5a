"""What a rehearsal tries, what it expects, and what it saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from simulations.rehearsal.stage import Stage

Kind = Literal["intrusion", "fault", "model"]


class Unexpected(Exception):
    """A row saw something else than it expects; the message says what."""


class NotHere(Exception):
    """A row cannot be tried on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Row:
    """One thing that is tried on the running federation.

    Attributes:
        name: by which it is chosen.
        kind: of an intruder, of the weather, or a claim about the model.
        what: is done, in words.
        expected: in words; `play` checks it from outside.
        play: does it, puts right what it broke, and returns what it saw.
        nginx: it is about the ingress, and cannot be tried without it.
    """

    name: str
    kind: Kind
    what: str
    expected: str
    play: Callable[[Stage], str]
    nginx: bool = False


@dataclass(frozen=True)
class Result:
    """What came of a row.

    Attributes:
        as_expected: None: it was not rehearsed, and counts neither way.
        seconds: that it took.
    """

    name: str
    kind: Kind
    what: str
    expected: str
    seen: str
    as_expected: bool | None
    seconds: float


def expect(holds: object, seen: str) -> None:
    """Say that a row saw something else, unless it holds.

    Raises:
        Unexpected: it does not hold.
    """
    if not holds:
        raise Unexpected(seen)
