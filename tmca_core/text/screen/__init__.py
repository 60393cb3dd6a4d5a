"""What in a report may identify a person. Assistance for those who de-identify, never a guarantee: see docs/deidentification.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tmca_core.text.screen import english, german  # noqa: F401  (they register)
from tmca_core.text.screen.interface import KINDS, LANGUAGES, Finding, Language
from tmca_core.text.screen.names import Reader, split
from tmca_core.text.screen.shapes import SHAPES

__all__ = ["KINDS", "LANGUAGES", "Finding", "screen"]


def screen(text: str, languages: Sequence[str] = ("en",), allowed: Iterable[str] = ()) -> list[Finding]:
    """Everything in a text that may identify a person, in its order, without overlaps.

    Args:
        text: a report.
        languages: names in `LANGUAGES`; the rules of all of them are used, those on capital letters by the language the text is in.
        allowed: words that identify nobody here, in any case of letters.

    Raises:
        ConfigError: a language is unknown.

    Example:
        >>> [(found.kind, "Dr Lee saw Kerley B lines on 3 May 2021."[found.start : found.end])
        ...  for found in screen("Dr Lee saw Kerley B lines on 3 May 2021.")]
        [('name', 'Lee'), ('date', '3 May 2021')]
    """
    rules = [LANGUAGES[name]() for name in languages]
    words = split(text)
    allowed_words = frozenset(word.lower() for word in allowed)
    found = []
    for shape in (*SHAPES, *(shape for language in rules for shape in language.shapes)):
        for match in shape.pattern.finditer(text):
            group = "id" if "id" in shape.pattern.groupindex else 0
            if match[group] and shape.accept(match) and match[group].lower() not in allowed_words:
                found.append(Finding(*match.span(group), shape.kind))
    marks = [sum(word.key in language.marks for word in words) for language in rules]
    for language, mark in zip(rules, marks, strict=True):
        reader = Reader(words, text, _with_words_of(rules, language), allowed_words)
        found += reader.introduced()
        if mark == max(marks):
            found += reader.listed()
    return _apart(found)


def _with_words_of(rules: Sequence[Language], language: Language) -> Language:
    """The language; what is an ordinary word or makes an eponym in one that is in use does so in it too."""
    if len(rules) == 1:
        return language
    ordinary, heads = (frozenset(word for rule in rules for word in getattr(rule, name)) for name in ("ordinary", "heads"))
    endings = tuple(ending for rule in rules for ending in rule.endings)
    return replace(language, ordinary=ordinary, heads=heads, endings=endings)


def _apart(found: Iterable[Finding]) -> list[Finding]:
    """Without overlaps: what overlaps is one, of the kind of its longest part."""
    kept: list[Finding] = []
    longest = 0
    for one in sorted(found):
        if kept and one.start < kept[-1].end:
            last = kept[-1]
            kind, longest = (one.kind, one.end - one.start) if one.end - one.start > longest else (last.kind, longest)
            kept[-1] = Finding(last.start, max(last.end, one.end), kind)
        else:
            kept.append(one)
            longest = one.end - one.start
    return kept
