from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.case import ZONES
from tmca_core.text.findings import Findings, parse
from tmca_core.text.lexicon import terms
from tmca_core.text.sides import swap_sides

TEXTS = Path(__file__).parents[3] / "../shared/data/texts"
ALL, LEFT, RIGHT = "LU LM LL RU RM RL", "LU LM LL", "RU RM RL"

# text, side, zones: read by hand.
PLACES = [
    ("Left lung.", "left", LEFT),
    ("Right lung.", "right", RIGHT),
    ("left-sided pneumonia", "left", LEFT),
    ("Opacity on the left.", "left", LEFT),
    ("Consolidation in the right hemithorax.", "right", RIGHT),
    ("R base opacity, L lung clear.", "right", "RL"),
    ("Consolidation in the RLL.", "right", "RL"),
    ("RUL and RML opacities.", "right", "RU RM"),
    ("LUL, lll and RUZ shadowing", "both", "LU LL RU"),
    ("Patchy opacity in the lingula.", "left", "LM"),
    ("Middle lobe collapse.", "right", "RM"),
    ("Right middle lobe and lingula atelectasis.", "both", "LM RM"),
    ("Left upper lobe and lingula consolidation.", "left", "LU LM"),
    ("Left lower lobe consolidation with air bronchograms.", "left", "LL"),
    ("Consolidation in the lower lobe of the left lung.", "left", "LL"),
    ("Opacity in the lower third of the left hemithorax.", "left", "LL"),
    ("Base of left lung.", "left", "LL"),
    ("Right apex nodule.", "right", "RU"),
    ("Hazy opacity in the left hilar region.", "left", "LM"),
    ("Left perihilar opacity.", "left", "LM"),
    ("Left retrocardiac opacity.", "left", "LL"),
    ("Right upper, middle and lower lobe consolidation.", "right", RIGHT),
    ("Opacities in the left mid to lower zone.", "left", "LM LL"),
    ("Right upper to lower zone opacity.", "right", RIGHT),
    ("Right upper lobe and lower lobe consolidation.", "right", "RU RL"),
    ("Left lower and right upper lobe opacities.", "both", "LL RU"),
    ("Left and right lower lobe opacities.", "both", "LL RL"),
    ("Upper left and lower right opacity.", "both", "LU RL"),
    ("Opacities in right upper and both mid zones.", "both", "LM RU RM"),
    ("Right upper lung, left mid and lower lungs, and right costophrenic angle.", "both", "LM LL RU RL"),
    ("Small right pleural effusion.", "right", "RL"),
    ("Bibasilar atelectasis.", "both", "LL RL"),
    ("Biapical scarring.", "both", "LU RU"),
    ("Bilateral perihilar infiltrates.", "both", "LM RM"),
    ("Opacity in both lungs.", "both", ALL),
    ("Bilateral opacities.", "both", ALL),
    ("Diffuse infiltrates.", "both", ALL),
    ("Infiltrates throughout the lungs.", "both", ALL),
    ("Diffuse infiltrates in the right lung.", "right", RIGHT),
    ("Patchy infiltrates in the mid/lower zones bilaterally.", "both", "LM LL RM RL"),
    ("Bilateral opacities mainly in the lower zones.", "both", "LL RL"),
    ("Bilateral opacities, more marked in the left upper lobe.", "both", ALL),
    ("Bibasilar infiltrates greater on the left.", "both", "LL RL"),
    ("Markings in the lower fields (R>L).", "both", "LL RL"),
    ("Lower zone opacities.", "unknown", "LL RL"),
    ("Consolidation within the apical segment of the left lower lobe.", "left", "LL"),
    ("Left lung: consolidation in the upper zone.", "left", "LU"),
    ("Lfet lower lobe opacity.", "left", "LL"),
    ("Rihgt perihilar opacity.", "right", "RM"),
    ("LEFT LOWER ZONE CONSOLIDATION", "left", "LL"),
    ("The nuclei density in the lower left is high.", "left", "LL"),
    ("The nuclei density in the right is high.", "right", RIGHT),
    ("The nuclei density in the lower is high.", "unknown", "LL RL"),
    ("The nuclei are evenly distributed.", "unknown", ""),
    # denied, healthy, spared
    ("No effusion, left lower lobe consolidation.", "left", "LL"),
    ("No lesion on the left, lesion on the right.", "right", RIGHT),
    ("The left lung is normal but the right lung shows consolidation.", "right", RIGHT),
    ("Left lung: no consolidation. Right lung: consolidation.", "right", RIGHT),
    ("Right lower lobe consolidation and the left lung is clear.", "right", "RL"),
    ("The right lung is spared; the left is diffusely involved.", "left", LEFT),
    ("Consolidation in bilateral lungs, except for left upper lung zone.", "both", "LM LL RU RM RL"),
    ("Opacities in both lungs, with relative bibasilar sparing.", "both", "LU LM RU RM"),
    ("Opacity in the left lung, left base clear.", "left", "LU LM"),
    ("Although there is no focus of consolidation, there is haze in both lungs.", "both", ALL),
    ("No change in left lower lobe opacity.", "left", "LL"),
    ("Opacity in the right lower zone and the right heart border is not visualised.", "right", "RL"),
    ("Opacity in the right lung base, but none on the left.", "right", "RL"),
    ("Opacity at the right base, nothing on the left.", "right", "RL"),
    ("Right base opacity. None on the left.", "right", "RL"),
    ("Right base opacity but none on the left and no change since.", "right", "RL"),
    ("There is nothing but consolidation in the left base.", "left", "LL"),
    # over, or not quite
    ("Left base opacity is no longer seen and right base opacity has increased.", "right", "RL"),
    ("Resolution of the left upper lobe pneumonia, but persistence of the opacity in the right lower zone.", "right", "RL"),
    ("Resolution of left base opacity with new right apex nodule.", "right", "RU"),
    ("Resolution of the left effusion and the right base opacity persists.", "right", "RL"),
    ("Left lower lobe opacity. The left effusion has resolved.", "left", "LL"),
    ("The left base has cleared, right apex nodule.", "right", "RU"),
    ("Left lower lobe consolidation has not resolved.", "left", "LL"),
    ("The left base has not cleared.", "left", "LL"),
    ("Left base opacity has nearly completely resolved.", "left", "LL"),
    ("Partial resolution of left base opacity.", "left", "LL"),
    ("No resolution of left base opacity.", "left", "LL"),
    ("No evidence of resolution of left base opacity.", "left", "LL"),
    ("None of the left base opacities has resolved.", "left", "LL"),
    ("Left base opacity is no longer enlarging.", "left", "LL"),
    ("The left base is no longer visible.", "left", "LL"),
    ("Left base infiltrate at day 5 that cleared on day 10.", "left", "LL"),
    ("Left base opacity, fever has resolved.", "left", "LL"),
    # a direction
    ("The trachea is deviated to the left.", "unknown", ""),
    ("Leftward shift of the mediastinum, trachea displaced rightward.", "unknown", ""),
    ("Mediastinal shift to the right. Left effusion.", "left", "LL"),
    ("Right apex mass displacing the trachea towards the left side.", "right", "RU"),
    ("The heart is shifted from the right to the left by a right effusion.", "right", "RL"),
    ("Mediastinal shift, opacity extends to the left.", "left", LEFT),
    ("The nodule is displaced to the left lower lobe.", "left", "LL"),
    ("Trachea deviated by the left apex mass.", "left", "LU"),
    # not the lungs, not a side
    ("Patient left the hospital.", "unknown", ""),
    ("If left untreated, the infection spreads.", "unknown", ""),
    ("A few fibrous lesions left.", "unknown", ""),
    ("Left ventricular ejection fraction was reduced.", "unknown", ""),
    ("Right upper quadrant pain.", "unknown", ""),
    ("Right internal jugular line and left arm weakness.", "unknown", ""),
    ("Upper respiratory tract infection.", "unknown", ""),
    ("", "unknown", ""),
]
DENIALS = [
    "Left lung is normal.",
    "Left lung was absolutely normal.",
    "Both lungs are clear.",
    "Lungs clear.",
    "No focal consolidation, pleural effusion or pneumothorax.",
    "No opacity in the left or right lung.",
    "Consolidation not seen on the left.",
    "Without evidence of pneumonia in the right lung.",
    "Normal chest radiograph.",
    "Normal.",
    "The left lung is free of infiltrates.",
    "Nothing on the left.",
    "None on the left.",
    "No opacity on the right and none on the left.",
    "Left lower lobe consolidation has resolved.",
    "Left lower lobe consolidation has completely cleared.",
    "The consolidation seen on the left has since disappeared.",
    "Consolidation has resolved in the left lower lobe.",
    "Left lower lobe consolidation is gone.",
    "Left base opacity, now resolved.",
    "Left base opacity, which has resolved.",
    "Left lower lobe consolidation resolved.",
    "Left lower lobe consolidation is no longer seen.",
    "Left lower lobe consolidation can no longer be identified.",
    "No longer seen is the left base opacity.",
    "The left lower lobe no longer shows consolidation.",
    "Interval resolution of left lower lobe opacity.",
    "Complete resolution of left and right lower lobe opacities.",
    "Resolved left base opacity.",
    "The left base has cleared.",
    "Resolved.",
]
DOUBTS = [
    ("Possible right basal infiltrate.", "right"),
    ("Left apex nodule cannot be excluded.", "left"),
    ("Right base opacity?", "right"),
    ("There may be consolidation in the left lower zone.", "left"),
    ("Findings suggest pneumonia.", "unknown"),
]
CONTRADICTIONS = [
    "Unilateral infection, left and right lung.",
    "unilateral pulmonary infection, two infected areas, upper left lung and lower right lung.",
    "bilateral pulmonary infection, one infected area, lower left lung.",
    "unilateral pulmonary infection, two infected areas, upper left lung.",
    "Consolidation in the left lower lobe. The left lung is clear.",
]


def zones(names: str) -> tuple[int, ...]:
    return tuple(int(zone in names.split()) for zone in ZONES)


def mirrored(found: Findings) -> Findings:
    side = {"left": "right", "right": "left"}.get(found.side, found.side)
    return Findings(side, found.zones[3:] + found.zones[:3], found.count, found.certainty, found.contradictory)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "side", "names"), PLACES)
def test_places(text: str, side: str, names: str) -> None:
    found = parse(text)
    assert (found.side, found.zones, found.contradictory) == (side, zones(names), False)
    assert found.certainty == "certain"
    assert found.one_sided == (side in ("left", "right"))
    assert parse(swap_sides(text)) == mirrored(found)


@pytest.mark.parametrize("text", DENIALS)
def test_denials(text: str) -> None:
    assert parse(text) == Findings("none", (0,) * 6, None, "negated", False)


@pytest.mark.parametrize(("text", "side"), DOUBTS)
def test_doubts(text: str, side: str) -> None:
    assert (parse(text).side, parse(text).certainty) == (side, "uncertain")


def test_one_certain_finding_makes_a_report_certain() -> None:
    assert parse("Right upper lobe consolidation and probably some in the left lower lobe.").certainty == "certain"


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_contradictions(text: str) -> None:
    assert parse(text).contradictory and not parse(text).one_sided


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("two infected areas", 2),
        ("Two small irregular opacities.", 2),
        ("3 nodules in the left lung", 3),
        ("One lesion in the left lung, two lesions in the right.", 3),
        ("single nodular consolidation", 1),
        ("Opacities on day 4.", None),
        ("multiple lesions", None),
        ("two weeks later consolidation", None),
    ],
)
def test_counts(text: str, count: int | None) -> None:
    assert parse(text).count == count


@pytest.mark.parametrize(
    "open_question",
    [
        "Consolidation cannot be excluded in the left base.",
        "Pneumonia cannot be ruled out in the left base.",
        "Pneumonia can not be ruled out in the left base.",
        "Pneumonia is not excluded in the left base.",
        "Left base consolidation cannot be excluded.",
        "Left base consolidation can't be ruled out.",
        "Cannot exclude consolidation in the left base.",
        "We cannot rule out pneumonia in the left base.",
    ],
)
def test_what_is_not_excluded_is_doubted(open_question: str) -> None:
    assert (parse(open_question).zones, parse(open_question).certainty) == ((0, 0, 1, 0, 0, 0), "uncertain")
    assert parse(open_question).constraint == ((0, 0, 1, 0, 0, 0), 0.5)


def test_what_is_excluded_is_denied() -> None:
    assert not any(parse("Consolidation is excluded in the left base.").zones)
    assert parse("Left opacity. The left lung is clear.").constraint == ((0,) * 6, 0.0)  # contradicts itself


WORDS = st.sampled_from(
    sorted(
        terms(
            "left right Left RIGHT R L Rt RUL rml LLL lingula Lingular middle lobe lobes upper lower mid zone lung lungs the of and "
            "or to both bilateral no not clear is normal except for sparing opacity consolidation effusion possible base apex hilar "
            "diffuse patient untreated few in place two areas infected unilateral lfet rihgt left-sided more on mostly with but "
            "segment heart pain basal bibasilar field excluded be greater than "
            "none nothing longer seen has resolved resolution cleared gone nearly shift deviated leftward which"
        )
    )
)
REPORTS = st.lists(
    st.tuples(WORDS, st.sampled_from([" ", " ", " ", " ", "-", ", ", ". ", ": ", " (", ") ", "? ", " > ", "/"])), max_size=25
).map(lambda parts: "".join(a + b for a, b in parts))


@given(st.one_of(st.text(max_size=200), REPORTS, REPORTS, REPORTS))
@settings(max_examples=1200, deadline=None)
def test_any_text_parses_and_its_mirror_image_parses_to_the_mirror_image(text: str) -> None:
    found = parse(text)
    assert len(found.zones) == 6 and set(found.zones) <= {0, 1}
    assert not (found.side == "none" and any(found.zones))
    assert parse(swap_sides(text)) == mirrored(found)


def test_all_public_captions_parse_to_their_labels() -> None:
    path = TEXTS / "qata_captions.csv"
    if not path.exists():
        pytest.skip("the shared texts are not beside this checkout")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9258
    answers = {text: parse(text) for text in {row["Description"] for row in rows}}
    for row in rows:
        found = answers[row["Description"]]
        assert found.zones == tuple(int(row[zone]) for zone in ZONES), row["Description"]
        assert found.count == int(row["infected_area"]) == sum(found.zones)
        assert (found.side == "both") == (row["pulmonary_infection"] == "2")
        assert not found.contradictory and found.certainty == "certain"


def test_clinical_notes_parse_and_mirror() -> None:
    path = TEXTS / "ieee8023_clinical_notes.csv"
    if not path.exists():
        pytest.skip("the shared texts are not beside this checkout")
    with path.open(encoding="utf-8", newline="") as file:
        notes = [row["clinical_notes"] for row in csv.DictReader(file)]
    sides = []
    for note in notes:
        found = parse(note)
        sides.append(found.side)
        assert parse(swap_sides(note)) == mirrored(found)
    assert {"left", "right", "both", "none", "unknown"} == set(sides)
    assert sides.count("unknown") < 0.45 * len(sides)
