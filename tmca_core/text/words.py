"""English report text as words, each with the side that it names, if it names one.

A word's side is decided by rules that treat "left" and "right" alike, so that `tmca_core.text.sides` can swap them
and get the same text back by swapping again. English only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tmca_core.text.lexicon import terms

Side = Literal["left", "right", ""]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# Misspellings one slip away from "left" and "right" that are no English words, as twins: the same slip on either word
# (transposed, dropped, doubled, or a neighbouring key). "right" is one letter longer; slips at its "h" are twinned with
# a letter too many before the "t" of "left".
_SLIPS = {
    **{"elft": "irght", "lfet": "rihgt", "letf": "rigth", "lfeht": "rgiht"},
    **{"eft": "ight", "lft": "rght", "lef": "righ", "lehft": "riht", "lefht": "rigt"},
    **{"lleft": "rright", "leeft": "riight", "lefft": "rigght", "leftt": "rightt", "leffht": "righht"},
    **{f"l{key}ft": f"r{key}ght" for key in "wrsdukja"},
    **{f"le{key}t": f"ri{key}ht" for key in "drtvchby"} | {"legt": "rifht"},
    **{f"lef{key}": f"righ{key}" for key in "ryfg"},
    **{f"lef{key}t": f"rig{key}t" for key in "jyubn"},
}
_LEFT = {"left": "right", **{f"left{end}": f"right{end}" for end in ("ward", "wards", "most", "side", "sided", "hand")}, **_SLIPS}
SIDE_TWINS = {**_LEFT, **{right: left for left, right in _LEFT.items()}}
"""Lower-case words that name a side, to their twins on the other."""

LOBE_TWINS = {"lingula": "middle lobe", "lingular": "middle-lobe", "middle lobe": "lingula", "middle-lobe": "lingular"}
"""The left lung has a lingula where the right has a middle lobe."""

ABBREVIATION = re.compile(r"[rl](?:[uml][lz]|[ul]q)", re.ASCII | re.IGNORECASE)
"""RUL, RML, RLL and LUL, LML, LLL (lobes), RUZ … LLZ (zones), RUQ … LLQ (quadrants)."""

_ANATOMY = terms(
    "lung lungs pulmonary lobe lobes lobar zone zones field fields base bases basal basilar basilary apex apices apical upper "
    "lower mid middle midzone midzones midlung hilum hilar hilus hila perihilar parahilar suprahilar infrahilar paracardiac "
    "retrocardiac hemithorax thorax chest side sided pleura pleural effusion effusions costophrenic cp hemidiaphragm diaphragm "
    "lobe* consolidation consolidations opacity opacities infiltrate infiltrates atelectasis pneumonia pneumothorax ptx nodule "
    "mass lesion lesions heart breast arm leg"
)
# "on the left", "lower left": here the word is a side whatever follows it.
_LOCATING = terms("the on to of in at from upper lower mid middle than extreme far patient's his her")
_PERSONS = terms("patient patients he she they who i we you family wife husband mother father son daughter had has have having be being")
_LEAVING = terms("the a an his her their our its this hospital home for against without town work china wuhan ama to on before after")
_LEAVING_AFTER_AND = terms("the his her their our hospital home against")
_REMAINING = terms("untreated alone behind over off out open blank intact unattended undisturbed undone away now handed hander handers")
_QUANTITY = terms("few no only little nothing none still any days hours")
_PLACE = terms("place situ")


@dataclass(slots=True)
class Word:
    """One word of a text.

    Attributes:
        start: first character; `end`: one past the last.
        text: as written.
        key: lower case; the lingula and the middle lobe share the key "lobe*".
        gap: what stands between the word before and this one.
        side: the side that the word names as written, or "".
        kind: "side" (left, right-sided, R), "abbreviation" (RUL), "lobe" (lingula, middle lobe), or "" for all other words.
    """

    start: int
    end: int
    text: str
    key: str
    gap: str
    side: Side = ""
    kind: Literal["side", "abbreviation", "lobe", ""] = ""

    @property
    def joined(self) -> bool:
        """Only blanks or a hyphen stand before this word."""
        return self.gap.strip() in ("", "-", "‐", "–")


def same_case(model: str, word: str) -> str | None:
    """`word` in the case of `model` where that is lower, Capitalised or UPPER; else None."""
    for form in (str.lower, str.capitalize, str.upper):
        if form(model) == model:
            return form(word)
    return None


def split(text: str) -> list[Word]:
    """Words of a text in order, with sides decided."""
    words: list[Word] = []
    end = 0
    for match in _WORD.finditer(text):
        word = Word(match.start(), match.end(), match[0], match[0].lower(), text[end : match.start()])
        end = match.end()
        if words and words[-1].key == "middle" and word.key == "lobe" and word.gap in (" ", "-"):
            both = text[words[-1].start : end]
            if same_case(both, both) is not None:
                words[-1] = Word(words[-1].start, end, both, "lobe*", words[-1].gap, "right", "lobe")
                continue
        words.append(word)
        if word.key in ("lingula", "lingular") and same_case(word.text, word.text) is not None:
            word.key, word.side, word.kind = "lobe*", "left", "lobe"
    for index, word in enumerate(words):
        if word.kind == "" and word.text.isascii():
            _decide(words, index)
    return words


def _decide(words: Sequence[Word], index: int) -> None:
    """Set side and kind of a word. Never looks at which side a word names, only at whether it can name one."""
    word = words[index]
    side: Side = "left" if word.key.startswith("l") or word.key in _LEFT else "right"
    if word.key in SIDE_TWINS:
        if same_case(word.text, word.text) is not None and not _is_other_sense(words, index):
            word.side, word.kind = side, "side"
    elif word.key in ("r", "l"):
        if word.text.isupper() and _letter_is_side(words, index):
            word.side, word.kind = side, "side"
    elif word.key in ("rt", "lt"):
        if same_case(word.text, word.text) is not None and _before_anatomy(words, index):
            word.side, word.kind = side, "side"
    elif ABBREVIATION.fullmatch(word.text):
        word.side, word.kind = side, "abbreviation"


def _is_other_sense(words: Sequence[Word], index: int) -> bool:
    """Past tense of leave ("left the hospital"), what remains ("a few lesions left"), "right away", handedness."""
    word = words[index]
    before = words[index - 1].key if index and word.joined else ""
    follower = words[index + 1] if index + 1 < len(words) else None
    after = follower.key if follower is not None and follower.joined else ""
    if after in ("handed", "hander", "handers"):
        return True
    if before in _LOCATING:
        return False
    if after in _REMAINING:
        return True
    if after == "in" and index + 2 < len(words) and words[index + 2].key in _PLACE:
        return True
    if before in _PERSONS and (not after or after in _LEAVING):
        return True
    if before in ("and", "then") and after in _LEAVING_AFTER_AND:
        return True
    if not after and before:
        position = index
        while position and not set(words[position].gap) & set(".;:!?,\n()"):
            position -= 1
            if words[position].key in _QUANTITY:
                return True
    return False


def _before_anatomy(words: Sequence[Word], index: int) -> bool:
    """ "L base", "Rt. lung", "(R) effusion": a word of anatomy follows."""
    if index + 1 >= len(words):
        return False
    follower = words[index + 1]
    return follower.key in _ANATOMY and follower.gap.strip() in ("", ".", ")", "-", ".)")


def _letter_is_side(words: Sequence[Word], index: int) -> bool:
    """A single R or L: before anatomy and not a unit ("2 L"), or one of a pair ("R > L", "L and R bases")."""
    if index and words[index - 1].key[-1:].isdigit() and words[index].gap.strip() == "":
        return False
    if _before_anatomy(words, index):
        return True
    letters = ("R", "L")
    for one, two in ((index, index + 1), (index - 1, index)):
        pair = one >= 0 and two < len(words) and words[one].text in letters and words[two].text in letters
        if pair and words[two].gap.strip() in (">", "<", "/", "=", "+", "&", ">>", "<<"):
            return True
    return (
        index + 2 < len(words)
        and words[index + 1].key in ("and", "or")
        and words[index + 2].text in letters
        and _before_anatomy(words, index + 2)
    )
