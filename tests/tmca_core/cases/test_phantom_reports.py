"""The phantom's reports: they say what the mask shows, in the convention of the site."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.case import ZONES
from tmca_core.cases.phantom import generate
from tmca_core.cases.phantom.films import plan_site
from tmca_core.cases.phantom.grammar import spell
from tmca_core.config import PhantomSettings
from tmca_core.text.findings import parse
from tmca_core.text.sides import swap_sides


@pytest.fixture(scope="module")
def films():
    wanted = PhantomSettings(sites=8, cases=150, seed=17)
    return [film for index in range(8) for film in plan_site(wanted, index)[1]]


def truth(film):
    zones = {zone for opacity in film.opacities if opacity.named for zone in opacity.zones}
    sides = {zone[0] for zone in zones}
    return {0: "none", 2: "both"}.get(len(sides)) or {"L": "left", "R": "right"}[sides.pop()], zones


def test_reports_state_side_and_zones(films):
    right = total = 0
    for film in films:
        side, zones = truth(film)
        found = parse(film.case.text)
        named = {zone for zone, on in zip(ZONES, found.zones, strict=True) if on}
        if side in ("left", "right"):  # never the wrong side, slips of the keyboard included
            assert found.side == side, film.case.text
        if film.report.typo:
            continue
        total += 1
        # "the left lung" stands for its zones where nothing else lies on that side.
        whole = len(named) == 3 and zones <= named and len({zone[0] for zone in named}) == 1
        right += found.side == side and (named == zones or whole) and not found.contradictory
    assert total > 800
    assert right / total >= 0.97


def test_side_of_the_report_is_the_side_of_the_mask():
    cases = generate(PhantomSettings(sites=4, cases=40, seed=13), size=64)
    seen = 0
    for site in cases.values():
        for case, mask in zip(site.cases, site.masks, strict=True):
            found = parse(case.text)
            if not found.one_sided:
                continue
            columns = mask[0].nonzero()[:, 1].float()
            assert (columns.mean() > 31.5) == (found.side == "left"), case.text
            written = parse(case.report).side
            assert (written == found.side) == (case.laterality == "patient")
            seen += 1
    assert seen > 100


def test_image_sided_sites_write_the_same_words_with_sides_exchanged(films):
    for film in films:
        assert swap_sides(film.report.mirrored) == film.report.text
        assert film.case.text == film.report.text
        sided = film.case.laterality == "image"
        assert film.case.report == (film.report.mirrored if sided else film.report.text)
    assert {film.case.site for film in films if film.case.laterality == "image"} == {"phantom-03", "phantom-07"}


def test_spelling_by_hand():
    assert spell("{Left} base and {R}UL, {right}", "patient") == "Left base and RUL, right"
    assert spell("{Left} base and {R}UL, {right}", "image") == "Right base and LUL, left"


def test_styles_and_wordings(films):
    styles = Counter(film.report.style for film in films)
    assert set(styles) == {"terse", "narrative", "structured", "negated"} and min(styles.values()) > 100
    assert len({film.case.text for film in films}) > 600
    for film in films:
        text = film.case.text
        assert "{" not in text and "}" not in text and "  " not in text
        assert text[0].isupper() and text.endswith(".")
        if film.report.style == "structured" and not film.report.typo:
            assert text.startswith("FINDINGS: ") and " IMPRESSION: " in text
    assert max(len(film.case.text.split()) for film in films) < 60


def test_nothing_that_lies_elsewhere_is_named(films):
    for film in films:
        named = {zone for zone, on in zip(ZONES, parse(film.case.text).zones, strict=True) if on}
        silent = {zone for opacity in film.opacities if not opacity.named for zone in opacity.zones}
        assert not named & silent, film.case.text


def test_a_report_denies_no_finding_that_the_film_shows(films):
    for film in films:
        if any(opacity.kind == "effusion" for opacity in film.opacities):
            assert "No pleural effusion" not in film.case.text


def test_typos_come_at_their_rate():
    _, films = plan_site(PhantomSettings(cases=600, seed=0), 2)
    assert 0.2 < sum(film.report.typo for film in films) / 600 < 0.32
    _, films = plan_site(PhantomSettings(cases=600, seed=0), 0)
    assert 0.02 < sum(film.report.typo for film in films) / 600 < 0.11


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 40), shift=st.floats(0, 2))
def test_sides_never_go_wrong(seed, index, shift):
    for film in plan_site(PhantomSettings(cases=10, seed=seed, shift=shift), index)[1]:
        side, _ = truth(film)
        found = parse(film.case.text).side
        assert found == side or side == "none", film.case.text
        assert swap_sides(swap_sides(film.case.text)) == film.case.text
