"""The text of a FHIR DiagnosticReport: its conclusion, its plain form, or at last its narrative; never from a PDF."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from email.message import Message
from html.parser import HTMLParser
from typing import Literal

from tmca_core.cases.hospital.objects import Unusable
from tmca_core.cases.hospital.resources import Resource, Resources, listed
from tmca_core.cases.hospital.service import ServiceError

Prefer = Literal["conclusion", "form"]
LONGEST = 100_000  # characters; a report has a thousand or two
_BLOCKS = frozenset(
    ("br", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "table", "td", "th", "tr", "ul")
)
_SILENT = frozenset(("script", "style", "head", "title"))


def text_of(report: Resource, resources: Resources, prefer: Prefer = "conclusion") -> str:
    """A report's text, one line a sentence or paragraph.

    Args:
        report: a DiagnosticReport.
        resources: that hold the attachments to which it refers.
        prefer: what comes first where both are there: the conclusion (impression), or the whole presented form.

    Raises:
        Unusable: there is none that can be read, and why.
    """
    conclusion = str(report.get("conclusion") or "").strip()
    form, refused = _form(report, resources)
    for text in (conclusion, form) if prefer == "conclusion" else (form, conclusion):
        if text:
            return _bounded(text)
    narrative = report.get("text")
    if isinstance(narrative, Mapping) and narrative.get("status") != "empty" and (div := plain(str(narrative.get("div") or ""))):
        return _bounded(div)
    raise Unusable(refused or "has no text: neither a conclusion nor a presented form nor a narrative.")


def plain(html: str) -> str:
    """HTML as text: a block is a line, scripts and styles are left out."""
    reader = _Text()
    reader.feed(html)
    reader.close()
    return unwrapped("".join(reader.found))


def unwrapped(text: str) -> str:
    """Text with the line breaks taken out that only fill a page: a line that goes on in lower case belongs to the one before."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    whole = "\n".join(line for line in lines if line)
    return re.sub(r"(?<![.:;!?])\n(?=[a-zà-öø-ÿ])", " ", whole)


def _form(report: Resource, resources: Resources) -> tuple[str, str]:
    """The first plain or HTML form, and why another one was refused."""
    refused = ""
    for form in listed(report, "presentedForm"):
        try:
            data, content_type = _attachment(form, report, resources)
            about = Message()
            about["content-type"] = content_type or "text/plain"
            kind = about.get_content_type() if "/" in about["content-type"] else "unknown"  # what is no type would count as plain text
            if kind not in ("text/plain", "text/html", "application/xhtml+xml"):
                known = kind if re.fullmatch(r"[a-z]+/[a-z0-9.+-]{1,40}", kind) else "another form"
                raise Unusable(f"has its text as {known} only; that is refused, for words would get lost or mixed up: have it sent as text")
            text = base64.b64decode("".join(data.split()), validate=True).decode(about.get_content_charset() or "utf-8")
        except (binascii.Error, UnicodeDecodeError, LookupError):
            refused = refused or "has a presented form that is no base64 of text in its declared character set."
        except (Unusable, ServiceError) as fault:
            refused = refused or str(fault)
        else:
            if found := (plain(text) if kind != "text/plain" else unwrapped(text)):
                return found, ""
    return "", refused


def _attachment(form: Resource, report: Resource, resources: Resources) -> tuple[str, str]:
    """(base64, content type) of an attachment, or of the Binary that it names."""
    if form.get("data"):
        return str(form["data"]), str(form.get("contentType") or "")
    url = str(form.get("url") or "")
    binary = resources.resolve({"reference": url}, report) if url else None
    if not binary or not binary.get("data"):
        raise Unusable("has a presented form that only names where the text is, and it is not there.")
    return str(binary["data"]), str(binary.get("contentType") or form.get("contentType") or "")


def _bounded(text: str) -> str:
    if len(text) > LONGEST:
        raise Unusable(f"has a text of more than {LONGEST:,} characters, which no report has.")
    return unwrapped(text)


class _Text(HTMLParser):
    """Collects what a reader would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif tag in _BLOCKS:
            self.found.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in _BLOCKS:
            self.found.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.found.append(data)
