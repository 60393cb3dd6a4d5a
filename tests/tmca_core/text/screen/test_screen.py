"""Single rules of the screen, what it leaves alone, and what holds for any text."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.phantom.films import plan_site
from tmca_core.cases.table import read_table
from tmca_core.config import PhantomSettings
from tmca_core.errors import ConfigError
from tmca_core.text.screen import KINDS, LANGUAGES, screen
from tmca_core.text.screen.shapes import calendar, nhs_number

DATA = Path(__file__).parents[5] / "shared" / "data"


def found(text: str, *languages: str, allowed: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in screen(text, languages or ("en",), allowed)]


@pytest.mark.parametrize(
    "text",
    [
        "Swan-Ganz catheter, Kerley B lines, Hodgkin lymphoma, Cushing syndrome.",
        "Sister Mary Joseph nodule; Lady Windermere syndrome; Ivor Lewis oesophagectomy.",
        "MR Abdomen with contrast; DR Chest.",
        "SEGMENT 5 MAY REPRESENT ATELECTASIS.",
        "Nodule 3.5 cm at T4/5, 12 x 8 mm, image 3/45, seen in 2/3 views.",
        "89-year-old man, 90 pack-years, saturation 94 %.",
        "SNOMED CT 233604007, ICD-10 J18.9, NCT04280705.",
    ],
)
def test_what_identifies_nobody(text: str) -> None:
    assert found(text) == []
    assert found(text, "en", "de") == []


def test_a_name_after_a_title_is_a_name_though_it_is_an_eponym_or_a_word() -> None:
    assert found("Mr Hodgkin has Hodgkin lymphoma.") == [("name", "Hodgkin")]
    assert found("Mrs Wall has a thick chest wall.") == [("name", "Wall")]
    assert found("Dr Kerley sees Kerley B lines.") == [("name", "Kerley")]
    assert found("dr patel was informed") == [("name", "patel")]
    assert found("Reviewed by Drs Whitfield and Okoro.") == [("name", "Whitfield"), ("name", "Okoro")]


def test_ages_from_90_on() -> None:
    assert found("An 89-year-old woman.") == []
    assert found("A 90-year-old woman.") == [("age", "90-year-old")]
    assert found("Eine 89-jährige Patientin.", "de") == []
    assert found("Eine 90-jährige Patientin.", "de") == [("age", "90-jährige")]


def test_dates_are_days_of_the_calendar() -> None:
    assert found("Film of 31/12/2020.") == [("date", "31/12/2020")]
    assert found("Film of 12/31/2020.") == [("date", "12/31/2020")]
    assert found("Ratio 31/31/2020.") == []
    assert found("Treated in 2012.") == []
    assert found("Aufnahme vom 30.09.", "de") == [("date", "30.09.")]
    assert calendar(29, 2, 2020) and not calendar(29, 2, 2021) and not calendar(31, 4)


def test_the_check_digit_of_nhs_numbers() -> None:
    # 9·10+4·9+3·8+4·7+7·6+6·5+5·4+9·3+1·2 = 299; 299 mod 11 = 2; 11 − 2 = 9
    assert nhs_number("9434765919") and not nhs_number("9434765918") and not nhs_number("943476591")
    assert found("Label 943 476 5919 seen.")[0][0] == "national_id"


def test_allowed_words_identify_nobody() -> None:
    text = "Positioned in the Zorblat Quixler holder."
    assert found(text) == [("name", "Zorblat Quixler")]
    assert found(text, allowed=("zorblat", "QUIXLER")) == []


def test_headings_in_capitals_are_no_names() -> None:
    assert found("Impression: Right Lower Lobe Pneumonia With Small Effusion And Normal Heart.") == []
    assert found("FINDINGS: THE LUNGS ARE CLEAR. NO EFFUSION.") == []
    assert found("PATIENT: MARIA GONZALEZ. NO EFFUSION.") == [("name", "MARIA GONZALEZ")]


def test_german_nouns_are_no_names_with_the_rules_of_both_languages() -> None:
    text = "Kein Infiltrat, kein Pleuraerguss. Herzgröße im Normbereich, Zwerchfellhochstand rechts."
    assert found(text, "en", "de") == []
    assert found("Frau Lohmann hat Husten.", "en", "de") == [("name", "Lohmann")]


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown language of reports 'fr'; known: de, en"):
        screen("texte", ("fr",))


def test_a_language_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = replace(LANGUAGES["de"](), shapes=(), cues=(), ordinary=frozenset(), heads=frozenset(), marks=frozenset(), titles=frozenset())
    monkeypatch.setattr(LANGUAGES, "_factories", dict(LANGUAGES._factories))  # given back afterwards, without it
    LANGUAGES.register("xx")(lambda: empty)
    assert found("a.b@klinik.example and Frau Lohmann", "xx") == [("email", "a.b@klinik.example")]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("aeMRN drJohnSmith 0123456789/.-:,@\n()äÄ'"), max_size=120))
def test_findings_are_in_order_apart_and_inside(text: str) -> None:
    findings = screen(text, ("en", "de"))
    assert all(0 <= one.start < one.end <= len(text) and one.kind in KINDS for one in findings)
    assert all(a.end <= b.start for a, b in pairwise(findings))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["Margaret Ellison", "Tobias Henley", "Ewa Nowak"]), st.text(alphabet="abc .,\n", max_size=30))
def test_a_labelled_name_is_found_whatever_surrounds_it(name: str, around: str) -> None:
    text = f"{around}\nPatient name: {name}\n{around}"
    start = text.index(name)
    assert any(one.start <= start and one.end >= start + len(name) for one in screen(text))


@pytest.mark.parametrize("piece", ["ABCD ", "MRN ", "from Ab ", "Ab the ", "1-", "a.", "http://", "A. ", "12 Oak ", "tel 1 ", "a@"])
def test_time_grows_with_length_not_with_its_square(piece: str) -> None:
    def seconds(text: str) -> float:
        begin = time.process_time()
        screen(text, ("en", "de"))
        return time.process_time() - begin

    def growth() -> float:
        return seconds(piece * 3200) / max(seconds(piece * 400), 0.005)

    seconds(piece * 50)
    assert any(growth() < 32 for _ in range(5))  # 8 where it grows with length, 64 with the square; a busy core is tried again


def test_the_phantom_raises_no_alarm() -> None:
    wanted = PhantomSettings(sites=8, cases=60, seed=17)
    reports = {film.case.report for index in range(8) for film in plan_site(wanted, index)[1]}
    assert len(reports) > 150
    assert [report for report in sorted(reports) if screen(report, ("en", "de"))] == []


@pytest.mark.skipif(not (DATA / "cxr-lungs").is_dir(), reason="the development data are not here")
def test_real_reports_raise_almost_no_alarm() -> None:
    tables = [DATA / "cxr-lungs/cases.csv", DATA / "cxr-infection/cases.csv", DATA / "nuclei-he/cases.csv"]
    reports = [row.values["report"] for table in tables for row in read_table(table).rows]
    captions = [row.values["Description"] for row in read_table(DATA / "texts/qata_captions.csv").rows]
    prompts = sorted((DATA / "layouts/languide").rglob("*.csv"))
    captions += [row.values["Description"] for table in prompts for row in read_table(table).rows]
    distinct = {text for text in [*reports, *captions] if text}
    flagged = sum(bool(screen(text, ("en", "de"))) for text in distinct)
    assert len(distinct) > 50 and flagged <= 0.01 * len(distinct)
