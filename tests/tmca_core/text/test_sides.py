from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.text.lexicon import terms
from tmca_core.text.sides import swap_sides
from tmca_core.text.words import SIDE_TWINS, split

TEXTS = Path(__file__).parents[3] / "../shared/data/texts"

SWAPPED = [
    ("Left lung.", "Right lung."),
    ("LEFT LUNG", "RIGHT LUNG"),
    ("left lung and right base", "right lung and left base"),
    ("left-sided, leftward, rightmost", "right-sided, rightward, leftmost"),
    ("upper left lung and lower right lung.", "upper right lung and lower left lung."),
    ("R lung, L base", "L lung, R base"),
    ("(R) effusion; Lt. base, RT LUNG", "(L) effusion; Rt. base, LT LUNG"),
    ("opacities, R > L", "opacities, L > R"),
    ("RUL, RML and RLL; LUL, LLL; ruz", "LUL, LML and LLL; RUL, RLL; luz"),
    ("LML", "RML"),
    ("right middle lobe and lingula", "left lingula and middle lobe"),
    ("Lingular consolidation", "Middle-lobe consolidation"),
    ("Middle lobe.", "Lingula."),
    ("on the left.", "on the right."),
    ("the patient's left lung", "the patient's right lung"),
    ("lfet base, Rihgt apex, rigth", "rihgt base, Lfet apex, letf"),
    ("left_lung", "right_lung"),
    ("right-left shunt", "left-right shunt"),
]
UNTOUCHED = [
    "bilateral opacities in both lungs",
    "The patient left the hospital.",
    "If left untreated, it spreads.",
    "a few fibrous lesions left.",
    "The drain was left in place.",
    "He has left for Wuhan.",
    "right-handed, left-handed",
    "2 L nasal cannula, 5 mL/L",
    "SARS-CoV-2 RT-PCR",
    "bright upright copyright; cleft, lefty",
    "L4/L5",
    "right away",
    "LeFt",
    "Lappen links, poumon gauche",
    "",
]

RADIOLOGY = st.sampled_from(
    sorted(
        terms(
            "left right Left RIGHT R L Rt lt RUL rml LLL lingula Lingular LINGULA middle lobe Middle Lobe lobes upper lower mid zone "
            "lung lungs the of and or to both bilateral no not clear is normal except for sparing opacity consolidation effusion "
            "possible base apex hilar diffuse patient untreated few in place , . ; : ( ) - > / ? two areas infected unilateral lfet "
            "rihgt left-sided more on mostly with but segment heart pain"
        )
    )
)
REPORTS = st.lists(st.tuples(RADIOLOGY, st.sampled_from([" ", " ", " ", "", "-", "\n"])), max_size=30).map(
    lambda parts: "".join(a + b for a, b in parts)
)


@pytest.mark.parametrize(("text", "swapped"), SWAPPED)
def test_sides_are_swapped_and_swapped_back(text: str, swapped: str) -> None:
    assert swap_sides(text) == swapped
    assert swap_sides(swapped) == text


@pytest.mark.parametrize("text", UNTOUCHED)
def test_other_senses_and_languages_are_left_alone(text: str) -> None:
    assert swap_sides(text) == text


@given(st.one_of(st.text(), REPORTS))
@settings(max_examples=800, deadline=None)
def test_swapping_is_its_own_inverse(text: str) -> None:
    assert swap_sides(swap_sides(text)) == text


def test_every_twin_names_the_other_side() -> None:
    for word, twin in SIDE_TWINS.items():
        (one,), (other,) = split(word), split(twin)
        assert SIDE_TWINS[twin] == word and {one.side, other.side} == {"left", "right"}, word


def test_swapping_real_texts_is_its_own_inverse() -> None:
    if not TEXTS.exists():
        pytest.skip("the shared texts are not beside this checkout")
    texts = []
    for name, column in (("qata_captions.csv", "Description"), ("ieee8023_clinical_notes.csv", "clinical_notes")):
        with (TEXTS / name).open(encoding="utf-8", newline="") as file:
            texts += [row[column] for row in csv.DictReader(file)]
    assert len(texts) > 9800
    for text in set(texts):
        assert swap_sides(swap_sides(text)) == text
