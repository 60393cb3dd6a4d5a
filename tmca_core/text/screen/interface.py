"""What the screen looks for, what a language consists of, and the registry of languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tmca_core.registry import Registry

KINDS: Mapping[str, str] = {
    "name": "name of a person",
    "date": "date finer than a year",
    "phone": "telephone, fax or pager number",
    "record": "number of a record, study, account or licence",
    "address": "address, or place smaller than a state",
    "hospital": "name of a hospital, practice or home",
    "email": "e-mail address",
    "age": "age over 89",
    "url": "web address",
    "national_id": "national or insurance number",
    "device": "serial number of a device",
    "ip": "address of a computer",
}
"""Kinds of identifier: those of the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)) that a report's text can hold."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What may identify a person: `text[start:end]`, of a kind in `KINDS`."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Shape:
    """An identifier that is known by its looks.

    Attributes:
        kind: of `KINDS`.
        pattern: finds it; the group `id` is the identifier where there is one, else the whole match.
        accept: a further condition.
    """

    kind: str
    pattern: re.Pattern[str]
    accept: Callable[[re.Match[str]], bool]


@dataclass(frozen=True, slots=True)
class Cue:
    """Words after which a capitalised word that is no ordinary one is a name of the kind `kind`.

    Attributes:
        kind: of `KINDS`.
        pattern: ends where the name begins.
        trust: 0: what follows is a name unless it is an ordinary word; 1: also where it is a word that people are called by ("son
            Mark"); 2: whatever it is ("Mrs Wall").
    """

    kind: str
    pattern: re.Pattern[str]
    trust: Literal[0, 1, 2] = 0


@dataclass(frozen=True)
class Language:
    """The rules of one language.

    Attributes:
        shapes: dates, numbers, addresses and hospitals as this language writes them.
        cues: what comes before a name.
        titles: words that belong to a name and begin it, lower case, without a full stop.
        ordinary: lower-case words that are no name of a person, also where they are capitalised.
        endings: of words that are no names either.
        heads: lower-case nouns that make an eponym of the name before them ("sign", "syndrome").
        marks: lower-case words by which a text of this language is known.
        before_eponym: lower-case words that make an eponym of the name after them ("Morbus").
        capital_nouns: every noun is capitalised, so capital letters alone say nothing.
        no_initials: capitals that abbreviate words of anatomy before another one, so that they are no initials ("A. carotis").
    """

    shapes: tuple[Shape, ...]
    cues: tuple[Cue, ...]
    titles: frozenset[str]
    ordinary: frozenset[str]
    endings: tuple[str, ...]
    heads: frozenset[str]
    marks: frozenset[str]
    before_eponym: frozenset[str] = frozenset()
    capital_nouns: bool = False
    no_initials: str = ""


LANGUAGES: Registry[Callable[[], Language]] = Registry("language of reports")
"""Languages by their ISO 639-1 code. A new one is a file that registers, and its name in this package's `__init__`."""


def words(*texts: str) -> frozenset[str]:
    """The blank-separated words of `texts`, as one set."""
    return frozenset(word for text in texts for word in text.split())
