from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.phantom.films import plan_site
from tmca_core.config import PhantomSettings
from tmca_core.text.features import zones_and_certainty
from tmca_core.text.findings import parse
from tmca_core.text.lexicon import terms
from tmca_core.text.phrases import Phrase, keep_phrases, phrases, token_kinds
from tmca_core.text.sides import swap_sides
from tmca_core.text.words import split

TEXTS = Path(__file__).parents[3] / "../shared/data/texts"
CAPTION = "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung."
LETTERS = {"d": "descriptive", "g": "diagnostic", "p": "locational", "l": "left", "r": "right"}

# Every phrase in brackets, its kind's letter behind.
MARKED = [
    "[bilateral]p [pulmonary infection]g, [two infected areas]d, [upper left lung]l and [lower right lung]r.",
    "[unilateral]p [pulmonary infection]g, [one infected area]d, [upper middle lower left lung]l.",
    "The [nuclei density]d in the [lower left]l is [high]d.",
    "The [nuclei density]d in the [lower]p is [high]d.",
    "The [nuclei are evenly distributed]d.",
    "[Left lung]l.",
    "[Both lungs]p.",
    "[Patchy opacity]d in the [lower zone of the left lung]l, [likely infective]g.",
    "There is [moderate consolidation]d in the [left upper]l, [middle and lower zones]l, [in keeping with subsegmental collapse]g.",
    "[RLL]r [nodular opacity]d, [suspicious for malignancy]g.",
    "[Right middle lobe]r and [lingula]l [ground-glass opacities]d",
    "[left]l and [right]r [lungs]p show [opacities]d",
    "[opacity]d in [both lower zones]p",
    "[bilateral]p [infiltrates]d, greater on the [left]l",
    "[Small]d [right]r [pleural effusion]d.",
    "No [focal opacity]d in the [left lung]l.",
    "The [lungs]p are clear and the heart is normal.",
    "[Pneumonia cannot be excluded]g.",
    "The [left base]l is clear.",
    "[COVID-19 pneumonia]g with [several small nodules]d in the [upper lobes]p",
    "[one medium pink round polyp]d located in [top left]l of the image",
    "Enlarged left ventricle. [Right hilar]r [mass]d.",
    "The patient left the hospital with moderate fever after two days.",
    "[Cnosolidation]d in the [left base]l, [sugestive of pnuemonia]g.",
    "FINDINGS: [Hazy opacity]d in the [left hemithorax]l. IMPRESSION: [Left lung]l [viral pneumonia]g.",
    "",
    " \n",
    "... ?!",
]

WORDS = sorted(
    terms(
        "left right Left RIGHT R L Rt lt RUL rml LLL RUQ lingula Lingular middle lobe Middle Lobe lobes upper lower mid zone zones lung "
        "lungs the of and or to both bilateral unilateral no not clear is are normal except for sparing opacity consolidation effusion "
        "effusions possible likely base apex hilar diffuse patient untreated few in place , . ; : ( ) - > / ? two areas infected small "
        "pneumonia viral suggestive keeping with high density nuclei pulmonary pleural heart pain segment on mostly but lfet rihgt "
        "none nothing longer seen has resolved resolution cleared gone nearly shift deviated leftward which"
    )
)
REPORTS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", " ", " ", "", "-", "\n"])), max_size=30).map(
    lambda parts: "".join(a + b for a, b in parts)
)


def unmark(marked: str) -> tuple[str, list[Phrase]]:
    text, found = "", []
    for part in marked.split("["):
        inner, bracket, rest = part.partition("]")
        if bracket:
            found.append(Phrase(len(text), len(text) + len(inner), LETTERS[rest[0]]))  # type: ignore[arg-type]
            text += inner + rest[1:]
        else:
            text += part
    return text, found


def exchanged(kinds: list[str]) -> list[str]:
    return [{"left": "right", "right": "left"}.get(kind, kind) for kind in kinds]


def words_of(text: str) -> list[tuple[int, int, str]]:
    """Phrases as (first word, last word, kind)."""
    words = split(text)
    return [
        (
            next(i for i, word in enumerate(words) if word.start == phrase.start),
            next(i for i, word in enumerate(words) if word.end == phrase.end),
            phrase.kind,
        )
        for phrase in phrases(text)
    ]


def zones(text: str) -> tuple[int, ...]:
    found = parse(text)
    return (0,) * 6 if found.contradictory else found.zones


def column(name: str, title: str) -> list[str]:
    if not TEXTS.exists():
        pytest.skip("the shared texts are not beside this checkout")
    with (TEXTS / name).open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(row[title] for row in csv.DictReader(file)))


@pytest.fixture(scope="module")
def phantom_reports() -> list[str]:
    wanted = PhantomSettings(sites=6, cases=60, seed=3)
    return list(dict.fromkeys(film.case.text for index in range(6) for film in plan_site(wanted, index)[1]))


@pytest.mark.parametrize("marked", MARKED)
def test_phrases_by_hand(marked: str) -> None:
    text, expected = unmark(marked)
    assert phrases(text) == expected


@given(st.one_of(st.text(), REPORTS))
@settings(max_examples=500, deadline=None)
def test_phrases_are_ordered_mirrored_and_can_be_taken_out(text: str) -> None:
    found = phrases(text)
    assert all(0 <= p.start < p.end <= len(text) for p in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    one, other = words_of(text), words_of(swap_sides(text))
    assert [span[:2] for span in one] == [span[:2] for span in other]
    assert exchanged([kind for *_, kind in one]) == [kind for *_, kind in other]
    for kinds in ({"locational"}, {"descriptive"}, {"diagnostic"}, {"descriptive", "diagnostic"}, set[str]()):
        kept = keep_phrases(text, kinds)
        wanted = kinds | {"left", "right"} if "locational" in kinds else kinds
        assert {phrase.kind for phrase in phrases(kept)} <= wanted
        assert keep_phrases(kept, kinds) == kept
        if "locational" not in kinds:
            assert not any(parse(kept).zones), kept
    assert keep_phrases(text, {"locational", "descriptive", "diagnostic"}) == text


@given(REPORTS, st.data())
@settings(max_examples=200, deadline=None)
def test_token_kinds_against_a_search_in_every_phrase(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=10)))
    spans = [None, *itertools.pairwise(cuts), None]
    code = {"descriptive": 2, "diagnostic": 3, "locational": 4, "left": 5, "right": 6}
    expected = []
    for span in spans:
        last = -1 if span is None else span[1] - 1
        inside = [code[p.kind] for p in phrases(text) if p.start <= last < p.end]
        expected.append(0 if span is None or not split(text) else (inside or [1])[0])
    assert token_kinds(text, spans) == expected


@pytest.mark.parametrize(
    ("text", "kinds", "expected"),
    [
        (CAPTION, {"locational"}, "bilateral, upper left lung and lower right lung."),
        (CAPTION, {"descriptive", "diagnostic"}, "pulmonary infection, two infected areas."),
        (CAPTION, {"diagnostic"}, "pulmonary infection."),
        (CAPTION, {"locational", "descriptive"}, "bilateral, two infected areas, upper left lung and lower right lung."),
        (CAPTION, set(), ""),
        ("Left lung.", {"descriptive", "diagnostic"}, ""),
        ("Left lung.", {"locational"}, "Left lung."),
        ("Patchy opacity in the left base, likely infective. No effusion.", {"descriptive"}, "Patchy opacity. No effusion."),
        ("Patchy opacity in the left base, likely infective.", {"locational", "descriptive"}, "Patchy opacity in the left base."),
        ("Ground-glass opacity (left base).", {"locational"}, "(left base)."),
        ("Ground-glass opacity (left base).", {"descriptive"}, "Ground-glass opacity."),
        ("Pneumonia cannot be excluded. Left base opacity.", {"locational", "descriptive"}, "Left base opacity."),
        ("  odd ,, marks .. ", {"locational"}, "  odd ,, marks .. "),
    ],
)
def test_kinds_of_phrase_are_taken_out(text: str, kinds: set[str], expected: str) -> None:
    assert keep_phrases(text, kinds) == expected


def test_a_denial_never_becomes_a_place_that_is_affected() -> None:
    for text in ("No opacity in the left lung.", "The left lung is clear.", "No pneumonia of the right base.", "Lungs are clear."):
        for kinds in ({"locational"}, {"locational", "descriptive"}, {"locational", "diagnostic"}):
            assert not any(parse(keep_phrases(text, kinds)).zones), (text, kinds)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("No evidence of consolidation in the right lower zone. Left effusion.", "No evidence in the right lower zone."),
        ("Pneumonia cannot be excluded in the left base.", "cannot be excluded in the left base."),
        ("Pneumonia cannot be ruled out in the right upper zone.", "cannot be ruled out in the right upper zone."),
        ("Likely viral pneumonia in the left base.", "Likely in the left base."),
        ("Suspicious for malignancy in the right apex.", "Suspicious in the right apex."),
        ("Consolidation in the left base, likely infective.", "in the left base."),
        ("Pneumonia excluded in the left base.", "excluded in the left base."),
        ("Opacity in the left base. Left effusion.", "in the left base."),
        ("bilateral pulmonary infection, two infected areas, upper left lung.", ""),  # contradicts itself
    ],
)
def test_what_denies_or_doubts_a_place_stays_with_it(text: str, kept: str) -> None:
    assert keep_phrases(text, {"locational"}) == kept
    assert claims_no_more(kept, text)


def test_a_denial_in_one_sentence_that_another_needs() -> None:
    """Taken alone, the second sentence loses its place and with it what it took from the first."""
    text = "Opacity in the left lung. Left effusion, left upper zone is clear."
    assert claims_no_more(keep_phrases(text, {"locational"}), text)


WITH_PLACES = ({"locational"}, {"locational", "descriptive"}, {"locational", "diagnostic"})
DOUBTS = (
    st.sampled_from(["No evidence of ", "Possible ", "", "Cannot exclude ", "There is "]),
    st.sampled_from(["", ".", "?", " cannot be excluded.", " is not ruled out.", " is unlikely, probably viral.", " has resolved."]),
)
PLACE = st.sampled_from(["left", "right", "right lower zone", "left base", "lungs", "bilateral", "right hilum"])
FOUND = st.sampled_from(["pneumonia", "effusion", "consolidation", "likely infective opacity", "no mass", "clear lung", ""])
SENTENCES = st.lists(
    st.tuples(DOUBTS[0], FOUND, st.sampled_from([" in the ", " ", ", "]), PLACE, st.sampled_from([" ", ""]), FOUND, DOUBTS[1]).map("".join),
    max_size=4,
).map(" ".join)


def claims_no_more(kept: str, text: str) -> bool:
    (zones, certainty), (others, before) = zones_and_certainty(kept), zones_and_certainty(text)
    return bool((zones <= others).all()) and certainty <= before


@given(st.one_of(SENTENCES, REPORTS))
@settings(max_examples=500, deadline=None)
def test_nothing_is_claimed_that_the_report_did_not(text: str) -> None:
    for kinds in WITH_PLACES:
        assert claims_no_more(keep_phrases(text, kinds), text), (keep_phrases(text, kinds), kinds)


def test_nothing_is_claimed_that_captions_notes_and_the_phantom_do_not(phantom_reports: list[str]) -> None:
    for text in phantom_reports:
        assert all(claims_no_more(keep_phrases(text, kinds), text) for kinds in WITH_PLACES), text
    for name, title in (("qata_captions.csv", "Description"), ("ieee8023_clinical_notes.csv", "clinical_notes")):
        for text in column(name, title):
            assert all(claims_no_more(keep_phrases(text, kinds), text) for kinds in WITH_PLACES), text


def test_captions_keep_their_zones_without_the_other_phrases() -> None:
    for text in column("qata_captions.csv", "Description"):
        assert {phrase.kind for phrase in phrases(text)} >= {"descriptive", "diagnostic", "locational"}
        assert zones(keep_phrases(text, {"locational"})) == zones(text) != (0,) * 6
        assert keep_phrases(text, {"descriptive", "diagnostic"}).startswith("pulmonary infection, ")
        both = [phrase.kind for phrase in phrases(text)]
        assert both.count("left") == text.count("left lung") and both.count("right") == text.count("right lung")


def test_clinical_notes_leak_no_place_and_are_mirrored() -> None:
    notes = column("ieee8023_clinical_notes.csv", "clinical_notes")
    named = [text for text in notes if any(zones(text))]
    assert len(named) > 350
    for text in notes[::3]:
        assert exchanged([p.kind for p in phrases(text)]) == [p.kind for p in phrases(swap_sides(text))]
        assert not any(parse(keep_phrases(text, {"descriptive", "diagnostic"})).zones)
    kept = sum(zones(keep_phrases(text, {"locational"})) == zones(text) for text in named)
    assert kept / len(named) >= 0.95  # "left effusion" without its effusion is the left lung; "diffuse" alone is nowhere


def test_nuclei_sentences_say_where_and_how_dense() -> None:
    for text in column("monuseg_captions.csv", "Description"):
        kinds = {phrase.kind for phrase in phrases(text)}
        assert "descriptive" in kinds and "diagnostic" not in kinds
        assert zones(keep_phrases(text, {"locational"})) == zones(text)
        assert ("left" in kinds, "right" in kinds) == (" left" in text, " right" in text)


def test_phantom_reports_keep_their_zones(phantom_reports: list[str]) -> None:
    assert len(phantom_reports) > 200
    for text in phantom_reports:
        assert zones(keep_phrases(text, {"locational"})) == zones(text), text
        assert not any(parse(keep_phrases(text, {"descriptive", "diagnostic"})).zones), text
        rest = {word.key for word in split(keep_phrases(text, set()))}
        assert not rest & terms("opacity consolidation pneumonia left right lower upper effusion infective likely suggestive"), text


def test_a_long_text_without_full_stops_is_read_in_linear_time() -> None:
    text = "patchy opacity in the left base and viral pneumonia with right effusion " * 4000
    assert len(phrases(text)) > 10_000
    assert len(keep_phrases(text, {"locational"})) < len(text)
