"""Noised means: how far one patient moves what is noised, what the noise is, and what it costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from private_cases import Known

from tmca_core.privacy import figures
from tmca_core.privacy.figures import means_of, noised_means

GROUPS = ("case", "case", "report", "sided")


def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, float]]:
    """What goes into the noise, and its standard deviation; nothing is added."""
    seen: list[tuple[np.ndarray, float]] = []

    def keep(total: np.ndarray, std: float, stream: Any) -> np.ndarray:
        seen.append((total.copy(), std))
        return total

    monkeypatch.setattr(figures, "noised", keep)
    return seen


one_value = st.one_of(st.floats(0, 1), st.just(math.nan))
patients = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), one_value, one_value), min_size=1, max_size=8)


@given(patients)
def test_no_patient_moves_what_is_noised_by_more_than_one_sensitivity(rows: list[tuple[float, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen = captured(patch)
        values = np.array(rows)
        noised_means(values, GROUPS, 1.0, Known())
        for k in range(len(rows)):
            noised_means(np.delete(values, k, 0), GROUPS, 1.0, Known())
        (whole, std), *without = seen
        assert std == math.sqrt(4 / 4 + 3)
        assert all(np.linalg.norm(whole - one) <= std + 1e-12 and same == std for one, same in without)


def test_without_noise_they_are_the_means(monkeypatch: pytest.MonkeyPatch) -> None:
    captured(monkeypatch)
    values = np.array([[0.2, 1.0, math.nan, 0.0], [0.4, 0.0, 0.5, math.nan], [0.9, 0.5, 1.0, math.nan]])
    means, counts = noised_means(values, GROUPS, 1.0, Known())
    exact, numbers = means_of(values)
    np.testing.assert_allclose(means, exact, atol=1e-12)
    np.testing.assert_array_equal(counts, numbers)
    assert means.tolist() == pytest.approx([0.5, 0.5, 0.75, 0.0]) and counts.tolist() == [3, 3, 2, 1]
    empty, none = means_of(np.empty((0, 4)))
    assert np.isnan(empty).all() and none.tolist() == [0] * 4


def test_the_noise_has_the_size_that_is_charged() -> None:
    values = np.full((1000, 4), 0.5)
    drawn = [noised_means(values, GROUPS, 3.0, Known(f"{k}")) for k in range(400)]
    counts = np.array([counts for _, counts in drawn])
    assert counts[:, 0].std() == pytest.approx(3 * 2, rel=0.15) and counts[:, 0].mean() == pytest.approx(1000, abs=1.5)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])  # of one group there is one number
    assert abs(np.corrcoef(counts[:, 0], counts[:, 2])[0, 1]) < 0.2
    means = np.array([means for means, _ in drawn])
    assert means.std(0) == pytest.approx([6 / 1000] * 4, rel=0.2)


def test_a_value_out_of_bounds_is_refused_and_too_few_give_nothing() -> None:
    for wrong in (1.01, -0.01, math.inf):
        with pytest.raises(ValueError, match="outside of 0 to 1"):
            noised_means(np.array([[wrong, 0, 0, 0]]), GROUPS, 1.0, Known())
    means, counts = noised_means(np.empty((0, 4)), GROUPS, 1e-9, Known())
    assert np.isnan(means).all() and (np.abs(counts) < 1).all()
