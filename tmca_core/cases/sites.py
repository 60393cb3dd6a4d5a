"""The one door through which training gets its data: every site's cases, decoded, in patient sides, split by patient."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from tmca_core.cases.augment import mirrored_targets
from tmca_core.cases.case import Case, CaseTensors
from tmca_core.cases.check import resolve_laterality
from tmca_core.cases.decode import cache_folder, decode
from tmca_core.cases.laterality import as_declared
from tmca_core.cases.manifest import Manifest, Skip, read_manifest
from tmca_core.cases.partition import partition_indices
from tmca_core.cases.phantom import generate
from tmca_core.cases.phantom.sites import site_name
from tmca_core.cases.split import assign_splits
from tmca_core.config import Config, DataSettings, PhantomSettings
from tmca_core.errors import CaseError, ConfigError, ManifestError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteData:
    """What one site trains on, validates with and is tested on.

    Attributes:
        name: of the site.
        train, val, test: decoded cases; `val` and `test` may be empty, `train` is not.
        skipped: rows of the manifest that are not used. A row whose site cannot be told (the row itself is unreadable, or the
            partition deals patients out anew) is listed at every site; `all_skips` counts it once.
    """

    name: str
    train: CaseTensors
    val: CaseTensors
    test: CaseTensors
    skipped: list[Skip]


def load_sites(config: Config) -> dict[str, SiteData]:
    """Data of all sites of a run by name, names ascending.

    Raises:
        ManifestError: the manifest cannot be used, or a site is left without a case to train on.
        LateralityError: the masks contradict the declared side convention; never of a private run.
        ConfigError: several targets are asked of the phantom, or films are flipped and a target has a side without counterpart.
    """
    if config.augmentation.flip:
        mirrored_targets(config.data.target_names)  # said here, before anything is read
    if not config.data.manifest:
        return _phantom(config, None)
    manifest = manifest_of(Path(config.data.manifest), config.data, own_sides=config.privacy.enabled)
    tensors, skipped = _decoded(config, manifest)
    lost = sorted(_sites(manifest.cases) - _sites(tensors.cases)) if config.partition.by == "site" else []
    if lost:
        first = next(skip for skip in skipped if skip.row in {case.row for case in manifest.cases if case.site == lost[0]})
        raise ManifestError(f"site '{lost[0]}' is left without a case to train on; all its rows are skipped, the first: {first}")
    return _partitioned(config, tensors, manifest.cases, [*manifest.skipped, *skipped])


def load_site(config: Config, index: int) -> SiteData:
    """Data of one site, by its place among the sorted names; of a phantom only that site is generated.

    Raises:
        ConfigError: there is no such site.
    """
    names = site_names(config)
    if not 0 <= index < len(names):
        raise ConfigError(f"there is no site number {index}: the {len(names)} sites are numbered from 0, {names[0]} to {names[-1]}.")
    if config.data.manifest or config.partition.by != "site":
        # The side convention of small sites is measured on all of them together, and cases are dealt out from all.
        return load_sites(config)[names[index]]
    generated = next(k for k in range(config.phantom.sites) if site_name(k) == names[index])
    return _phantom(config, [generated])[names[index]]


def site_names(config: Config) -> list[str]:
    """Names of the run's sites, ascending; nothing is decoded."""
    if config.partition.by != "site":
        width = max(2, len(str(config.partition.sites - 1)))
        return [f"site-{k:0{width}d}" for k in range(config.partition.sites)]
    if not config.data.manifest:
        return sorted(site_name(k) for k in range(config.phantom.sites))
    return sorted(_sites(manifest_of(Path(config.data.manifest), config.data).cases))


def all_skips(sites: Mapping[str, SiteData]) -> list[Skip]:
    """Every skipped row once, in the manifest's order."""
    return sorted({skip for site in sites.values() for skip in site.skipped}, key=lambda skip: (skip.row, skip.column))


def splits_json(sites: Mapping[str, SiteData]) -> dict[str, dict[str, str]]:
    """Site → case → split, as it is stored in the run's folder."""
    return {
        name: {case.case_id: case.split for part in (site.train, site.val, site.test) for case in part.cases}
        for name, site in sites.items()
    }


def manifest_of(path: Path, data: DataSettings, *, own_sides: bool = False) -> Manifest:
    """The table at `path`, read as the settings say; `own_sides` as `read_manifest` has it."""
    return read_manifest(
        path,
        laterality=data.laterality,
        on_bad_case=data.on_bad_case,
        targets=data.target_names,
        missing_reports=data.missing_reports,
        own_sides=own_sides,
    )


def _phantom(config: Config, only: Sequence[int] | None) -> dict[str, SiteData]:
    if len(config.data.target_names) > 1:
        raise ConfigError(f"the phantom has one target, and data.targets names {config.data.targets}: give a manifest, or leave it empty.")
    chosen = range(config.phantom.sites) if only is None else only
    sites = [_phantom_site(config.phantom, config.data.image_size, config.data.channels, index) for index in chosen]
    if config.partition.by != "site":
        cases = [case for site in sites for case in site.cases]
        sites = [CaseTensors(cases, torch.cat([site.images for site in sites]), torch.cat([site.masks for site in sites]))]
    parts = (_partitioned(config, tensors, tensors.cases, []) for tensors in sites)  # site by site: no second copy of all pixels
    return dict(sorted((name, site) for part in parts for name, site in part.items()))


@lru_cache(maxsize=16)
def _phantom_site(settings: PhantomSettings, size: int, channels: Literal[1, 3], index: int) -> CaseTensors:
    """A phantom site; kept, because a simulation's baselines, clients and report ask for the same few again and again."""
    return next(iter(generate(settings, size=size, channels=channels, only=[index]).values()))


def _sites(cases: Sequence[Case]) -> set[str]:
    return {case.site for case in cases}


def _decoded(config: Config, manifest: Manifest) -> tuple[CaseTensors, list[Skip]]:
    """The cases that can train, in patient sides, and the rows that cannot."""
    data = config.data
    without = [
        Skip(case.row, manifest.mask_columns[0], "is empty; a case without a mask cannot train or be evaluated.")
        for case in manifest.cases
        if not case.masks
    ]
    if without and data.on_bad_case == "fail":
        raise CaseError(without[0].row, without[0].column, without[0].reason)
    if len(without) == len(manifest.cases):
        why = f" ({'; '.join(manifest.warnings)})" if manifest.warnings else ""
        raise ManifestError(f"{manifest.path}: none of the {len(manifest.cases)} cases has a mask, so there is nothing to train on{why}.")
    if rows := manifest.without_report:
        log.warning("%d of %d cases have no report; they are used without (data.missing_reports=use).", len(rows), len(manifest.cases))
    tensors, skipped = masked_cases(manifest, data, measured=not config.privacy.enabled)
    return tensors, [*without, *skipped]


def masked_cases(manifest: Manifest, data: DataSettings, *, measured: bool = True) -> tuple[CaseTensors, list[Skip]]:
    """Its cases that have a mask, decoded and in patient sides, and those among them that cannot be read.

    Args:
        measured: side conventions are measured against the masks; else taken as declared.
    """
    tensors, skipped = decode(
        [case for case in manifest.cases if case.masks],
        size=data.image_size,
        channels=data.channels,
        cache_dir=cache_folder(data),
        columns=manifest.mask_columns,
        on_bad_case=data.on_bad_case,
    )
    if not measured:
        return as_declared(manifest, tensors, laterality=data.laterality), skipped
    return resolve_laterality(manifest, tensors, laterality=data.laterality, trust=data.trust_laterality), skipped


def _partitioned(config: Config, tensors: CaseTensors, listed: Sequence[Case], skipped: Sequence[Skip]) -> dict[str, SiteData]:
    """Deal `tensors` out; `listed` are the cases whose rows could be read, to find the site of a skip."""
    sizes = tensors.masks.amax(1).flatten(1).float().mean(1).tolist()  # of several targets, their union
    indices = partition_indices(tensors.cases, config.partition, sizes=sizes, seed=config.seed)
    cases = list(tensors.cases)
    for name, members in indices.items():
        for i in members:
            cases[i] = replace(cases[i], site=name)
    cases = split_as_set(cases, config)
    pool = CaseTensors(cases, tensors.images, tensors.masks)
    site_of = {case.row: case.site for case in listed} if config.partition.by == "site" else {}
    return {
        name: _site(name, pool, members, [skip for skip in skipped if site_of.get(skip.row, name) == name])
        for name, members in indices.items()
    }


def split_as_set(cases: Sequence[Case], config: Config) -> list[Case]:
    """`assign_splits` by the run's settings."""
    fractions = {"val_fraction": config.data.val_fraction, "test_fraction": config.data.test_fraction}
    return assign_splits(cases, **fractions, seed=config.seed, independent=config.independent_split)


def _site(name: str, pool: CaseTensors, members: Sequence[int], skipped: list[Skip]) -> SiteData:
    train, val, test = (pool.subset([i for i in members if pool.cases[i].split == split]) for split in ("train", "val", "test"))
    return SiteData(name, train, val, test, skipped)
