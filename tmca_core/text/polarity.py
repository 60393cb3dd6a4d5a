"""What a sentence says about each of its words: denied, doubted, healthy, or spared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tmca_core.text import lexicon
from tmca_core.text.words import Word

_SHOWING = lexicon.terms("showing shows show demonstrates reveals")
_ENDS = lexicon.terms("but however although while whereas though which there") | _SHOWING
_SEEN = lexicon.terms(
    "seen identified evident visible visualised visualized noted detected demonstrated present observed found apparent appreciated"
)
_PERFECT = lexicon.terms("has have had is are was were been now since")
# May stand between what is over and "resolved", or before "resolution".
_LEADING = (
    _PERFECT | lexicon.PARTLY | lexicon.NEGATIONS | lexicon.terms("also all to that which who can complete interval evidence of a the")
)
_UNABLE = lexicon.terms("not cannot can't can’t couldn't couldn’t")


@dataclass(slots=True)
class Polarity:
    """Flags a word of one sentence, each list as long as the sentence.

    Attributes:
        denied: within "no …", "without …".
        healthy: said to be clear, normal or unremarkable.
        spared: taken out of what else is affected ("except for …").
        doubted: within "possible …", "… cannot be excluded".
        governed: words of denial or doubt, and the words that they deny or doubt, as (index ranges) pairs.
    """

    denied: list[bool]
    healthy: list[bool]
    spared: list[bool]
    doubted: list[bool]
    governed: list[tuple[range, range]] = field(default_factory=list)

    def govern(self, flags: list[bool], cue: range, first: int, end: int) -> None:
        """Flag the words from `first` to `end` (exclusive) because of the words `cue`."""
        _mark(flags, first, end)
        self.governed.append((cue, range(first, end)))


def read_polarity(words: Sequence[Word], ending: str) -> Polarity:
    """Polarity of every word of a sentence.

    Args:
        words: the sentence.
        ending: what follows its last word; a question mark is doubt.
    """
    size = len(words)
    flags = Polarity([False] * size, [False] * size, [False] * size, [False] * size)
    starts = _segment_starts(words)
    left_open = {index: cue for index in range(size) if (cue := _left_open(words, index))}
    open_words = {index for cue in left_open.values() for index in cue}
    for index, word in enumerate(words):
        segment = max(start for start in starts if start <= index)
        end = min([start for start in starts if start > index], default=size)
        after = words[index + 1].key if index + 1 < size and words[index + 1].joined else ""
        # "does not show", "no longer shows": what is denied follows the verb.
        last = index + 1 + (after == "longer")
        if last < size and words[last].key in _SHOWING:
            after = words[last].key
        else:
            last = index
        if word.key in lexicon.NEGATIONS and not (word.key == "free" and after != "of"):
            # "no change in …", "has not cleared", "none of … has resolved" deny the course, not the finding.
            near = end if (word.key, after) == ("none", "of") else min(end, index + 4)
            unchanged = any(w.key in lexicon.COURSE | lexicon.GONE for w in words[index + 1 : near])
            if after not in lexicon.NO_NEGATION_AFTER and not unchanged and index not in open_words:
                first = index
                if after in _SEEN:
                    first = _clause_start(words, index, segment)
                elif not any(w.key in lexicon.FINDING for w in words[segment:index]):
                    first = segment
                flags.govern(flags.denied, range(index, index + 1), first, _scope_end(words, last, starts))
        if word.key in lexicon.CLEAR:
            _read_clear(words, index, segment, end, flags)
        if over := _over(words, index):
            _read_over(words, over, (max((start for start in starts if start < segment), default=0), segment, end), flags)
        if word.key in lexicon.SPARING:
            before = index and (
                words[index - 1].key in lexicon.LEVELS or words[index - 1].key in lexicon.LUNG or words[index - 1].kind != ""
            )
            _mark(flags.spared, *((segment, index) if before and word.key == "sparing" else (index, end)))
        if word.key in lexicon.DOUBT or index in left_open:
            cue = left_open.get(index, range(index, index + 1))
            onward = any(w.kind or w.key in lexicon.LEVELS or w.key in lexicon.FINDING for w in words[cue.stop : end])
            flags.govern(flags.doubted, cue, *((index, end) if onward else (_clause_start(words, index, segment), cue.stop)))
    if ending.strip().startswith("?"):
        _mark(flags.doubted, starts[-1], size)
    return flags


def _mark(flags: list[bool], first: int, end: int) -> None:
    flags[first:end] = [True] * (end - first)


def _segment_starts(words: Sequence[Word]) -> list[int]:
    """Where segments begin: at the start, after commas and brackets, and at "but" and its like."""
    return [i for i, w in enumerate(words) if i == 0 or any(mark in w.gap for mark in ",()") or w.key in lexicon.BREAKS]


def _left_open(words: Sequence[Word], index: int) -> range:
    """The words of "cannot be excluded", "not ruled out", "cannot exclude" … whose verb is at `index`; empty where there is none."""
    key = words[index].key
    out = index + 1 < len(words) and words[index + 1].key == "out"
    if key in ("excluded", "exclude") or (key in ("ruled", "rule") and out):
        for first in range(index - 1, max(-1, index - 4), -1):
            if words[first].key in _UNABLE:
                able = words[first].key == "not" and first > 0 and words[first - 1].key in ("can", "could")
                return range(first - able, index + 1 + (key in ("ruled", "rule")))
    return range(0)


def _scope_end(words: Sequence[Word], index: int, starts: Sequence[int]) -> int:
    """A denial reaches to the end of its segment, and over a list of segments that ends in "or …"."""
    bounds = [start for start in starts if start > index] + [len(words)]
    reach = 0
    for position, (first, end) in enumerate(itertools.pairwise(bounds), start=1):
        keys = [w.key for w in words[first:end]]
        if keys[0] in lexicon.BREAKS or "there" in keys:
            break
        if "or" in keys or "nor" in keys:
            reach = position
    stop = next((i for i in range(index + 1, bounds[reach]) if words[i].key in _ENDS), bounds[reach])
    return stop


def _clause_start(words: Sequence[Word], index: int, segment: int) -> int:
    """Backward from a predicate to where its clause began: the segment's start, or an "and" or "with" that follows a finding."""
    for position in range(index - 1, segment, -1):
        if words[position].key in ("and", "with", "which") and any(w.key in lexicon.FINDING for w in words[segment:position]):
            return position
    return segment


def _read_clear(words: Sequence[Word], index: int, segment: int, end: int, flags: Polarity) -> None:
    """ "the left lung is clear" looks back; "normal left lung" and "clear lungs" look on."""
    # "was absolutely normal": adverbs do not separate the verb from its predicate.
    last = next((i for i in range(index - 1, segment - 1, -1) if not words[i].key.endswith("ly")), segment - 1)
    before = words[last] if last >= segment else None
    ahead = [w.key for w in words[index + 1 : min(end, index + 4)]]
    attributive = (
        bool(ahead)
        and any(key in lexicon.LUNG or key in lexicon.LEVELS or key in lexicon.IMAGING for key in ahead)
        and not set(ahead) & lexicon.FINDING
    )
    if before is not None and (before.key in lexicon.COPULAS or before.key in lexicon.IMAGING or before.kind == "side"):
        if ahead[:1] and (ahead[0] in lexicon.FINDING or ahead[0] in lexicon.ELSEWHERE):
            return
        _mark(flags.healthy, _clause_start(words, index, segment), index + 1)
    elif attributive:
        stop = next((i for i in range(index + 1, end) if words[i].key in ("and", "with")), end)
        _mark(flags.healthy, index, stop)
    elif len(words) == 1:
        _mark(flags.healthy, index, index + 1)


def _over(words: Sequence[Word], index: int) -> range:
    """The words of "resolved", "resolution of", "no longer (be) seen" … that begin at `index`; empty where there are none."""
    keys = [w.key for w in words[index : index + 4]]
    if keys[0] in lexicon.GONE:
        return range(index, index + 1)
    if keys[0] in lexicon.GOING and keys[1:2] == ["of"]:
        return range(index, index + 2)
    verb = 3 if keys[2:3] == ["be"] else 2
    return range(index, index + verb + 1) if keys[:2] == ["no", "longer"] and set(keys[verb : verb + 1]) & _SEEN else range(0)


def _read_over(words: Sequence[Word], cue: range, bounds: tuple[int, int, int], flags: Polarity) -> None:
    """ "the left opacity has resolved" and ", now resolved" look back; "resolution of …", "resolved opacity" look on.

    Args:
        words: the sentence.
        cue: what `_over` found.
        bounds: starts of the segment before and of the segment of `cue`, and the latter's end.
        flags: set here.
    """
    before, segment, end = bounds
    first = cue.start
    while first > segment and (words[first - 1].key in _LEADING or words[first - 1].key.endswith("ly")):
        first -= 1
    leading = {w.key for w in words[first : cue.start]}
    # "infiltrates that cleared on day 10" tells what came after the film.
    told = bool(leading & {"that", "which", "who"}) and not leading & _PERFECT
    if told or leading & (lexicon.PARTLY | lexicon.NEGATIONS | lexicon.DOUBT):
        return
    noun = words[cue.start].key in lexicon.GOING
    stop = _over_end(words, cue.stop, end, noun)
    ahead = any(w.kind or w.key in lexicon.LEVELS or w.key in lexicon.FINDING for w in words[cue.stop : stop])
    if noun or first == 0 or (first == segment and ahead):
        flags.govern(flags.denied, cue, cue.start, stop)
        return
    last = words[first - 1]
    if not (last.kind or any(last.key in known for known in (lexicon.FINDING, lexicon.LUNG, lexicon.LEVELS, lexicon.IMAGING, _SEEN))):
        return
    begin = _clause_start(words, first, before if first == segment else segment)
    if words[begin].key in lexicon.NEGATIONS:
        return
    if any(w.key in lexicon.FINDING for w in words[begin:stop]):
        flags.govern(flags.denied, cue, begin, stop)
    elif words[cue.start].key in lexicon.GONE:
        _mark(flags.healthy, begin, cue.stop)


def _over_end(words: Sequence[Word], start: int, end: int, noun: bool) -> int:
    """Where what is over ends: at "with", at "but" and its like, and at an "and" that leads to something which is not over."""
    for index in range(start, end):
        onward = not noun or any(w.key in lexicon.STAYING | _PERFECT for w in words[index + 1 : end])
        if words[index].key in _ENDS or words[index].key == "with" or (words[index].key == "and" and onward):
            return index
    return end
