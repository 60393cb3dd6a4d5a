"""Left and right exchanged in an English report."""

from __future__ import annotations

from tmca_core.text.words import LOBE_TWINS, SIDE_TWINS, Word, same_case, split


def swap_sides(text: str) -> str:
    """The same report with left and right exchanged; swapping twice gives the text back, whatever the text.

    Exchanged, in lower, Capitalised or UPPER case: left/right with their compounds (left-sided, leftward, leftmost …) and
    their commonest misspellings; R/L and Rt/Lt before a word of anatomy or in pairs ("R > L"); RUL, RML, RLL, RUZ, RUQ …
    (RML becomes LML, which no anatomist knows but every reader understands). The lingula is the left lung's counterpart of
    the middle lobe, so "lingula" and "middle lobe" are exchanged too: "right middle lobe" becomes "left lingula".

    Left alone: "bilateral", "both", left in other senses where the words around it show it ("patient left the hospital",
    "left untreated", "a few fibrous lesions left"; the same surroundings protect "right", so that the exchange stays its
    own inverse), handedness, mixed case ("LeFt"), and languages other than English.

    Example:
        >>> swap_sides("Left-sided effusion; RUL clear. Patient left the hospital.")
        'Right-sided effusion; LUL clear. Patient left the hospital.'
    """
    parts: list[str] = []
    end = 0
    for word in split(text):
        parts.append(text[end : word.start])
        parts.append(_twin(word) if word.side else word.text)
        end = word.end
    return "".join([*parts, text[end:]])


def _twin(word: Word) -> str:
    """A word that names a side, for the other side."""
    twin = {**SIDE_TWINS, **LOBE_TWINS}.get(word.text.lower())
    if twin is not None:
        cased = same_case(word.text, twin)
        if cased is None:
            raise AssertionError(f"'{word.text}' was taken as a side although its case has no twin.")
        return cased
    return str.translate(word.text[0], str.maketrans("rlRL", "lrLR")) + word.text[1:]
