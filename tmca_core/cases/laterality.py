"""Which side "left" means is measured against the masks, site by site, and a declaration that the masks contradict is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tmca_core.cases.case import Case, CaseTensors, Laterality
from tmca_core.cases.manifest import Manifest, in_patient_sides
from tmca_core.errors import LateralityError
from tmca_core.text.findings import parse

log = logging.getLogger(__name__)

FEWEST = 5  # one-sided cases with a mask
CLEAR = 0.8  # agreement from which a convention counts as measured; QaTa's captions reach 0.96, guessing 0.5


@dataclass(frozen=True)
class SideAgreement:
    """One-sided reports against the sides of their masks.

    Attributes:
        one_sided_cases: cases whose report names exactly one side and whose mask is not empty.
        patient_agreement: share of them whose mask's centroid is where the report says, read in PATIENT sides; 0..1.
        image_agreement: the same in IMAGE sides. A centroid exactly in the middle agrees with neither.
        measured: the convention, None where fewer than 5 cases speak or neither agreement reaches 0.8.
    """

    one_sided_cases: int
    patient_agreement: float
    image_agreement: float
    measured: Laterality | None

    @property
    def agreement(self) -> float:
        """Agreement with the better of the two conventions; 0 where no case speaks."""
        return max(self.patient_agreement, self.image_agreement)


@dataclass(frozen=True)
class SideEvidence:
    """What sites say and what their masks show.

    Attributes:
        sites: one site; or all those that declare the same and are each too small to be measured, taken together.
        declared: their convention, by the table, the sidecar or the caller's setting; None: not said.
        sides: the measurement.
    """

    sites: tuple[str, ...]
    declared: Laterality | None
    sides: SideAgreement

    @property
    def contradicts(self) -> bool:
        """The masks show another convention than the declared one."""
        return self.declared is not None and self.sides.measured is not None and self.declared != self.sides.measured

    @property
    def convention(self) -> Laterality:
        """Declared, else measured, else patient (which radiologists use)."""
        return self.declared or self.sides.measured or "patient"


def measure_laterality(cases: Sequence[Case], masks: Tensor) -> SideAgreement:
    """Compare one-sided reports, as written, with the centroids of their masks.

    Args:
        cases: N cases.
        masks: (N, C, S, S) of 0 and 1 in display convention: the patient's left is at x > S/2. Several targets count as their union.
    """
    written, offset, speaks = one_sided(cases, masks)
    number = int(speaks.sum())
    if number == 0:
        return SideAgreement(0, 0.0, 0.0, None)
    patient = float((written * offset == 1)[speaks].sum()) / number
    image = float((written * offset == -1)[speaks].sum()) / number
    measured: Laterality | None = None
    if number >= FEWEST and max(patient, image) >= CLEAR:
        measured = "patient" if patient > image else "image"
    return SideAgreement(number, patient, image, measured)


def one_sided(cases: Sequence[Case], masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each report says and where its mask is.

    Args:
        cases, masks: as `measure_laterality` takes them.

    Returns:
        (N,) each: 1 where the report as written names left alone, -1 right alone, else 0; 1 where the mask's centroid is on the patient's
        left, -1 right, 0 in the very middle or without a mask; whether the case speaks: one side, and a mask that is not empty.
    """
    named: dict[str, int] = {}  # reports repeat: QaTa has 63 distinct ones in 9,258
    for case in cases:
        if case.report not in named:
            findings = parse(case.report)
            named[case.report] = {"left": 1, "right": -1}.get(findings.side, 0) if findings.one_sided else 0
    written = torch.tensor([named[case.report] for case in cases], dtype=torch.int64)
    # (N, S); numpy adds bytes fourteen times faster than torch, and without a wide copy of all masks.
    columns = torch.from_numpy(masks.amax(1).numpy().sum(1, dtype=np.int64))
    width = masks.shape[3]
    # Whole numbers, so that a centroid in the very middle is exactly 0: twice the distance of pixel centres from the middle.
    offset = (columns * (2 * torch.arange(width) + 1 - width)).sum(1).sign()
    return written, offset, (written != 0) & (columns.sum(1) > 0)


def weigh_sites(cases: Sequence[Case], masks: Tensor, declared: Mapping[str, Laterality | None]) -> list[SideEvidence]:
    """Evidence of every site; sites too small to be measured alone are measured together with those that declare the same."""
    evidence: list[SideEvidence] = []
    small: dict[Laterality | None, list[str]] = {}
    rows_of: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        rows_of.setdefault(case.site, []).append(i)
    for site, rows in rows_of.items():
        sides = _of_rows(cases, masks, rows)
        if sides.one_sided_cases < FEWEST:
            small.setdefault(declared.get(site), []).append(site)
        else:
            evidence.append(SideEvidence((site,), declared.get(site), sides))
    for said, sites in small.items():
        evidence.append(SideEvidence(tuple(sites), said, _of_rows(cases, masks, [i for site in sites for i in rows_of[site]])))
    return evidence


def _of_rows(cases: Sequence[Case], masks: Tensor, rows: Sequence[int]) -> SideAgreement:
    return measure_laterality([cases[i] for i in rows], masks[torch.tensor(list(rows), dtype=torch.long)])


def contradiction(evidence: Sequence[SideEvidence]) -> str:
    """The message for sites whose declaration the masks contradict, "" where there is none."""
    parts = []
    for measured in ("patient", "image"):
        wrong = [item for item in evidence if item.contradicts and item.sides.measured == measured]
        if not wrong:
            continue
        number = sum(item.sides.one_sided_cases for item in wrong)
        agreeing = sum(round(item.sides.agreement * item.sides.one_sided_cases) for item in wrong)
        sites = [site for item in wrong for site in item.sites]
        parts.append(
            f"{named(sites)} {'declares' if len(sites) == 1 else 'declare'} '{wrong[0].declared}' but {agreeing} of {number} "
            f"one-sided reports agree with {measured.upper()} sides ({100 * agreeing / number:.1f} %)"
        )
    if not parts:
        return ""
    return (
        "; ".join(parts) + ". Correct the declaration (column 'laterality', manifest.toml, or data.laterality); "
        "to go on anyway set data.trust_laterality=true / --trust-laterality."
    )


def named(sites: Sequence[str]) -> str:
    """Sites for a message, the first three by name."""
    if len(sites) == 1:
        return f"site '{sites[0]}'"
    shown = ", ".join(f"'{site}'" for site in sites[:3])
    return f"sites {shown}{f' and {len(sites) - 3} more' if len(sites) > 3 else ''}"


def declarations(manifest: Manifest, laterality: Literal["auto"] | Laterality) -> dict[str, Laterality | None]:
    """Site → what the manifest declares, else the caller's setting, else None."""
    setting: Laterality | None = None if laterality == "auto" else laterality
    return {site: said or setting for site, said in manifest.declared.items()}


def as_declared(manifest: Manifest, tensors: CaseTensors, *, laterality: Literal["auto"] | Laterality = "auto") -> CaseTensors:
    """Cases in the side convention that they were read in, which private training takes as it is declared.

    A measured one is a vote of all patients: the one who tips it turns everybody's report round, and a refusal tells of that patient.
    Masks that contradict the declaration are warned of in the site's own log, and change nothing.

    Args:
        manifest: read with `own_sides`.
    """
    said = declarations(manifest, laterality)
    if message := contradiction(weigh_sites(tensors.cases, tensors.masks, said)):
        log.warning("%s: %s Private training goes on as declared.", manifest.path, message)
    return tensors


def resolve_laterality(
    manifest: Manifest, tensors: CaseTensors, *, laterality: Literal["auto"] | Laterality = "auto", trust: bool = False
) -> CaseTensors:
    """Settle every site's side convention, and with it each case's `laterality` and `text` (always patient sides).

    A declared convention holds unless the masks contradict it; an undeclared one is the measured one, or "patient" where
    nothing can be measured. Sites may differ.

    Args:
        manifest: for what it declares.
        tensors: its decoded cases, or some of them.
        laterality: what holds for sites that declare nothing; "auto": measured.
        trust: go on with the declaration although the masks contradict it.

    Raises:
        LateralityError: a declaration is contradicted and `trust` is False; with the measured agreement.
    """
    evidence = weigh_sites(tensors.cases, tensors.masks, declarations(manifest, laterality))
    message = contradiction(evidence)
    if message and not trust:
        raise LateralityError(f"{manifest.path}: {message}")
    if message:
        log.warning("%s: %s Gone on as told.", manifest.path, message)
    convention: dict[str, Laterality] = {}
    for item in evidence:
        convention.update(dict.fromkeys(item.sites, item.convention))
        sides = item.sides
        if item.declared is None and sides.measured is not None:
            log.info(
                "%s: reports use %s sides, measured on %d cases (%.1f %%).",
                named(item.sites),
                sides.measured,
                sides.one_sided_cases,
                100 * sides.agreement,
            )
        elif item.declared is None:
            log.info(
                "%s: side convention neither declared nor measurable (%d one-sided cases, best agreement %.0f %%); taken as patient sides.",
                named(item.sites),
                sides.one_sided_cases,
                100 * sides.agreement,
            )
    return replace(tensors, cases=[in_convention(case, convention[case.site]) for case in tensors.cases])


def in_convention(case: Case, laterality: Laterality) -> Case:
    """The case with its report read in `laterality`."""
    if case.laterality == laterality:
        return case
    return replace(case, laterality=laterality, text=in_patient_sides(case.report, laterality))
