"""The patient bootstrap against a slow one, and where there is nothing to resample."""

import numpy as np
import pytest

from tmca_core.training.intervals import patient_bootstrap


def slow_bootstrap(values, patients, resamplings, rng):
    """One resampling at a time, patients drawn by name."""
    names, means = sorted(set(patients)), []
    for _ in range(resamplings):
        drawn = rng.choice(names, len(names))
        cases = [v for name in drawn for v, p in zip(values, patients, strict=True) if p == name]
        means.append(np.mean(cases))
    return np.percentile(means, [2.5, 97.5])


def test_bootstrap_equals_a_slow_one_up_to_chance():
    rng = np.random.default_rng(0)
    patients = [f"p{k}" for k in rng.integers(0, 12, 80)]
    values = rng.random(80) * 0.2 + np.array([int(p[1:]) for p in patients]) / 20
    fast = patient_bootstrap(list(values), patients, 4000, 0)
    slow = slow_bootstrap(values, patients, 4000, rng)
    assert [fast.low, fast.high] == pytest.approx(slow, abs=0.01)
    assert fast == patient_bootstrap(list(values), patients, 4000, 0)


def test_bootstrap_resamples_patients_not_cases():
    # Twenty equal images of each of two patients: whatever is drawn, the mean is 0, 0.5 or 1.
    wide = patient_bootstrap([0.0] * 20 + [1.0] * 20, ["p1"] * 20 + ["p2"] * 20, 500, 0)
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_bootstrap_without_evidence_of_spread():
    assert patient_bootstrap([0.5, 0.7], ["p", "p"], 100, 0) is None
    assert patient_bootstrap([0.5, 0.7], ["p", "q"], 0, 0) is None


def test_bootstrap_in_chunks_is_of_the_size_asked_for(monkeypatch):
    from tmca_core.training import intervals

    monkeypatch.setattr(intervals, "_CHUNK", 20)
    found = patient_bootstrap([0.0, 1.0, 0.5], ["p", "q", "r"], 1000, 0)
    assert found.low < 0.5 < found.high
