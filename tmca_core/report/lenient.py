"""Reading JSON that may lack parts or come from another version: a value of the wrong type counts as absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; [] where it is none."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def mapping(value: object) -> Mapping[str, Any]:
    """An object; {} where it is none."""
    return value if isinstance(value, Mapping) else {}
