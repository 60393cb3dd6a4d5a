"""One pool of cases becomes the sites of a simulation; a patient is never divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tmca_core.cases.case import ZONES, Case
from tmca_core.config import PartitionSettings
from tmca_core.errors import ConfigError, ManifestError
from tmca_core.seeds import numpy_rng
from tmca_core.text.findings import parse

# Three patients give a site training, validation and test cases.
FEWEST_PATIENTS = 3


def partition_indices(
    cases: Sequence[Case], settings: PartitionSettings, *, sizes: Sequence[float] | None, seed: int
) -> dict[str, list[int]]:
    """Site name to positions in `cases`, ascending; every case is at exactly one site, names are sorted.

    `site` follows the manifest's column. The others deal patients (all cases of one `patient_id`, whatever site they came from)
    to `settings.sites` new sites: `iid` in turn; `quantity` in numbers drawn from a symmetric Dirichlet distribution;
    `dirichlet-zones` and `dirichlet-size` draw, for every patient group (the zone its reports name most often; the quartile of
    its mean lesion size), the shares of the sites from a Dirichlet distribution (Hsu, Qi and Brown, arXiv:1909.06335, §3.1).
    Every site gets at least one patient that may train, three where there are enough. Patients whose rows say `train`, `val` or
    `test` are dealt in the same shares, each split for itself. The result does not depend on the order of rows.

    Args:
        cases: N cases.
        settings: kind, number of sites, concentration.
        sizes: N shares of the image that are lesion, 0 to 1; needed by `dirichlet-size` only.
        seed: of the draw.

    Raises:
        ManifestError: there are more sites than patients, or a case names no site.
        ConfigError: sizes are needed and absent.
    """
    if settings.by == "site":
        return _by_column(cases)
    patients: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        patients.setdefault(case.patient_id, []).append(i)
    names = sorted(patients)
    kind = {patient: min(cases[i].split for i in members) for patient, members in patients.items()}
    trainable = {patient for patient in names if kind[patient] in ("train", "")}
    if settings.sites > len(trainable):
        raise ManifestError(
            f"partition.sites is {settings.sites}, but there are only {len(trainable)} patients to train on, and a patient is never "
            f"divided. Set partition.sites to {len(trainable)} or less."
        )
    rng = numpy_rng(seed, "partition", settings.by, settings.sites)
    shuffled = sorted((names[i] for i in rng.permutation(len(names))), key=kind.__getitem__)  # a stable sort: drawn within splits
    groups = _groups(cases, settings.by, patients, sizes)
    dealt: list[list[str]] = [[] for _ in range(settings.sites)]
    if settings.by == "iid":
        for turn, patient in enumerate(shuffled):
            dealt[turn % settings.sites].append(patient)
    else:
        for group in sorted(set(groups.values())):
            shares = rng.dirichlet(np.full(settings.sites, settings.alpha))
            for split in sorted(set(kind.values())):
                members = [patient for patient in shuffled if groups[patient] == group and kind[patient] == split]
                for site, (start, end) in enumerate(pairwise([0, *_cuts(shares, len(members)), len(members)])):
                    dealt[site].extend(members[start:end])
    _level(dealt, trainable, min(FEWEST_PATIENTS, len(trainable) // settings.sites))
    width = max(2, len(str(settings.sites - 1)))
    return {f"site-{k:0{width}d}": sorted(i for patient in members for i in patients[patient]) for k, members in enumerate(dealt)}


def _by_column(cases: Sequence[Case]) -> dict[str, list[int]]:
    sites: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        if not case.site:
            raise ManifestError(
                f"row {case.row}, column 'site': empty for case '{case.case_id}'. Name its site, or have patients dealt out: "
                "--set partition.by=iid."
            )
        sites.setdefault(case.site, []).append(i)
    return dict(sorted(sites.items()))


def _groups(cases: Sequence[Case], by: str, patients: Mapping[str, list[int]], sizes: Sequence[float] | None) -> dict[str, int]:
    """Patient to the number of its group; one group where the partition does not look at content."""
    if by == "dirichlet-zones":
        return {patient: _dominant_zone([cases[i].text for i in members]) for patient, members in patients.items()}
    if by == "dirichlet-size":
        if sizes is None or len(sizes) != len(cases):
            raise ConfigError("partition.by=dirichlet-size needs the lesion size of every case, so every case needs a mask.")
        mean = {patient: float(np.mean([sizes[i] for i in members])) for patient, members in patients.items()}
        limits = np.quantile(sorted(mean.values()), [0.25, 0.5, 0.75])
        return {patient: int(np.searchsorted(limits, size, side="left")) for patient, size in mean.items()}
    return dict.fromkeys(patients, 0)


def _dominant_zone(texts: Sequence[str]) -> int:
    """Index in `ZONES` of the zone named most often (the first of several), or `len(ZONES)` where none is named."""
    named = np.sum([parse(text).zones for text in texts], axis=0)
    return int(np.argmax(named)) if named.any() else len(ZONES)


def _cuts(shares: NDArray[np.float64], total: int) -> list[int]:
    """Positions that divide `total` patients by `shares`, with largest remainders."""
    exact = shares * total
    counts = np.floor(exact).astype(int)
    left = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return [int(cut) for cut in np.cumsum(counts)[:-1]]


def _level(dealt: list[list[str]], trainable: set[str], fewest: int) -> None:
    """Move trainable patients from the sites with most of them to those with less than `fewest`."""

    def have(members: list[str]) -> list[str]:
        return [patient for patient in members if patient in trainable]

    for members in dealt:
        while len(have(members)) < fewest:
            richest = max(dealt, key=lambda other: len(have(other)))
            patient = have(richest)[-1]
            richest.remove(patient)
            members.append(patient)
