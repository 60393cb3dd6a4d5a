"""Settings as dotted keys and scalars, as Flower's run-config and `--set` carry them, and as nested sections."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from tmca_core.errors import ConfigError

Scalar = bool | int | float | str


def scalar(text: str) -> Scalar:
    """TOML scalar where it is one, else the text itself (so paths and names need no quotes)."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text  # "nan" and "inf" are names, not numbers that a setting could have
    return value if isinstance(value, (bool, int, float, str)) else text


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested sections → dotted keys."""
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, or sections, or both → nested sections.

    Raises:
        ConfigError: a key is a value and a section.
    """
    nested: dict[str, Any] = {}
    for key, value in flatten(values).items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"setting '{section}' is a value, not a section (in '{key}').")
            place = inner
        place[last] = value
    return nested


def nearest(key: str, known: Iterable[str]) -> str:
    """ " (did you mean '…'?)" where a known key is close, else ""."""
    import difflib

    close = difflib.get_close_matches(key, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
