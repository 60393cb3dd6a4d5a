"""Patient-level splits: never a patient in two, near the fractions in cases, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.case import Case
from tmca_core.cases.split import assign_splits
from tmca_core.errors import ConfigError, ManifestError


def case(name: str, patient: str, site: str = "a", split: str = "", row: int = 0) -> Case:
    return Case(name, patient, site, Path(name), (Path(name),), "r", "r", "patient", split, row)  # type: ignore[arg-type]


def pool(counts: dict[str, list[int]]) -> list[Case]:
    """Cases from site → number of cases of each patient."""
    return [
        case(f"{site}-{p}-{k}", f"{site}-{p:03d}", site) for site, sizes in counts.items() for p, n in enumerate(sizes) for k in range(n)
    ]


def shares(cases: list[Case]) -> dict[str, float]:
    return {split: count / len(cases) for split, count in Counter(c.split for c in cases).items()}


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(1, 16), min_size=1, max_size=30), min_size=1),
    seed=st.integers(0, 1000),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.5),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_every_patient_is_in_one_split_and_every_case_is_kept(counts, seed, val, test, data):
    cases = pool(counts)
    done = assign_splits(cases, val_fraction=val, test_fraction=test, seed=seed)
    assert [c.case_id for c in done] == [c.case_id for c in cases]
    assert all(c.split in ("train", "val", "test") for c in done)
    home: dict[str, str] = {}
    assert all(home.setdefault(c.patient_id, c.split) == c.split for c in done)
    for site, sizes in counts.items():
        here = {c.split for c in done if c.site == site}
        expected = {"train"}
        if len(sizes) >= 3:
            expected |= ({"test"} if test > 0 else set()) | ({"val"} if val > 0 else set())
        elif len(sizes) == 2 and (test > 0 or val > 0):
            expected |= {"test" if test > 0 else "val"}
        assert here == expected
    order = data.draw(st.permutations(range(len(cases)))) if len(cases) < 60 else list(reversed(range(len(cases))))
    again = assign_splits([cases[i] for i in order], val_fraction=val, test_fraction=test, seed=seed)
    assert {c.case_id: c.split for c in again} == {c.case_id: c.split for c in done}


@given(sizes=st.lists(st.integers(1, 16), min_size=12, max_size=60), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_the_share_of_cases_comes_near_the_fraction(sizes, seed):
    done = assign_splits(pool({"a": sizes}), val_fraction=0.1, test_fraction=0.2, seed=seed)
    got = Counter(c.split for c in done)
    # Greedy stops at most half of the largest patient away, or one smallest patient above a tiny target.
    assert abs(got["test"] - 0.2 * len(done)) <= 8
    assert abs(got["val"] - 0.1 * len(done)) <= 8


def test_equal_patients_give_the_exact_fractions():
    done = assign_splits(pool({"a": [2] * 50}), val_fraction=0.1, test_fraction=0.2, seed=3)
    assert Counter(c.split for c in done) == {"train": 70, "val": 10, "test": 20}


def test_another_seed_draws_other_patients():
    cases = pool({"a": [2] * 40})
    drawn = {tuple(c.split for c in assign_splits(cases, val_fraction=0.1, test_fraction=0.2, seed=seed)) for seed in range(5)}
    assert len(drawn) == 5


def test_small_sites():
    one = assign_splits(pool({"a": [5]}), val_fraction=0.1, test_fraction=0.2, seed=0)
    assert {c.split for c in one} == {"train"}
    two = assign_splits(pool({"a": [1, 4]}), val_fraction=0.1, test_fraction=0.2, seed=0)
    assert {c.patient_id: c.split for c in two} == {"a-000": "test", "a-001": "train"}
    three = assign_splits(pool({"a": [9, 9, 9]}), val_fraction=0.1, test_fraction=0.2, seed=0)
    assert Counter(c.split for c in three) == {"train": 9, "val": 9, "test": 9}


def test_a_split_column_is_honoured_and_val_comes_from_train():
    cases = [case(f"c{p}{k}", f"p{p}", split="test" if p < 3 else "train") for p in range(13) for k in range(2)]
    done = assign_splits(cases, val_fraction=0.2, test_fraction=0.5, seed=0)
    assert {c.patient_id for c in done if c.split == "test"} == {"p0", "p1", "p2"}
    assert Counter(c.split for c in done) == {"test": 6, "val": 4, "train": 16}
    given_val = [case("a", "1", split="train"), case("b", "2", split="val"), case("c", "3", split="test"), case("d", "4", split="train")]
    assert [c.split for c in assign_splits(given_val, val_fraction=0.5, test_fraction=0.2, seed=0)] == ["train", "val", "test", "train"]
    lone = [case("a", "1", split="train"), case("b", "2", split="test")]
    assert [c.split for c in assign_splits(lone, val_fraction=0.5, test_fraction=0.2, seed=0)] == ["train", "test"]


def test_a_patient_of_two_sites_has_one_split_in_both():
    cases = pool({"a": [2] * 8, "b": [2] * 8})
    shared = [case(f"s{k}", "a-00" + str(k), site="b") for k in range(4)]
    done = assign_splits(cases + shared, val_fraction=0.2, test_fraction=0.3, seed=1)
    home: dict[str, str] = {}
    assert all(home.setdefault(c.patient_id, c.split) == c.split for c in done)
    # … and where one site names its splits and the other does not.
    named = [case(f"n{k}", f"p{k}", site="z", split="train" if k else "test") for k in range(5)]
    done = assign_splits([case(f"m{k}", f"p{k}", site="a") for k in range(3)] + named, val_fraction=0.2, test_fraction=0.3, seed=1)
    home = {}
    assert all(home.setdefault(c.patient_id, c.split) == c.split for c in done) and home["p0"] == "test"


def test_errors_name_row_patient_and_site():
    with pytest.raises(ManifestError, match=r"row 7, column 'split'.*case 'b'.*site 'a'"):
        assign_splits([case("a", "1", split="train"), case("b", "2", row=7)], val_fraction=0.1, test_fraction=0.2, seed=0)
    with pytest.raises(ManifestError, match=r"row 9.*patient '1'.*'test' here and in 'train' in row 8"):
        assign_splits(
            [case("a", "1", split="train", row=8), case("b", "1", split="test", row=9)], val_fraction=0.1, test_fraction=0.2, seed=0
        )
    with pytest.raises(ManifestError, match="site 'lund' has no case to train on"):
        assign_splits([case("a", "1", site="lund", split="test")], val_fraction=0.1, test_fraction=0.2, seed=0)
    with pytest.raises(ConfigError, match="together below 1"):
        assign_splits(pool({"a": [1, 1]}), val_fraction=0.5, test_fraction=0.5, seed=0)


def test_an_independent_split_is_each_patients_own_and_meets_the_shares_on_average() -> None:
    cases = pool({"a": [1] * 1000, "b": [2] * 1000})
    done = assign_splits(cases, val_fraction=0.1, test_fraction=0.2, seed=3, independent=True)
    found = shares(done)
    assert abs(found["test"] - 0.2) < 0.03 and abs(found["val"] - 0.1) < 0.03
    some = assign_splits(cases[500:1700], val_fraction=0.1, test_fraction=0.2, seed=3, independent=True)
    assert some == done[500:1700]
    other = assign_splits(cases, val_fraction=0.1, test_fraction=0.2, seed=4, independent=True)
    assert [c.split for c in other] != [c.split for c in done]
