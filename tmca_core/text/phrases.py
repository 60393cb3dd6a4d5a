"""Hybrid text: which words of a report say where, which say what it looks like, and which say what disease it is.

Built on the rules of `findings` and `places`. Left and right are treated alike, so a report with its sides swapped has the same
phrases with "left" and "right" exchanged. Words that turn a meaning round ("no", "clear", "except") belong to no phrase, and a
report without some of its phrases claims nothing that it did not claim before (see `keep_phrases`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tmca_core.text import lexicon
from tmca_core.text.findings import parse
from tmca_core.text.places import breaks
from tmca_core.text.polarity import read_polarity
from tmca_core.text.sentences import sentences
from tmca_core.text.wording import PhraseKind, word_kinds
from tmca_core.text.words import Word, split

TOKEN_KINDS: dict[PhraseKind, int] = {"descriptive": 2, "diagnostic": 3, "locational": 4, "left": 5, "right": 6}
"""Kind of a token inside a phrase; 1: a word outside, 0: no word at all (special or padding)."""

Span = tuple[int, int]
_PLACES = frozenset(("locational", "left", "right"))
# Dropped with the phrase that they lead to: "opacity in the left lung" without its place is "opacity".
_LEADS = lexicon.terms("in at on of over within to from with the a an its his her patient's involving affecting towards along located")


@dataclass(frozen=True, slots=True)
class Phrase:
    """Characters `start` to `end` (exclusive) of a text. Sides are as written; "locational" is a place of no or both sides."""

    start: int
    end: int
    kind: PhraseKind


def phrases(text: str) -> list[Phrase]:
    """Phrases of a report in the order of its words, without overlap. Never raises.

    Example:
        >>> [("Patchy opacity in the left base.")[p.start : p.end] + ": " + p.kind for p in phrases("Patchy opacity in the left base.")]
        ['Patchy opacity: descriptive', 'left base: left']
    """
    found: list[Phrase] = []
    for words, _ in sentences(split(text), text):
        found += _runs(words, word_kinds(words))
    return found


def token_kinds(text: str, spans: Sequence[Span | None]) -> list[int]:
    """Kind of every token of a text (see `TOKEN_KINDS`).

    Args:
        text: the report.
        spans: characters of every token; None for special tokens.
    """
    if not split(text):
        return [0] * len(spans)
    at = [1] * len(text)
    for phrase in phrases(text):
        at[phrase.start : phrase.end] = [TOKEN_KINDS[phrase.kind]] * (phrase.end - phrase.start)
    # Some tokenizers count the blank before a word to its token: the last character decides.
    return [0 if span is None or span[0] == span[1] else at[span[1] - 1] for span in spans]


def keep_phrases(text: str, kinds: Collection[str]) -> str:
    """The report without the phrases whose kind is not in `kinds`; as it stands where there are none.

    What is left names no zone that the report did not, and none with more certainty: words that deny or doubt a place that stays
    ("cannot be excluded", "likely") stay with it. Where a sentence would claim more without the rest ("left" of "left effusion"), its
    places go too; where the report as a whole would, because one sentence no longer denies what another says, all places go.

    Args:
        text: the report.
        kinds: of "locational" (left and right included), "descriptive" and "diagnostic".

    Example:
        >>> keep_phrases("Patchy opacity in the left base, likely infective.", {"descriptive"})
        'Patchy opacity.'
    """
    wanted = {*kinds, *_PLACES} if "locational" in kinds else set(kinds)
    kept = text
    # Again, because what is left may read as a phrase that it was not before.
    while cut := _unwanted(kept, wanted):
        kept = _without(kept, cut)
    return keep_phrases(text, wanted - _PLACES) if wanted & _PLACES and not _claims_no_more(kept, text) else kept


def _unwanted(text: str, wanted: Collection[str]) -> set[int]:
    """Where the words begin that go with the phrases of other kinds than `wanted`."""
    cut: set[int] = set()
    parts = list(sentences(split(text), text))
    bounds = [*(words[0].start for words, _ in parts), len(text)]
    for (words, ending), (begin, end) in zip(parts, itertools.pairwise(bounds), strict=True):
        found = _runs(words, word_kinds(words))
        unwanted = _starts(words, [phrase for phrase in found if phrase.kind not in wanted])
        places = _starts(words, [phrase for phrase in found if phrase.kind in _PLACES])
        if not unwanted:
            continue
        holding = {
            words[index].start
            for cue, scope in read_polarity(words, ending).governed
            if any(words[index].start in places - unwanted for index in scope)
            for index in cue
        }
        sentence = text[begin:end]
        # A phrase of nothing but such words goes, or the next reading finds it again.
        going = unwanted - holding or unwanted
        if not _claims_no_more(_without(sentence, {start - begin for start in going}), sentence):
            going = unwanted | places
        cut |= going
    return cut


def _starts(words: Sequence[Word], found: Sequence[Phrase]) -> set[int]:
    """Where the words of some phrases begin."""
    inside = {at for phrase in found for at in range(phrase.start, phrase.end)}
    return {word.start for word in words if word.start in inside}


def _claims_no_more(kept: str, text: str) -> bool:
    """Every zone that `kept` holds findings to, `text` holds them to as well, and at least as surely."""
    (zones, certainty), (others, before) = parse(kept).constraint, parse(text).constraint
    return certainty <= before and all(one <= other for one, other in zip(zones, others, strict=True))


def _runs(words: Sequence[Word], kinds: Sequence[PhraseKind | None]) -> list[Phrase]:
    """Neighbouring words of one kind as a phrase, over articles and joining words but not over punctuation."""
    found: list[Phrase] = []
    last = 0
    for index, kind in enumerate(kinds):
        if kind is None:
            continue
        between = words[last + 1 : index]
        if (
            found
            and found[-1].kind == kind
            and len(between) <= 3
            and all(word.key in lexicon.LINKS for word in between)
            and not any(breaks(word) for word in words[last + 1 : index + 1])
        ):
            found[-1] = Phrase(found[-1].start, words[index].end, kind)
        else:
            found.append(Phrase(words[index].start, words[index].end, kind))
        last = index
    return found


def _without(text: str, starts: Collection[int]) -> str:
    """The text without the words that begin at `starts` and the prepositions and articles that led to them, punctuation put right."""
    words = split(text)
    cut = [word.start in starts for word in words]
    for index in reversed(range(len(words) - 1)):
        if cut[index + 1] and words[index + 1].joined:
            joins = words[index].key in ("and", "or") and index > 0 and cut[index - 1]
            cut[index] |= joins or words[index].key in _LEADS
    rest = ""
    for index, word in enumerate(words):
        inner = index > 0 and cut[index - 1] and cut[index] and word.joined
        rest += (" " if inner else word.gap) + ("" if cut[index] else word.text)
    rest += text[words[-1].end :]
    for pattern, replacement in _TIDY:
        rest = pattern.sub(replacement, rest)
    return rest.strip() if split(rest) else ""


_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[ \t]{2,}", " "),
        (r"\([\s,;/-]*\)|\[[\s,;/-]*\]", ""),
        (r"[ \t-]+(?=[,.;:!?)\]])", ""),
        (r"[,;:](?:[ \t]*[,;:])*(?=[ \t]*[.;!?])", ""),
        (r"([,;:])(?:[ \t]*[,;])+", r"\1"),
        (r"([.;!?\n])[ \t]*(?:[.,;:][ \t]*)+", r"\1 "),
        (r"\A[\s.,;:!?)/-]+", ""),
    )
)
