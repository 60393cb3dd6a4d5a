"""The committed sentences: how much is found, how often it cries wolf. `pytest -s` on this file prints the figures of the docs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tmca_core.errors import ManifestError
from tmca_core.text.screen import KINDS
from tmca_core.text.screen.scoring import Score, Sentence, read_sentences, score

PATH = Path(__file__).with_name("sentences.csv")
HALVES = ("tuning", "held-out")


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return read_sentences(PATH)


def of(sentences: Sequence[Sentence], half: str = "", language: str = "") -> list[Sentence]:
    return [one for one in sentences if half in ("", one.half) and language in ("", one.language)]


def figures(name: str, result: Score) -> str:
    touched = result.touched / max(1, result.identifiers)
    return (
        f"{name}: {result.identifiers} identifiers, recall {result.recall:.4f} (touched {touched:.4f}); "
        f"{result.clean} sentences without any, false alarms {result.alarms} ({result.false_alarms:.4f}), spurious {result.spurious}"
    )


def test_the_set_is_large_and_varied(sentences: list[Sentence]) -> None:
    assert len(sentences) >= 300 and len({one.text for one in sentences}) == len(sentences)
    assert sum(one.group == "trap" for one in sentences) >= 100
    kinds = Counter(found.kind for one in sentences for found in one.identifiers)
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 5
    for half in HALVES:
        assert len(of(sentences, half)) >= 300 and len(of(sentences, half, "de")) >= 40
    assert all(bool(one.identifiers) == (one.group == "identifier") for one in sentences)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("language", ["", "en", "de"])
def test_recall_and_false_alarms(sentences: list[Sentence], half: str, language: str) -> None:
    result = score(of(sentences, half, language))
    print("\n" + figures(f"{half}, {language or 'all'}", result), dict(result.kinds))
    assert result.recall >= 0.98
    assert result.false_alarms <= 0.01
    assert result.spurious <= 0.01 * result.sentences


@pytest.mark.parametrize("half", HALVES)
def test_with_both_languages_at_once(sentences: list[Sentence], half: str) -> None:
    result = score(of(sentences, half), ("en", "de"))
    print("\n" + figures(f"{half}, both languages' rules", result))
    assert result.recall >= 0.98 and result.false_alarms <= 0.01


def test_every_kind_is_mostly_found(sentences: list[Sentence]) -> None:
    for kind, (known, found) in score(sentences).kinds.items():
        assert found >= 0.9 * known, kind


def test_counting_is_right() -> None:
    found = score(
        [
            Sentence("Dr Lee and Mxyzt.", [], "en", "clean", "tuning"),  # a false alarm
            Sentence("Seen by Dr Lee.", read("{name|Lee}", 11), "en", "identifier", "tuning"),
            Sentence("Uses qwerty as a token.", read("{record|qwerty}", 5), "en", "identifier", "tuning"),
        ]
    )
    assert (found.identifiers, found.found, found.touched, found.clean, found.alarms, found.spurious) == (2, 1, 1, 1, 1, 0)
    assert (found.recall, found.false_alarms) == (0.5, 1.0)
    assert found.missed == ["record: qwerty | Uses qwerty as a token."]


def read(marked: str, at: int) -> list:
    from tmca_core.text.screen import Finding

    kind, text = marked.strip("{}").split("|")
    return [Finding(at, at + len(text), kind)]


def test_a_bad_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("language,group,half,sentence\nen,trap,tuning,{nmae|Lee} was here\n")
    with pytest.raises(ManifestError, match="row 2: kind 'nmae' is unknown"):
        read_sentences(path)
    path.write_text("language,group,sentence\nen,trap,Lee was here\n")
    with pytest.raises(ManifestError, match="column 'half' is missing"):
        read_sentences(path)
