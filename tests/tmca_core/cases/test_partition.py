"""Partitions deal out whole patients, to every site, in the asked-for skew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.case import Case
from tmca_core.cases.partition import partition_indices
from tmca_core.config import PartitionSettings
from tmca_core.errors import ConfigError, ManifestError

ZONES = ["upper left lung", "middle left lung", "lower left lung", "upper right lung", "middle right lung", "lower right lung"]


def pool(patients: int, seed: int = 0) -> tuple[list[Case], list[float]]:
    """1 to 4 cases a patient; patient p has zone p % 6 and lesion size p / patients."""
    rng = np.random.default_rng(seed)
    cases = []
    for p in range(patients):
        text = f"Unilateral pulmonary infection, one infected area, {ZONES[p % 6]}."
        for k in range(int(rng.integers(1, 5))):
            cases.append(Case(f"{p}-{k}", f"p{p:03d}", "here" if p % 3 else "there", Path("i"), (Path("m"),), text, text, "patient"))
    return cases, [int(case.patient_id[1:]) / patients for case in cases]


def partition(cases: list[Case], options: PartitionSettings, *, sizes: list[float] | None, seed: int) -> dict[str, list[Case]]:
    """The cases themselves, where the program hands out positions."""
    indices = partition_indices(cases, options, sizes=sizes, seed=seed)
    assert all(members == sorted(members) for members in indices.values())
    return {site: [cases[i] for i in members] for site, members in indices.items()}


def patients_of(sites: dict[str, list[Case]]) -> dict[str, set[str]]:
    return {site: {case.patient_id for case in members} for site, members in sites.items()}


@given(
    by=st.sampled_from(["iid", "dirichlet-zones", "dirichlet-size", "quantity"]),
    sites=st.integers(1, 12),
    patients=st.integers(12, 60),
    alpha=st.sampled_from([0.02, 0.5, 100.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_patients_are_dealt_whole_and_completely(by, sites, patients, alpha, seed):
    cases, sizes = pool(patients, seed)
    options = PartitionSettings(by=by, sites=sites, alpha=alpha)
    dealt = partition(cases, options, sizes=sizes, seed=seed)
    assert list(dealt) == [f"site-{k:02d}" for k in range(sites)]
    assert sorted(case.case_id for members in dealt.values() for case in members) == sorted(case.case_id for case in cases)
    here = patients_of(dealt)
    assert sum(map(len, here.values())) == patients  # none at two sites
    assert all(len(ids) >= min(3, patients // sites) for ids in here.values())
    order = np.random.default_rng(seed).permutation(len(cases))
    again = partition([cases[i] for i in order], options, sizes=[sizes[i] for i in order], seed=seed)
    assert patients_of(again) == here


def test_by_site_column():
    cases, _ = pool(9)
    dealt = partition(cases, PartitionSettings(by="site"), sizes=None, seed=0)
    assert list(dealt) == ["here", "there"]
    assert dealt == {site: [case for case in cases if case.site == site] for site in ("here", "there")}


def test_iid_is_even_in_patients():
    cases, _ = pool(42)
    dealt = partition(cases, PartitionSettings(by="iid", sites=4), sizes=None, seed=1)
    assert sorted(map(len, patients_of(dealt).values())) == [10, 10, 11, 11]


def skew(dealt: dict[str, list[Case]], label) -> float:
    """Mean over sites of the largest share that one label has of the site's patients."""
    largest = []
    for ids in patients_of(dealt).values():
        labels = [label(int(patient[1:])) for patient in ids]
        largest.append(max(labels.count(value) for value in set(labels)) / len(labels))
    return float(np.mean(largest))


@pytest.mark.parametrize(("by", "label"), [("dirichlet-zones", lambda p: p % 6), ("dirichlet-size", lambda p: p // 60)])
def test_a_small_alpha_gathers_what_is_alike(by, label):
    cases, sizes = pool(240)
    uneven, even = (
        np.mean([skew(partition(cases, PartitionSettings(by=by, sites=5, alpha=a), sizes=sizes, seed=s), label) for s in range(5)])
        for a in (0.05, 1000.0)
    )
    assert uneven > even + 0.2


def test_quantity_follows_alpha():
    cases, _ = pool(200)
    spread = {}
    for alpha in (0.3, 1000.0):
        counts = [
            len(ids)
            for s in range(5)
            for ids in patients_of(partition(cases, PartitionSettings(by="quantity", sites=5, alpha=alpha), sizes=None, seed=s)).values()
        ]
        spread[alpha] = np.std(counts)
    assert spread[1000.0] < 3 < 15 < spread[0.3]


@pytest.mark.parametrize("by", ["iid", "quantity", "dirichlet-zones"])
def test_a_split_column_is_dealt_in_the_same_shares(by):
    """Every new site can train, and keeps test patients in proportion."""
    cases, _ = pool(120)
    cases = [replace(case, split="test" if int(case.patient_id[1:]) % 7 == 0 else "train") for case in cases]
    for seed in range(5):
        dealt = partition(cases, PartitionSettings(by=by, sites=6, alpha=0.3), sizes=None, seed=seed)
        for members in dealt.values():
            train = {case.patient_id for case in members if case.split == "train"}
            test = {case.patient_id for case in members if case.split == "test"}
            assert len(train) >= 3
            assert abs(len(test) - len(train) / 6) <= 4


def test_errors():
    cases, _ = pool(5)
    with pytest.raises(ManifestError, match=r"partition.sites is 6, but there are only 5 patients to train on.*to 5 or less"):
        partition(cases, PartitionSettings(by="iid", sites=6), sizes=None, seed=0)
    with pytest.raises(ConfigError, match="needs a mask"):
        partition(cases, PartitionSettings(by="dirichlet-size", sites=2), sizes=None, seed=0)
