"""Microsoft Presidio as a second opinion: an optional extra, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tmca_core.errors import ConfigError
from tmca_core.text.screen.eponyms import NAMES
from tmca_core.text.screen.interface import Finding

ENTITIES: Mapping[str, str] = {
    "PERSON": "name",
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "email",
    "URL": "url",
    "IP_ADDRESS": "ip",
    "US_SSN": "national_id",
    "UK_NHS": "national_id",
    "UK_NINO": "national_id",
    "US_PASSPORT": "national_id",
    "US_DRIVER_LICENSE": "national_id",
    "MEDICAL_LICENSE": "record",
    "IBAN_CODE": "record",
    "CREDIT_CARD": "record",
}
"""Its entities → our kinds. Its DATE_TIME and LOCATION take "day 3" and "lingula": our own rules are for these."""

LEAST_SCORE = 0.5


def presidio_findings(text: str, languages: Sequence[str]) -> list[Finding]:
    """What Presidio finds, without medicine's own names.

    Raises:
        ConfigError: it, or its model of a language, is not installed.
    """
    found = []
    for language in languages:
        try:
            results = _engine().analyze(text=text, language=language, entities=list(ENTITIES))
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"Presidio cannot read language '{language}': {error} Install its spaCy model, or leave presidio off."
            ) from None
        for result in results:
            words = text[result.start : result.end].lower().replace("-", " ").split()
            eponym = result.entity_type == "PERSON" and all(word.removesuffix("'s") in NAMES for word in words)
            if result.score >= LEAST_SCORE and not eponym:
                found.append(Finding(result.start, result.end, ENTITIES[result.entity_type]))
    return sorted(set(found))


@lru_cache(maxsize=1)
def _engine() -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError:
        raise ConfigError("Presidio is not installed: pip install 'tmca-fl[deid]', or leave presidio off.") from None
    return AnalyzerEngine()
