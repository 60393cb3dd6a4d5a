"""A public bank of reports: what a site's images may be contrasted with without seeing another patient's text.

Every sentence is built by the rules below, none comes from a data set, so the bank is the same at every site and tells nothing
about any patient. Each report stands beside its mirror image, so that left is contrasted with right.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from functools import cache

from tmca_core.text.sides import swap_sides

BANK_VERSION = 1
"""Raised with every change of the bank: an alignment learned against one bank is not comparable with another's."""

_LEVELS = ("upper", "middle", "lower")
_LOOKS = ("Consolidation", "Patchy opacity", "Ground-glass opacity")
# Said of the left; the mirror images are made from them.
_ONE_SIDED = (
    "Left lung.",
    "Infected area of the left lung.",
    "Left pleural effusion.",
    "LUL nodule, suspicious for malignancy.",
    "LLL atelectasis.",
    "Possible opacity at the left base.",
    "Left lower zone pneumonia.",
    "Extensive consolidation in the left upper, middle and lower zones.",
    "Patchy opacity in the left upper and middle zones.",
    "Several opacities in the left middle and lower zones.",
    "Two opacities, in the left upper zone and the right middle zone.",
    "Two opacities, in the left upper zone and the right lower zone.",
    "Two opacities, in the left middle zone and the right lower zone.",
)
_TWO_SIDED = ("Both lungs.", "Diffuse bilateral opacities, suggestive of viral pneumonia.", "Bilateral pleural effusions.")
_NEGATIVE = ("No focal opacity.", "The lungs are clear.", "No consolidation. No pleural effusion.", "Normal chest.")


@cache
def public_bank() -> tuple[str, ...]:
    """The reports, in a fixed order, each followed by its mirror image where it has one.

    Example:
        >>> len(public_bank()), public_bank()[:2]
        (50, ('Left lung.', 'Right lung.'))
    """
    return tuple(dict.fromkeys(text for report in _reports() for text in (report, swap_sides(report))))


def bank_digest() -> str:
    """sha256, hexadecimal, over version and reports: equal where banks are equal."""
    return hashlib.sha256("\n".join([str(BANK_VERSION), *public_bank()]).encode()).hexdigest()


def _reports() -> Iterator[str]:
    yield from _ONE_SIDED
    for level, look in itertools.product(_LEVELS, _LOOKS[:2]):
        yield f"{look} in the left {level} zone."
    for look, level in zip(_LOOKS, _LEVELS, strict=True):
        yield f"{look} in both {level} zones."
    yield f"{_LOOKS[2]} in the left lung."
    yield from _TWO_SIDED
    yield from _NEGATIVE
