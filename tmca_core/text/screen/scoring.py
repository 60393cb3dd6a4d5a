"""How much of a labelled set the screen finds, and how often it cries wolf."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tmca_core.errors import ManifestError
from tmca_core.text.screen import KINDS, Finding, screen

_MARK = re.compile(r"\{([a-z_]+)\|([^{}]*)\}")


@dataclass(frozen=True)
class Sentence:
    """A sentence and the identifiers that it holds; `group` is "identifier", "trap" or "clean", `half` "tuning" or "held-out"."""

    text: str
    identifiers: Sequence[Finding]
    language: str
    group: str
    half: str


@dataclass(frozen=True)
class Score:
    """What the screen did on some sentences.

    Attributes:
        sentences, identifiers: how many there are.
        found: identifiers of which every letter and digit is in a finding.
        touched: identifiers that overlap a finding: the gate would have stopped their report.
        clean: sentences without any identifier, traps among them.
        alarms: those of them with a finding, which is false.
        spurious: findings in sentences with identifiers that touch none of these.
        kinds: kind → (identifiers, found).
        missed, false: the sentences, for whoever tunes.
    """

    sentences: int = 0
    identifiers: int = 0
    found: int = 0
    touched: int = 0
    clean: int = 0
    alarms: int = 0
    spurious: int = 0
    kinds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    missed: Sequence[str] = ()
    false: Sequence[str] = ()

    @property
    def recall(self) -> float:
        """Share of the identifiers that are found whole."""
        return self.found / max(1, self.identifiers)

    @property
    def false_alarms(self) -> float:
        """Share of the sentences without identifiers in which something is found."""
        return self.alarms / max(1, self.clean)


def read_sentences(path: Path) -> list[Sentence]:
    """A labelled set: CSV with language, group, half and sentence, in which identifiers stand as `{kind|text}`.

    Raises:
        ManifestError: a column is missing or a kind unknown.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [_sentence(path, number, row) for number, row in enumerate(rows, 2)]


def _sentence(path: Path, number: int, row: Mapping[str, str]) -> Sentence:
    plain, identifiers, end = "", [], 0
    try:
        marked, about = row["sentence"], (row["language"], row["group"], row["half"])
    except KeyError as error:
        raise ManifestError(f"{path}, row {number}: column {error} is missing.") from None
    for match in _MARK.finditer(marked):
        plain += marked[end : match.start()]
        if match[1] not in KINDS:
            raise ManifestError(f"{path}, row {number}: kind '{match[1]}' is unknown; known: {', '.join(KINDS)}.")
        identifiers.append(Finding(len(plain), len(plain) + len(match[2]), match[1]))
        plain, end = plain + match[2], match.end()
    return Sentence(plain + marked[end:], identifiers, *about)


def score(sentences: Iterable[Sentence], languages: Sequence[str] | None = None) -> Score:
    """Screen each sentence, with `languages` or with that of the sentence, and count."""
    counts: Counter[str] = Counter()
    kinds: dict[str, tuple[int, int]] = {}
    missed, false = [], []
    for sentence in sentences:
        findings = screen(sentence.text, languages or (sentence.language,))
        covered = {place for finding in findings for place in range(finding.start, finding.end)}
        counts["sentences"] += 1
        for one in sentence.identifiers:
            places = [place for place in range(one.start, one.end) if sentence.text[place].isalnum()]
            whole = covered.issuperset(places)
            counts.update(identifiers=1, found=whole, touched=not covered.isdisjoint(places))
            known, hit = kinds.get(one.kind, (0, 0))
            kinds[one.kind] = known + 1, hit + whole
            missed += [] if whole else [f"{one.kind}: {sentence.text[one.start : one.end]} | {sentence.text}"]
        spurious = [f for f in findings if not any(f.start < one.end and one.start < f.end for one in sentence.identifiers)]
        counts.update({"clean": not sentence.identifiers, "alarms" if not sentence.identifiers else "spurious": bool(spurious)})
        false += [f"{f.kind}: {sentence.text[f.start : f.end]} | {sentence.text}" for f in spurious]
    return Score(**counts, kinds=kinds, missed=missed, false=false)
