"""Identifiers that look the same in every language: addresses of mail and web, numbers of telephones, records and persons."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

from tmca_core.text.screen.interface import Shape

Accept = Callable[[re.Match[str]], bool]

_EXTENSION = r"(?: ?(?:x|ext\.?|extension) ?\d{1,6})?"
_DOMAINS = "org|com|net|edu|gov|uk|info|int|eu|cloud|health|example|local|ie|ca|au|ch|fr|nl|es|pl|dk|se"
# Before a number these say that it is a code of a terminology or a registered trial, which identify nobody.
_CODES = re.compile(
    r"(?:\bSNOMED(?:[ -]CT)?|\bICD(?:-\d+)?|\bLOINC|\bCPT|\bRadLex|\bPMID|\bDOI)(?: (?:code|id|concept))?[:. ]*$", re.IGNORECASE
)
_REGISTERED = re.compile(r"(?:NCT|ISRCTN|RID|DRKS|ACTRN|PMC|PMID|GSE|ACR|ORPHA)-?\d")


def calendar(day: int, month: int, year: int = 2000) -> bool:
    """Whether there is such a day; two-digit years are of some century."""
    try:
        date(year if year > 99 else 2000 + year, month, day)
    except ValueError:
        return False
    return True


def _numeric_date(match: re.Match[str]) -> bool:
    one, two, year = int(match["a"]), int(match["b"]), int(match["y"])
    return calendar(one, two, year) or calendar(two, one, year)


def _iso_date(match: re.Match[str]) -> bool:
    return calendar(int(match["d"]), int(match["m"]), int(match["y"]))


def nhs_number(digits: str) -> bool:
    """The check digit of a British NHS number: weights 10 to 2, modulo 11 (NHS Data Dictionary)."""
    if len(digits) != 10 or not digits.isdigit():
        return False
    check = 11 - sum(int(digit) * weight for digit, weight in zip(digits, range(10, 1, -1), strict=False)) % 11
    return check % 11 == int(digits[9]) and check != 10


def _nhs(match: re.Match[str]) -> bool:
    return nhs_number(re.sub(r"\D", "", match[0]))


def _civil(match: re.Match[str]) -> bool:
    """Six digits that are a day, as in Scandinavian personal numbers."""
    a, b, c = (int(match[0][i : i + 2]) for i in (0, 2, 4))
    return calendar(c, b, a) or calendar(a, b, c)


def _no_code(match: re.Match[str]) -> bool:
    return not _CODES.search(match.string, max(0, match.start() - 40), match.start()) and not _REGISTERED.match(match[0])


def _octets(match: re.Match[str]) -> bool:
    return all(int(part) < 256 for part in match[0].split("."))


def several_digits(match: re.Match[str]) -> bool:
    """At least three digits in the identifier, and more than a year, a time or a part of a fraction."""
    found = match["id"]
    digits = re.sub(r"\D", "", found)
    return (
        len(digits) >= 3
        and not re.fullmatch(r"(?:19|20)\d\d|\d{1,3}/\d{1,3}", found)
        and not re.match(r":\d\d", match.string[match.end() :])
    )


def always(match: re.Match[str]) -> bool:
    """No further condition."""
    return True


def shape(kind: str, pattern: str, accept: Accept = always, flags: int = 0) -> Shape:
    """A `Shape` of a pattern that is not compiled yet."""
    return Shape(kind, re.compile(pattern, flags), accept)


_NO_DIGIT_BEFORE, _NO_DIGIT_AFTER = r"(?<![\w.,/-])", r"(?![\w/-]|[.,]\d)"


def number(kind: str, pattern: str, accept: Accept = always) -> Shape:
    """A `Shape` of digits that stand alone: no part of a longer number, word or range."""
    return shape(kind, f"{_NO_DIGIT_BEFORE}(?:{pattern}){_NO_DIGIT_AFTER}", accept)


SHAPES: tuple[Shape, ...] = (
    shape("email", r"[\w.+%-]{1,64}(?:@|\s?\((?:at|a)\)\s?|\s?\[at\]\s?)[\w-]{1,63}(?:\.[\w-]{1,63})+"),
    shape("url", r"\b(?:https?|ftps?|dicoms?|wado|file)://[^\s<>\"']*[^\s<>\"'.,;:!?)\]]", flags=re.IGNORECASE),
    shape("url", r"(?<![\w@.-])www\.[\w-]{1,63}(?:\.[\w-]{1,63})+(?:/[^\s<>\"']*[^\s<>\"'.,;:!?)\]])?", flags=re.IGNORECASE),
    shape(
        "url", rf"(?<![\w@.-])[a-z\d-]{{2,63}}(?:\.[a-z\d-]{{2,63}}){{0,4}}\.(?:{_DOMAINS})\b(?:/[^\s<>\"']*[^\s<>\"'.,;:!?)\]])?(?![.@]\w)"
    ),
    shape("url", r"(?<![\w@.-])[a-z\d-]{2,63}(?:\.[a-z\d-]{2,63}){0,4}\.de(?:/[^\s<>\"']*[^\s<>\"'.,;:!?)\]]|\b)(?![.@]\w| novo)"),
    number("ip", r"\d{1,3}(?:\.\d{1,3}){3}", _octets),
    shape("ip", r"(?<![\w:])(?:[\dA-Fa-f]{2}[:-]){5}[\dA-Fa-f]{2}(?![\w:])"),
    # Dates.
    number("date", r"(?P<y>(?:19|20)\d\d)(?P<s>[-/.])(?P<m>\d{1,2})(?P=s)(?P<d>\d{1,2})(?:[T ]\d\d:\d\d(?::\d\d)?)?", _iso_date),
    number("date", r"(?P<a>\d{1,2})(?P<s>[./-])(?P<b>\d{1,2})(?P=s)(?P<y>(?:19|20)\d\d|\d\d)(?! ?(?:mm|cm|m)\b)", _numeric_date),
    number("date", r"(?:0?[1-9]|1[0-2])[/.](?:19|20)\d\d"),
    number("date", r"(?P<a>\d{1,2})\. (?P<b>\d{1,2})\. ?(?P<y>(?:19|20)\d\d)", _numeric_date),
    number("date", r"(?P<y>(?:19|20)\d\d)(?P<m>0[1-9]|1[0-2])(?P<d>[0-3]\d)", _iso_date),
    # Telephones.
    shape("phone", r"(?<![\w+])\+\d{1,3}(?:[ ./-]?\(0\))?(?:[ ./-]?\d{1,5}){2,6}\d" + _EXTENSION + r"(?![\w/])"),
    shape("phone", r"(?<![\w(])\(0?\d{2,5}\)[ -]?\d{3,4}[ -]?\d{3,5}(?![\w/])"),
    number("phone", rf"(?:\+?1[-. ])?\d{{3}}(?P<s>[-. ])\d{{3}}(?P=s)\d{{4}}{_EXTENSION}"),
    number("phone", rf"1?-?\(\d{{3}}\) ?\d{{3}}[-. ]\d{{4}}{_EXTENSION}"),
    number("phone", r"0\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}"),
    number("phone", r"0\d{2,5}(?: ?/ ?| |-)\d{3,9}(?:[ -]\d{1,6}){0,3}"),
    number("phone", r"0[1-9]\d{8,10}"),
    # National numbers.
    number("national_id", r"\d{3}-\d{2}-\d{4}"),
    number("national_id", r"\d{3}[ -]?\d{3}[ -]?\d{4}", _nhs),
    number("national_id", r"[A-CEGHJ-PQR-TW-Z][A-CEGHJ-NPQR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"),
    number("national_id", r"[1-9][A-Z][A-Z\d]\d-?[A-Z][A-Z\d]\d-?[A-Z]{2}\d{2}"),
    number("national_id", r"[A-Z]\d{9}"),
    number("national_id", r"\d{2} ?\d{6} ?[A-Z] ?\d{3}"),
    number("national_id", r"(?:19|20)?\d{6}[-+]\d{4}", _civil),
    number("national_id", r"(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z]"),
    number("national_id", r"\d{4} \d{4} \d{4}"),
    number("national_id", r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?\d[\dAB] ?\d{3} ?\d{3}(?: ?\d\d)?"),
    # Records.
    number("record", r"[0-2](?:\.\d+){6,}"),
    number("record", r"\d{7,}", _no_code),
    number("record", r"[A-Za-z]{1,5}[-/]?\d{5,}(?:[-/]\d+)*", _no_code),
    number(
        "record", r"[A-Za-z]{0,5}[-/]?\d{2,6}[-/]\d{4,}(?:[-/]\d+)*[A-Za-z]?", lambda m: bool(re.match(r"[A-Za-z]", m[0])) and _no_code(m)
    ),
    shape(
        "device",
        r"\b(?:[Ss]erial|SERIAL|S/N|SN|[Ss]/n)(?: ?(?:no|nr|number|num)\b)?[.:#]* ?(?P<id>(?=[A-Z\d-]*\d[A-Z-]*\d)[A-Z\d][A-Z\d-]{4,}\b)",
        several_digits,
        re.IGNORECASE,
    ),
    # Streets whose kind stands before the name.
    shape(
        "address",
        r"\b(?:Rua|Calle|Avenida|Avenue|Rue|Via|Viale|Piazza|Plaza|Ulica|ul\.|Boulevard|Chaussée)(?: (?:de|da|do|das|dos|du"
        r"|des|della|la|las|los"
        r"|del|d'))*(?: [^\W\d_][\w'’-]*){1,3},? (?:n[°ºr.]* ?)?\d{1,4}\b",
    ),
)
