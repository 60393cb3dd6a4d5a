"""The screen on many reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tmca_core.text.screen import LANGUAGES, Finding, screen


def find(text: str, languages: Sequence[str], allowed: Sequence[str] = (), presidio: bool = False) -> list[Finding]:
    """`screen`, with Presidio's findings where they are asked for."""
    found = screen(text, languages, allowed)
    if presidio:
        from tmca_core.text.screen.presidio import presidio_findings

        own = list(found)
        found += [one for one in presidio_findings(text, languages) if not any(one.start < o.end and o.start < one.end for o in own)]
    return sorted(found)


def counts(reports: Iterable[str], languages: Sequence[str] | None = None) -> Mapping[str, Any]:
    """How many of some reports hold what may identify a person, and of which kinds; by the rules of all languages unless told."""
    kinds: Counter[str] = Counter()
    flagged = 0
    for report, times in Counter(reports).items():
        found = screen(report, languages or LANGUAGES.names())
        flagged += times * bool(found)
        kinds.update([finding.kind for finding in found] * times)
    return {"reports": flagged, "kinds": dict(kinds.most_common())}
