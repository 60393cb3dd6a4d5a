"""The text of a DiagnosticReport: which of its places it is taken from, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tmca_core.cases.hospital.objects import Unusable
from tmca_core.cases.hospital.resources import Resources
from tmca_core.cases.hospital.wording import LONGEST, plain, text_of, unwrapped


def form(text: str | bytes, kind: str = "text/plain", charset: str = "utf-8") -> dict[str, Any]:
    data = text.encode(charset) if isinstance(text, str) else text
    return {"contentType": kind, "data": base64.b64encode(data).decode()}


def read(prefer: Any = "conclusion", **fields: Any) -> str:
    return text_of({"resourceType": "DiagnosticReport", **fields}, Resources(), prefer)


DIV = {
    "status": "generated",
    "div": "<div xmlns='x'><p>Heart&#160;normal.</p><ul><li>Opacity &lt; 3 cm</li></ul><script>bad()</script></div>",
}


def test_conclusion_then_form_then_narrative() -> None:
    whole = {"conclusion": "Opacity.", "presentedForm": [form("Long text.")], "text": DIV}
    assert read(**whole) == "Opacity."
    assert read("form", **whole) == "Long text."
    assert read("form", conclusion="Opacity.", text=DIV) == "Opacity."
    assert read(conclusion="  ", presentedForm=whole["presentedForm"], text=DIV) == "Long text."
    assert read(text=DIV) == "Heart normal.\nOpacity < 3 cm"


def test_forms_in_their_own_characters() -> None:
    assert read(presentedForm=[form("Verschattung für ÄÖ", "text/plain; charset=ISO-8859-1", "latin-1")]) == "Verschattung für ÄÖ"
    assert read(presentedForm=[form("<p>No <b>effusion</b>.</p>", "text/html;charset=utf-8")]) == "No effusion."
    folded = form("Opacity.")
    folded["data"] = "\n".join([folded["data"][:4], folded["data"][4:]])
    assert read(presentedForm=[form(b"%PDF-1.7", "application/pdf"), folded]) == "Opacity."
    held = Resources(known={"Binary/7": {"resourceType": "Binary", **form("From a binary.")}})
    assert text_of({"presentedForm": [{"contentType": "text/plain", "url": "Binary/7"}]}, held) == "From a binary."


REFUSED = [
    ({"presentedForm": [form(b"%PDF-1.7", "application/pdf")]}, "has its text as application/pdf only; that is refused"),
    ({"presentedForm": [form(b"{\\rtf", "Krawczyk")]}, "has its text as another form only"),
    ({"presentedForm": [{"contentType": "text/plain", "data": "Krawczyk!"}]}, "no base64 of text"),
    ({"presentedForm": [form(b"\xff\xfe\xfa")]}, "no base64 of text"),
    ({"presentedForm": [form("x", "text/plain; charset=klingon")]}, "no base64 of text"),
    ({"presentedForm": [{"contentType": "text/plain", "url": "Binary/8"}]}, "only names where the text is"),
    ({"text": {"status": "empty", "div": "<div>no narrative</div>"}}, "has no text"),
    ({"conclusion": "x" * (LONGEST + 1)}, "which no report has"),
    ({}, "has no text"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_is_refused_says_why(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as refused:
        read(**fields)
    assert "Krawczyk" not in refused.value.reason


def test_a_refused_form_is_no_reason_where_there_is_other_text() -> None:
    assert read(presentedForm=[form(b"%PDF", "application/pdf")], text=DIV).startswith("Heart normal.")


def test_lines_that_only_fill_a_page_are_joined() -> None:
    assert unwrapped("Opacity in the left\r\n  lower lobe.\n\nNo effusion\nHeart normal:\nnot enlarged") == (
        "Opacity in the left lower lobe.\nNo effusion\nHeart normal:\nnot enlarged"
    )
    assert plain("a<br/>B") == "a\nB" and plain("<p>unclosed <p>tags") == "unclosed tags"
