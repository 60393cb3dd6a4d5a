"""Fixed point: what a sum is off by, what does not fit, and that nothing ever wraps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.errors import ConfigError, UpdateRejected
from tmca_core.secure.fixed_point import FixedPoint


def test_by_hand() -> None:
    # 16 bits, bound 1, two parties of weights 1 and 3: s = (32767 − 2) / (1 · 4) = 8191.25
    grid = FixedPoint(16, 1.0, 2, 4)
    assert grid.scale == 8191.25
    assert grid.step(4) == pytest.approx(1 / 32765)
    out = grid.zeros(4)
    grid.encode(np.array([0.0, 1.0, -1.0, 0.5], np.float32), 3, out)
    # 3 · 8191.25 = 24573.75 → 24574; −24574 mod 2¹⁶ = 40962; 12286.875 → 12287
    assert out.tolist() == [0, 24574, 40962, 12287]
    assert grid.decode(out, 3).tolist() == [0, *(value / (8191.25 * 3) for value in (24574, -24574, 12287))]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([16, 32]), st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_sums_at_the_bound_never_wrap_and_stay_within_half_a_step_each(bits: int, weights: list[int], bound: float, seed: int) -> None:
    grid, total = FixedPoint(bits, bound, len(weights), sum(weights)), np.zeros(40)
    draws, codes = np.random.default_rng(seed), grid.zeros(40)
    largest = np.nextafter(np.float32(bound), np.float32(0))
    for weight in weights:
        values = draws.uniform(-bound, bound, 40).astype(np.float32).clip(-largest, largest)
        values[:2], values[2:4] = largest, -largest
        out = grid.zeros(40)
        grid.encode(values, weight, out)
        codes += out
        total += weight * values.astype(np.float64)
    off = np.abs(grid.decode(codes, sum(weights)) - total / sum(weights))
    assert off.max() <= len(weights) / 2 * grid.step(sum(weights)) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("value", "says"), [(2.5, "changes by up to 2.5"), (-2.5, "federation.secure_range"), (np.nan, "NaN"), (-np.inf, "infinite")]
)
def test_what_does_not_fit_is_refused_by_name(value: float, says: str) -> None:
    values = np.zeros(100_000, np.float32)
    values[70_000] = value
    grid = FixedPoint(32, 2.0, 3, 3)
    with pytest.raises(UpdateRejected, match=says) as error:
        grid.encode(values, 1, grid.zeros(len(values)), "decoder.weight")
    assert "tensor 'decoder.weight'" in str(error.value)


def test_impossible_grids_and_weights() -> None:
    for bits, bound, parties, weight in [(8, 1.0, 3, 3), (32, 0.0, 3, 3), (32, float("inf"), 3, 3), (32, 1.0, 3, 2), (16, 1.0, 3000, 3000)]:
        with pytest.raises(ConfigError):
            FixedPoint(bits, bound, parties, weight)
    grid = FixedPoint(32, 1.0, 3, 3)
    with pytest.raises(UpdateRejected, match="weight"):
        grid.encode(np.zeros(1, np.float32), 4, grid.zeros(1))
    with pytest.raises(ConfigError, match="sum over a weight"):
        grid.decode(grid.zeros(1), 4)
    grid.encode(np.zeros(0, np.float32), 1, grid.zeros(0))
