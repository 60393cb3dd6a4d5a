"""The gate: reports that may identify a person do not train at a hospital, unless the hospital waives that with a reason."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from tmca_core.config import Section
from tmca_core.errors import ManifestError, PolicyRefusal

if TYPE_CHECKING:
    from tmca_core.text.screen.table import Screened

log = logging.getLogger(__name__)

_SHORTEST_REASON = 10  # characters


class ReportRules(Section):
    """What reports may hold. Assistance, never a guarantee: who signs for de-identification is a person."""

    screen: bool = Field(True, description="Reports are screened before they train; identifiers stop the site's part.")
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="Of the reports: en, de.")
    allowed: tuple[str, ...] = Field((), description="Words that identify nobody here, such as a local device.")
    presidio: bool = Field(False, description="Microsoft Presidio's findings count too (extra `deid`).")
    headers: bool = Field(False, description="Personal DICOM headers and burned-in text stop too; they are warned about anyway.")
    waived: str = Field("", description="Why identifiers are let pass here; logged every time. Empty: they are not.")
    waived_kinds: tuple[str, ...] = Field((), description="Kinds that the waiver covers; empty: all.")

    @field_validator("waived")
    @classmethod
    def _is_reason(cls, reason: str) -> str:
        if reason and len(reason.strip()) < _SHORTEST_REASON:
            raise ValueError("is a reason in words, such as 'ethics vote 12/2025 covers dates': it is logged")
        return reason.strip()

    @field_validator("waived_kinds")
    @classmethod
    def _are_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        from tmca_core.text.screen.interface import KINDS

        if unknown := sorted(set(kinds) - set(KINDS)):
            raise ValueError(f"'{unknown[0]}' is no kind of identifier; known: {', '.join(KINDS)}")
        return kinds


def hold_reports(manifest: Path, rules: ReportRules, passed: Path | None = None) -> Screened | None:
    """Let a hospital's manifest pass, or refuse it; what is let pass by a waiver is logged with its reason, without any identifier.

    Args:
        manifest: that the site is about to train on.
        rules: of the hospital.
        passed: a file on the site's own disk that remembers a manifest without findings, so that each new process does not screen it
            again. It holds a digest of the manifest's bytes, these rules and this code; what is waived is screened and logged each time.

    Returns:
        What was found, for the site's own record; None where the rules say not to screen, or where `passed` knows this manifest.

    Raises:
        PolicyRefusal: reports hold what may identify a person and the hospital has not waived it.
        ManifestError: the manifest cannot be read.
        ConfigError: a language is unknown, or Presidio is asked for and not installed.
    """
    if not rules.screen:
        log.warning("site policy: reports.screen is false, so nobody has looked for identifiers in %s.", manifest)
        return None
    from tmca_core.text.screen.table import screen_manifest

    digest = _digest(manifest, rules)
    # Images may change while their manifest does not.
    if passed is not None and not rules.headers and passed.is_file() and passed.read_text(encoding="ascii", errors="replace") == digest:
        return None
    screened = screen_manifest(manifest, languages=rules.languages, allowed=rules.allowed, presidio=rules.presidio)
    waivable = set(rules.waived_kinds) or set(screened.kinds)
    kept = {kind: count for kind, count in screened.kinds.items() if not rules.waived or kind not in waivable}
    if kept:
        found = ", ".join(f"{kind} {count}" for kind, count in kept.items())
        raise PolicyRefusal(
            f"this hospital's policy refuses to train on {manifest}: {screened.flagged} of {screened.rows} rows hold what may "
            f"identify a person ({found}). See them with: tmca data screen {manifest} --show. Mend the reports, name harmless words in "
            "reports.allowed, or give a reason in reports.waived of site.toml.",
            "Rule: reports.screen.",
        )
    if screened.kinds:
        log.warning("site policy: %s in %s; waived (reports.waived): %s", screened.summary(), manifest, rules.waived)
    if screened.headers:
        burned = sum(header.burned_in == "YES" for header in screened.headers)
        told = f"{len(screened.headers)} of {screened.images} DICOM images of {manifest} have personal headers or burned-in text ({burned})"
        if rules.headers:
            raise PolicyRefusal(
                f"this hospital's policy refuses: {told}. Rule: reports.headers. De-identify the images (PS3.15 E.1).",
                "Rule: reports.headers.",
            )
        log.warning("%s. Headers never leave the site; pixels with a name in them train.", told)
    if passed is not None and not screened.kinds:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(digest, encoding="ascii")
    return screened


def _digest(manifest: Path, rules: ReportRules) -> str:
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    try:
        parts = (manifest.read_bytes(), rules.model_dump_json().encode(), code)
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {manifest}: {error.strerror or error}.") from None
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
