"""Everything that can be said of a manifest before training: bad rows, sides, splits, masks, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmca_core.cases.case import Case, Laterality
from tmca_core.cases.decode import Decoded, Progress, decode_all
from tmca_core.cases.laterality import (
    SideAgreement,
    SideEvidence,
    contradiction,
    declarations,
    measure_laterality,
    named,
    resolve_laterality,
    weigh_sites,
)
from tmca_core.cases.manifest import MASK, Manifest, MissingReports, Skip, scan_manifest
from tmca_core.text.screen.reports import counts

__all__ = ["CheckReport", "SideAgreement", "check_manifest", "measure_laterality", "resolve_laterality"]


@dataclass(frozen=True)
class CheckReport:
    """Result of `check_manifest`.

    Attributes:
        cases, patients: usable ones.
        sites: name → usable cases.
        skipped: every bad row, in the table's order.
        laterality: what holds for the manifest as a whole: declared, measured ("mixed" where sites differ), agreement
            (share of one-sided cases that agree with their site's convention; None where none speaks), one_sided_cases.
        site_laterality: the same for each site that can be measured alone, and for the small ones together ("a, b, c").
        error: why the manifest as a whole is refused, "" where it is not.
        facts: further findings for JSON.
        warnings: what is allowed but worth a look.
    """

    cases: int
    patients: int
    sites: Mapping[str, int]
    skipped: Sequence[Skip]
    laterality: Mapping[str, Any]
    site_laterality: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """One JSON object; "error" is there only where there is one."""
        value = {
            "cases": self.cases,
            "patients": self.patients,
            "sites": dict(self.sites),
            "skipped": [{"row": skip.row, "column": skip.column, "reason": skip.reason} for skip in self.skipped],
            "laterality": dict(self.laterality),
            "site_laterality": {site: dict(sides) for site, sides in self.site_laterality.items()},
            **self.facts,
            "warnings": list(self.warnings),
        }
        return {**value, "error": self.error} if self.error else value


def refused(error: str) -> CheckReport:
    """The report of a manifest that could not even be read."""
    return CheckReport(0, 0, {}, [], {"declared": None, "measured": None, "agreement": None, "one_sided_cases": 0}, error=error)


def check_manifest(
    path: Path,
    *,
    laterality: Literal["auto"] | Laterality = "auto",
    trust: bool = False,
    size: int = 128,
    channels: Literal[1, 3] = 1,
    cache_dir: Path | None = None,
    targets: Sequence[str] = (),
    missing_reports: MissingReports = "skip",
    progress: Progress | None = None,
) -> CheckReport:
    """Read every row and every file of a manifest, and measure its side convention. Goes on to the end whatever it meets.

    Args:
        path: the manifest.
        laterality: declared for sites that declare nothing themselves; "auto": nothing.
        trust: a contradicted declaration becomes a warning.
        size: side at which sides are measured and lesions may vanish, pixels.
        channels: 1 or 3.
        cache_dir: None reads all files, as a check should.
        targets, missing_reports: as `read_manifest` takes them; sides are measured on the union of several targets.
        progress: called with (done, all).

    Raises:
        ManifestError: the table itself is unusable (no rows to speak of).
    """
    manifest = scan_manifest(path, laterality=laterality, targets=targets, missing_reports=missing_reports)
    decoded = decode_all(
        manifest.cases, size=size, channels=channels, cache_dir=cache_dir, columns=manifest.mask_columns, progress=progress
    )
    cases = decoded.tensors.cases
    evidence = weigh_sites(cases, decoded.tensors.masks, declarations(manifest, laterality))
    skipped = sorted([*manifest.skipped, *decoded.skipped], key=lambda skip: skip.row)
    message = contradiction(evidence)
    error = message if message and not trust else ""
    if not cases:
        error = f"none of the {manifest.rows} rows can be used."
    facts = _facts(manifest, decoded)
    return CheckReport(
        cases=len(cases),
        patients=decoded.tensors.patients,
        sites=dict(Counter(case.site for case in cases)),
        skipped=skipped,
        laterality=_overall(evidence),
        site_laterality={", ".join(item.sites): _sides(item) for item in evidence},
        error=f"{path}: {error}" if error else "",
        facts=facts,
        warnings=[
            *manifest.warnings,
            *_identifiers(path, facts),
            *_warnings(manifest, decoded, evidence, size),
            *([message] if message and trust else []),
        ],
    )


def _sides(item: SideEvidence) -> dict[str, Any]:
    sides = item.sides
    agreement = sides.agreement if sides.one_sided_cases else None
    return {"declared": item.declared, "measured": sides.measured, "agreement": agreement, "one_sided_cases": sides.one_sided_cases}


def _overall(evidence: Sequence[SideEvidence]) -> dict[str, Any]:
    """One line for all sites: counts pooled, conventions named where they are one."""
    number = sum(item.sides.one_sided_cases for item in evidence)
    measured = {item.sides.measured for item in evidence} - {None}
    said = {item.declared for item in evidence}
    pooled = {
        "patient": sum(item.sides.patient_agreement * item.sides.one_sided_cases for item in evidence),
        "image": sum(item.sides.image_agreement * item.sides.one_sided_cases for item in evidence),
    }
    if len(measured) == 1:
        agreeing = pooled[str(next(iter(measured)))]
    elif measured:
        agreeing = sum(item.sides.agreement * item.sides.one_sided_cases for item in evidence)
    else:
        agreeing = max(pooled.values())
    return {
        "declared": next(iter(said)) if len(said) == 1 else "mixed" if said else None,
        "measured": next(iter(measured)) if len(measured) == 1 else "mixed" if measured else None,
        "agreement": agreeing / number if number else None,
        "one_sided_cases": number,
    }


def _facts(manifest: Manifest, decoded: Decoded) -> dict[str, Any]:
    cases = decoded.tensors.cases
    sizes = decoded.sizes
    empty = (decoded.mask_pixels == 0).sum(0).tolist()
    several = {"empty_masks_per_target": dict(zip(targets_of(manifest), empty, strict=True))} if len(empty) > 1 else {}
    return {
        "rows": manifest.rows,
        "empty_masks": sum(empty),
        **several,
        "without_mask": int((decoded.mask_pixels[:, 0] < 0).sum()),
        # Used or skipped: how many there are is what one wants to know before deciding.
        "without_report": len(manifest.without_report) + sum(skip.column == "report" for skip in manifest.skipped),
        "splits": dict(Counter(case.split or "unassigned" for case in cases)),
        "image_sizes": {
            "distinct": len({tuple(pair) for pair in sizes.tolist()}),
            "smallest": sizes.amin(0).flip(0).tolist() if len(sizes) else None,  # width, height
            "largest": sizes.amax(0).flip(0).tolist() if len(sizes) else None,
        },
        "distinct_images": len(set(decoded.digests)),
        "distinct_reports": len({case.report for case in cases}),
        "modality": manifest.modality,
        "licence": manifest.licence,
        "source": manifest.source,
        "identifiers": dict(counts(case.report for case in cases)),
    }


def targets_of(manifest: Manifest) -> list[str]:
    """Names of the targets, in order."""
    return [column.removeprefix(f"{MASK}:") for column in manifest.mask_columns]


def _identifiers(path: Path, facts: Mapping[str, Any]) -> list[str]:
    number = facts["identifiers"]["reports"]
    return [f"{number} reports hold what may identify a person: tmca data screen {path} names rows and kinds."] if number else []


def _warnings(manifest: Manifest, decoded: Decoded, evidence: Sequence[SideEvidence], size: int) -> list[str]:
    cases, tensors = decoded.tensors.cases, decoded.tensors
    found = []
    if rows := manifest.without_report:
        found.append(f"{len(rows)} cases have no report ({_rows(rows)}): their masks follow from the image alone.")
    for name, empty_N, small_N in zip(targets_of(manifest), (decoded.mask_pixels == 0).T, decoded.vanished.T, strict=True):
        masks = "masks" if len(manifest.mask_columns) == 1 else f"masks of '{name}'"
        if rows := [case.row for case, empty in zip(cases, empty_N.tolist(), strict=True) if empty]:
            absent = len(rows) == len(cases)
            verdict = "it is in no case, so nothing can be learnt of it" if absent else "fine for negative cases"
            found.append(f"{len(rows)} {masks} are empty ({_rows(rows)}): {verdict}.")
        if rows := [case.row for case, small in zip(cases, small_N.tolist(), strict=True) if small]:
            found.append(
                f"{len(rows)} {masks} are empty at {size} × {size} pixels, too small a lesion ({_rows(rows)}): raise data.image_size."
            )
    flat = tensors.images.flatten(1)
    blank = (flat.amax(1) == flat.amin(1)).tolist() if len(flat) else []
    if any(blank):
        rows = [case.row for case, same in zip(cases, blank, strict=True) if same]
        found.append(f"{len(rows)} images are one grey all over ({_rows(rows)}): probably failed exports.")
    found += _shared_images(cases, decoded.digests)
    for item in evidence:
        if item.declared is None and item.sides.measured is None:
            found.append(
                f"side convention of {named(item.sites)}: not declared, and not measurable from {item.sides.one_sided_cases} one-sided "
                "cases with masks; training would take patient sides."
            )
    return found


def _shared_images(cases: Sequence[Case], digests: Sequence[str]) -> list[str]:
    """The same picture under two patients would sit on both sides of a split, and count twice in privacy."""
    owners: dict[str, set[str]] = {}
    for case, digest in zip(cases, digests, strict=True):
        owners.setdefault(digest, set()).add(case.patient_id)
    rows = [case.row for case, digest in zip(cases, digests, strict=True) if len(owners[digest]) > 1]
    return [f"{len(rows)} cases share one image between different patients ({_rows(rows)}): one person under two ids?"] if rows else []


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:8]))
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', …' if len(rows) > 8 else ''}"
