"""Names of persons and places by what stands before them, by lists of common names, and by capitals where no ordinary word has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tmca_core.text.screen.eponyms import NAMES as EPONYMS
from tmca_core.text.screen.eponyms import PHRASES
from tmca_core.text.screen.interface import Finding, Language
from tmca_core.text.screen.people import GIVEN, PARTICLES, SURNAMES

_WORD = re.compile(r"[^\W\d_]+(?:[-‐'’](?!s\b)[^\W\d_]+)*")
_NAME_LIKE = re.compile(
    r"(?:(?:Mac|Mc|De|Di|La|Le|Van|Von|El|Al|O['’]|D['’])?[^\W\d_a-zß-öø-ÿ][^\W\d_A-ZÀ-ÖØ-Þ]+|[^\W\d_a-zß-öø-ÿ'’]{2,}(?:['’][^\W\d_a-zß-öø-ÿ]+)?)"
)
_AND = frozenset({"and", "und"})
_ENDS = re.compile(r"[.;:!?\n]")
_AFTER_NAME, _AFTER_NOUNS = re.compile(r"\s*(?:[:;.(\d]|$|- )"), re.compile(r"\s*[:(\d]")
_LONGEST_NAME = 6  # words
_ACRONYM = 4  # letters
_PHRASES = frozenset(tuple(re.split(r"[\s-]+", phrase)) for phrase in PHRASES)
_LONGEST_PHRASE = max(map(len, _PHRASES))


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text, without a possessive ending.

    Attributes:
        text: `source[start:end]`; `key` the same in lower case, `parts` its hyphenated parts in lower case.
        gap: what stands between the word before it and it.
        touched: a digit stands directly beside it, so it is part of a code.
        titled: it is in a heading or a line in capitals, where capitals say nothing.
        first: it begins a sentence.
    """

    start: int
    end: int
    text: str
    key: str
    parts: tuple[str, ...]
    gap: str
    touched: bool
    titled: bool
    first: bool

    @property
    def capital(self) -> bool:
        """It begins with a capital letter."""
        return self.text[0].isupper()

    @property
    def initial(self) -> bool:
        """It is a single capital letter."""
        return len(self.text) == 1 and self.capital


def split(text: str) -> list[Word]:
    """The words of a text."""
    matches = list(_WORD.finditer(text))
    gaps = [text[a.end() if a else 0 : b.start()] for a, b in zip([None, *matches], matches, strict=False)]
    begins = [not i or (bool(_ENDS.search(gap)) and not _abbreviates(matches[i - 1][0], gap)) for i, gap in enumerate(gaps)]
    titled: list[bool] = []
    starts = [*(i for i, begin in enumerate(begins) if begin), len(matches)]
    for a, b in pairwise(starts):
        sentence = [match[0] for match in matches[a:b] if len(match[0]) > 2]
        capitals = sum(word[0].isupper() for word in sentence)
        heading = len(sentence) >= 5 and capitals > 0.8 * len(sentence)
        titled += [heading or (len(sentence) >= 2 and all(word.isupper() for word in sentence))] * (b - a)
    found = []
    for match, gap, title, first in zip(matches, gaps, titled, begins, strict=True):
        key = match[0].lower()
        around = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 1]
        parts = tuple(re.split(r"[-‐]", key))
        found.append(Word(match.start(), match.end(), match[0], key, parts, gap, any(c.isdigit() for c in around), title, first))
    return found


def _abbreviates(word: str, gap: str) -> bool:
    """A full stop after an initial or a short title ends no sentence."""
    return gap.startswith(". ") and (len(word) == 1 or word.lower() in ("dr", "mr", "mrs", "ms", "st", "prof", "hr", "fr", "med"))


@dataclass(frozen=True)
class Reader:
    """The words of one text, read by the rules of one language.

    Attributes:
        allowed: further lower-case words that identify nobody here, as the site says.
    """

    words: Sequence[Word]
    text: str
    language: Language
    allowed: frozenset[str]

    @cached_property
    def phrases(self) -> frozenset[int]:
        """Indices of the words that belong to one of medicine's phrases; they are no names, whatever stands around them."""
        return _in_phrases([word.key for word in self.words])

    def introduced(self) -> Iterator[Finding]:
        """Names after a title, a label or another cue."""
        at = {word.start: i for i, word in enumerate(self.words)}
        for cue in self.language.cues:
            for match in cue.pattern.finditer(self.text):
                i = at.get(match.end())
                trust = cue.trust
                while i is not None and i not in self.phrases and (last := self._run(i, trust=trust)) is not None:
                    first = next(k for k in range(i, last + 1) if self.words[k].key not in self.language.titles or k == last)
                    yield Finding(self.words[first].start, self.words[last].end, cue.kind)
                    # "Drs Whitfield and Okoro"
                    another = last + 2 < len(self.words) and self.words[last + 1].key in _AND and self.words[last + 2].gap == " "
                    i, trust = (last + 2 if another else None), 0

    def listed(self) -> Iterator[Finding]:
        """Common given names and surnames, initials with a surname, and, where capitals say something, unknown words in capitals."""
        for i, word in enumerate(self.words):
            if i in self.phrases or not word.capital or word.touched or word.key in self.language.titles or self._eponym(i):
                continue
            if self._is_person(i):
                last = self._run(i, trust=1)
                if last is not None:
                    first = i - 1 if i and word.gap == ", " and self._may_precede(i - 1) else i
                    yield Finding(self.words[first].start, self.words[last].end, "name")

    def _is_person(self, i: int) -> bool:
        word = self.words[i]
        follower = self.words[i + 1] if i + 1 < len(self.words) and self.words[i + 1].gap in (" ", ". ", ".") else None
        if word.initial:
            return follower is not None and follower.gap != " " and self._initial(i)
        given = any(part in GIVEN for part in word.parts)
        if (given or word.key in SURNAMES) and not self._known(i):
            return len(word.text) > 2 and not self._acronym(i)
        if given and word.gap == ", " and i and self._may_precede(i - 1) and self.words[i - 1].first:  # "Brown, Patricia"
            return True
        if self._reversed(i):
            return True
        if follower is None or follower.gap != " ":
            return False
        if given:
            listed = follower.key in SURNAMES and follower.capital and not self._eponym(i + 1)
            return listed if word.titled else self._unknown(i + 1, trust=1)
        capitals_speak = not self.language.capital_nouns and not word.titled
        return capitals_speak and self._unknown(i) and self._unknown(i + 1, trust=1) and not self._eponym(i + 1)

    def _initial(self, i: int) -> bool:
        """ "J. Smith", but neither "A. carotis" nor "10 mg/L. Research"."""
        word, follower = self.words[i], self.words[i + 1]
        before = self.text[max(0, word.start - 2) : word.start]
        alone = not before or before[-1].isspace() or before[-1] in "(," or (i > 0 and self.words[i - 1].initial)
        named = self._unknown(i + 1, trust=1) and not self._eponym(i + 1) and len(follower.text) > 2
        return named and alone and not before[:1].isdigit() and word.text not in self.language.no_initials

    def _reversed(self, i: int) -> bool:
        """ "Andra, Atharv: left effusion" at the beginning of a text or line."""
        if i + 1 >= len(self.words) or self.words[i + 1].gap != ", ":
            return False
        end = self.words[i + 2].start if i + 2 < len(self.words) else len(self.text)
        after = self.text[self.words[i + 1].end : end]
        ends = _AFTER_NOUNS if self.language.capital_nouns else _AFTER_NAME
        opens = not i or "\n" in self.words[i].gap
        return opens and self._unknown(i) and self._unknown(i + 1) and bool(ends.match(after))

    def _may_precede(self, i: int) -> bool:
        word = self.words[i]
        return word.capital and len(word.text) > 1 and (word.key in SURNAMES or not self._known(i)) and not word.touched

    def _run(self, i: int, *, trust: int) -> int | None:
        """Index of the last word of the name that begins at word i; None where none does."""
        last, named = None, False
        for j in range(i, min(len(self.words), i + _LONGEST_NAME)):
            word = self.words[j]
            if j > i and not self._joins(j, named):
                break
            if word.key in self.language.titles and not named:
                continue
            if word.initial or (word.key in PARTICLES and not word.capital):
                if named and word.initial:
                    last = j
                continue
            lower = trust == 2 and not named and word.key in SURNAMES and not self._known(j)  # "dr patel"
            if not lower and not self._unknown(j, trust=min(trust, 1) if named else trust):
                break
            last, named = j, True
        return last

    def _joins(self, j: int, named: bool) -> bool:
        word, before = self.words[j], self.words[j - 1]
        if word.gap == " ":
            return True
        dotted = before.initial or before.key in self.language.titles
        comma = named and word.gap == ", " and self.words[j - 1].first and word.capital
        return (dotted and word.gap.strip() in (".", "") and "\n" not in word.gap) or comma

    def _unknown(self, i: int, *, trust: int = 0) -> bool:
        """A capitalised word that is no ordinary one, as far as that is asked for, no code and no acronym."""
        word = self.words[i]
        if not word.capital or word.touched or word.initial or i in self.phrases:
            return False
        parts = re.split(r"[-‐]", word.text)
        if not all(_NAME_LIKE.fullmatch(part) or (k and part.islower() and len(part) < 4) for k, part in enumerate(parts) if len(part) > 1):
            return False
        listed = any(part in SURNAMES or part in GIVEN for part in word.parts)
        if self._known(i):
            return not word.titled and (trust == 2 or (trust == 1 and listed))
        return listed or not self._acronym(i)

    def _acronym(self, i: int) -> bool:
        """In capitals among words that are not, and short or hard to say."""
        word = self.words[i]
        vowels = sum(letter in "aeiouyäöü" for letter in word.key)
        return word.text.isupper() and not word.titled and (len(word.text) <= _ACRONYM or (len(word.text) <= 6 and vowels < 2))

    def _known(self, i: int) -> bool:
        word = self.words[i]
        if word.key in self.allowed or word.key in self.language.ordinary:
            return True
        return any(
            (part in self.language.ordinary and len(part) > 3) or (len(part) > 5 and part.endswith(self.language.endings))
            for part in word.parts
        )

    def _eponym(self, i: int) -> bool:
        """The word is one of medicine's names here."""
        word, follower = self.words[i], self.words[i + 1] if i + 1 < len(self.words) else None
        if i and self.words[i - 1].key in self.language.before_eponym:
            return True
        heads = [w for w in self.words[i + 1 : i + 4] if w.gap.replace("'s", "").replace("’s", "").strip() in ("", "-", ".", "'", "’")]
        headed = follower is not None and any(w.key in self.language.heads for w in heads[:3])
        if any(part in EPONYMS for part in word.parts):
            person = any(part in GIVEN or part in SURNAMES for part in word.parts)
            return headed or len(word.parts) > 1 or not person
        return headed and word.key not in GIVEN and heads[0].key in self.language.heads


def _in_phrases(keys: Sequence[str]) -> frozenset[int]:
    """Indices of the words that belong to one of medicine's phrases."""
    found: set[int] = set()
    for i in range(len(keys)):
        parts: tuple[str, ...] = ()
        for j in range(i, min(len(keys), i + _LONGEST_PHRASE)):
            parts += tuple(keys[j].split("-"))
            if parts in _PHRASES:
                found.update(range(i, j + 1))
    return frozenset(found)
