"""What a rehearsal saw, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from simulations.rehearsal.interface import Result

MARKS = {True: "yes", False: "NO", None: "not rehearsed"}


def counted(results: Sequence[Result]) -> str:
    """How many rows went as expected."""
    counts = {mark: sum(result.as_expected is mark for result in results) for mark in MARKS}
    text = f"{len(results)} rows: {counts[True]} as expected, {counts[False]} not"
    return f"{text}, {counts[None]} not rehearsed" if counts[None] else text


def table(results: Sequence[Result], figures: Mapping[str, float]) -> str:
    """Markdown: a line a row, and the figures below."""
    lines = [f"{counted(results)}.", "", "| what was tried | kind | expected | seen | as expected |", "|---|---|---|---|---|"]
    for result in results:
        cells = (result.what, result.kind, result.expected, result.seen, MARKS[result.as_expected])
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")
    if figures:
        lines += ["", "| figure | value |", "|---|---|", *(f"| {name} | {value:.6g} |" for name, value in figures.items())]
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[Result], figures: Mapping[str, float], sites: int, ingress: bool) -> dict[str, Any]:
    """rehearsal.json."""
    return {
        "schema": 1,
        "sites": sites,
        "ingress": ingress,
        "as_expected": all(result.as_expected is not False for result in results),
        "counts": {
            "rows": len(results),
            "as_expected": sum(result.as_expected is True for result in results),
            "not_as_expected": sum(result.as_expected is False for result in results),
            "not_rehearsed": sum(result.as_expected is None for result in results),
        },
        "figures": dict(figures),
        "rows": [asdict(result) for result in results],
    }
