"""What each word of a sentence is about: a place, a look, or a disease."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

from tmca_core.text import lexicon
from tmca_core.text.places import breaks, find_places, side_words
from tmca_core.text.words import Word

PhraseKind = Literal["descriptive", "diagnostic", "locational", "left", "right"]

_SIDES: dict[frozenset[int], PhraseKind] = {frozenset((0,)): "left", frozenset((1,)): "right"}
_PLURALS = {"lungs", "sides", "bases", "lobes", "zones", "fields", "hemithoraces", "apices", "parts", "regions", "areas"}


def word_kinds(words: Sequence[Word]) -> list[PhraseKind | None]:
    """Kind of every word of a sentence; None for words of no phrase."""
    kinds = _located(words)
    keys = [_spelt(word.key) for word in words]
    for index, key in enumerate(keys):
        if key in lexicon.DIAGNOSIS:
            kinds[index] = "diagnostic"
        elif (key in lexicon.LOOK and kinds[index] is None) or key in lexicon.PLEURAL & lexicon.LOOK:
            kinds[index] = "descriptive"
    _describe(words, keys, kinds)
    _attach_organs(words, keys, kinds)
    _interpret(words, keys, kinds)
    return kinds


def _located(words: Sequence[Word]) -> list[PhraseKind | None]:
    """Words of place: sides, thirds, and the nouns and adjectives of place beside them."""
    kinds: list[PhraseKind | None] = [None] * len(words)
    for place in find_places(words):
        kind = _SIDES.get(frozenset(side for side, _ in place.zones), "locational")
        for index in range(place.at, place.last + 1):
            kinds[index] = None if words[index].key in lexicon.LINKS - lexicon.BOTH else kind
    for index, word in enumerate(words):
        if word.key in lexicon.BOTH - {"both"} or word.key in lexicon.WHOLE:
            kinds[index] = "locational"
    for index in side_words(words):
        kinds[index] = words[index].side or "locational"
    for index, word in enumerate(words):
        if kinds[index] is None and (word.key in lexicon.LUNG - lexicon.ORGAN | {"lung"} or word.key in lexicon.POSITION):
            owner = _neighbour(words, kinds, index)
            both = word.key in _PLURALS and {"left", "right"} <= set(kinds[max(0, index - 3) : index])
            if owner is not None or word.key in lexicon.POSITION:
                kinds[index] = "locational" if both or owner is None else owner
    return kinds


def _neighbour(words: Sequence[Word], kinds: Sequence[PhraseKind | None], index: int) -> PhraseKind | None:
    """Place of the nearest word before, else after, with nothing but articles and words of place between."""
    bridge = lexicon.LUNG | lexicon.POSITION | lexicon.ORGAN | {"of", "the", "in", "his", "her", "its", "patient's", "to", "at"}
    for step in (-1, 1):
        for position in range(index + step, index + 5 * step, step):
            if not 0 <= position < len(words) or breaks(words[max(position, position - step)]):
                break
            if kinds[position] is not None:
                return kinds[position]
            if words[position].key not in bridge:
                break
    return None


def _describe(words: Sequence[Word], keys: Sequence[str], kinds: list[PhraseKind | None]) -> None:
    """Numbers, sizes and shapes beside a finding; "areas" and the like that are counted or infected."""
    for index, key in enumerate(keys):
        before = keys[index - 1] if index and words[index].joined else ""
        counted = before in lexicon.NUMBERS or before.isdigit() or before == "infected"
        if kinds[index] is None and key in lexicon.COUNTED and counted:
            kinds[index] = "descriptive"
    for index in [*reversed(range(len(words))), *range(len(words))]:
        key = keys[index]
        plain = len(key) <= 2 and key.isascii() and key.isdigit() and "-" not in words[index].gap
        number = key in lexicon.NUMBERS or plain
        if kinds[index] is None and (key in lexicon.MODIFIER or number) and _beside_finding(words, keys, kinds, index, number):
            kinds[index] = "descriptive"


def _beside_finding(words: Sequence[Word], keys: Sequence[str], kinds: Sequence[PhraseKind | None], index: int, number: bool) -> bool:
    """A finding follows at once or over words of place and organ; or "is", "are" … link the word to a finding before it."""
    for position in range(index + 1, min(len(words), index + 5)):
        if breaks(words[position]):
            break
        if kinds[position] in ("descriptive", "diagnostic"):
            return True
        if keys[position] not in lexicon.ORGAN | lexicon.MODIFIER | lexicon.LUNG and kinds[position] is None:
            break
    linked = False
    for position in range(index - 1, max(-1, index - 9), -1):
        if number or breaks(words[position + 1]):
            break
        if kinds[position] == "descriptive":
            return linked or position == index - 1
        linked |= keys[position] in lexicon.COPULAS
        if kinds[position] is None and keys[position] not in lexicon.COPULAS | lexicon.LINKS:
            break
    return False


def _attach_organs(words: Sequence[Word], keys: Sequence[str], kinds: list[PhraseKind | None]) -> None:
    """ "pulmonary infection", "pleural effusion", "lung cancer": the organ goes with its finding, else with its place."""
    for index in reversed(range(len(words) - 1)):
        follower = kinds[index + 1]
        if kinds[index] is None and keys[index] in lexicon.ORGAN and words[index + 1].joined and follower in ("descriptive", "diagnostic"):
            kinds[index] = follower
    for index, word in enumerate(words):
        before = kinds[index - 1] if index and word.joined else None
        if kinds[index] is None and (
            (keys[index] in lexicon.ORGAN and before in ("left", "right", "locational"))
            or (keys[index].isdigit() and before == "diagnostic" and word.gap.strip())
        ):
            kinds[index] = before


def _interpret(words: Sequence[Word], keys: Sequence[str], kinds: list[PhraseKind | None]) -> None:
    """Certainty wording before or after a disease; and what follows "in keeping with", "suspicious for" … is a diagnosis."""
    for index, key in enumerate(keys):
        if key not in lexicon.INTERPRETING or kinds[index] is not None:
            continue
        for position in range(index + 1, len(words)):
            if breaks(words[position]) or kinds[position] in ("left", "right", "locational") or keys[position] in lexicon.BREAKS:
                break
            if kinds[position] == "descriptive":
                kinds[position] = "diagnostic"
    bridge = lexicon.LINKS | lexicon.CERTAINTY | lexicon.MODIFIER | {"been", "being", "very", "most", "highly"}
    for index, key in enumerate(keys):
        if key not in lexicon.CERTAINTY or kinds[index] is not None:
            continue
        for step in (1, -1):
            for position in range(index + step, index + 6 * step, step):
                if not 0 <= position < len(words) or breaks(words[max(position, position - step)]):
                    break
                if kinds[position] == "diagnostic":
                    kinds[index] = "diagnostic"
                if kinds[position] is not None or keys[position] not in bridge:
                    break
        if kinds[index] and key == "keeping" and index and keys[index - 1] == "in":
            kinds[index - 1] = "diagnostic"


_SPELT = lexicon.LOOK | lexicon.DIAGNOSIS | lexicon.MODIFIER | lexicon.CERTAINTY | lexicon.ORGAN


@cache
def _slips() -> dict[str, str]:
    """Long words of findings with two inner letters exchanged or one dropped, to the words meant."""
    slips: dict[str, str] = {}
    for word in sorted(word for word in _SPELT if len(word) >= 6):
        for at in range(1, len(word) - 2):
            for letters in (word[at + 1] + word[at], word[at + 1]):
                slips.setdefault(word[:at] + letters + word[at + 2 :], word)
    return slips


def _spelt(key: str) -> str:
    """A word's key with one slip of the keyboard put right, where that makes it a word of findings."""
    return key if key in _SPELT else _slips().get(key, key)
