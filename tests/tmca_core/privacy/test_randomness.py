"""Noise and sampling: their distribution, and that nothing is ever drawn twice. Thresholds fail by chance once in a million runs."""

from __future__ import annotations

import math
import os
import time

import numpy as np
import pytest
from scipy import stats

from tmca_core.privacy.randomness import CHUNK, SecureStream, gaussian, noised, poisson_sample

RARE = 1e-6


class Scripted:
    """A stream of chosen 64-bit numbers, for tests alone."""

    def __init__(self, *numbers: int) -> None:
        self.bytes = b"".join(number.to_bytes(8, "little") for number in numbers)

    def read(self, size: int) -> bytes:
        assert size <= len(self.bytes)
        taken, self.bytes = self.bytes[:size], self.bytes[size:]
        return taken


def test_gaussians_are_normal_to_their_tails() -> None:
    draws = gaussian(4_000_000, SecureStream())
    assert stats.kstest(draws[:500_000], "norm").pvalue > RARE
    root = math.sqrt(len(draws))
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(draws**power) - mean) < 5 * math.sqrt(variance) / root
    for bound in (1.0, 2.0, 3.0, 4.0, 5.0):
        for tail in (draws > bound, draws < -bound):
            expected = len(draws) * stats.norm.sf(bound)
            assert stats.poisson.cdf(tail.sum(), expected) > RARE and stats.poisson.sf(tail.sum() - 1, expected) > RARE
    # The two halves of a pair, and neighbours, are independent.
    half = CHUNK // 2
    pairs = draws[: len(draws) // CHUNK * CHUNK].reshape(-1, 2, half)
    for a, b in ((pairs[:, 0], pairs[:, 1]), (draws[:-1], draws[1:]), (pairs[:, 0] ** 2, pairs[:, 1] ** 2)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


def test_gaussians_at_the_ends_of_the_stream_are_finite_and_as_by_hand() -> None:
    most = (1 << 64) - 1
    extreme = gaussian(4, Scripted(0, most, 0, 1 << 63))
    radius = math.sqrt(2 * 65 * math.log(2))  # u₁ = 2⁻⁶⁵
    assert extreme == pytest.approx([radius, 0.0, 0.0, 0.0], abs=1e-12)
    one = gaussian(1, Scripted(1 << 63, 1 << 62))  # u₁ = 1/2, a quarter turn
    assert one == pytest.approx([0.0], abs=1e-9) and len(one) == 1
    assert gaussian(0, Scripted()).shape == (0,)


def test_two_streams_have_nothing_in_common_and_no_stream_repeats() -> None:
    a, b = gaussian(400_000, SecureStream()), gaussian(400_000, SecureStream())
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))
    stream = SecureStream()
    blocks = [stream.read(16) for _ in range(20_000)] + [SecureStream().read(16) for _ in range(2_000)]
    assert len(set(blocks)) == len(blocks)


def test_a_forked_process_does_not_repeat_its_parents_stream() -> None:
    stream = SecureStream()
    stream.read(8)
    ends = [os.pipe() for _ in range(2)]
    for _, write in ends:
        if not os.fork():
            try:
                os.write(write, stream.read(32))
            finally:
                os._exit(0)
    drawn = [os.read(read, 32) for read, _ in ends] + [stream.read(32)]
    for _ in ends:
        os.wait()
    assert len(set(drawn)) == 3 and all(len(part) == 32 for part in drawn)


def test_noised_sums_are_sums_and_noise_on_a_grid() -> None:
    total = np.linspace(-3, 3, 200_001)
    for std in (0.6, 1.0, 25.0):
        out = noised(total, std, SecureStream())
        assert stats.kstest((out - total) / std, "norm").pvalue > RARE
        grid = 2.0 ** (math.floor(math.log2(std)) - 20)
        assert (out / grid == np.rint(out / grid)).all()
        within = np.abs(out) <= 8 * std
        assert (out.astype(np.float32) == out)[within].all() and within.mean() > 0.9
    assert not (noised(total, 1.0, SecureStream()) == noised(total, 1.0, SecureStream())).all()
    assert noised(np.empty(0), 1.0, SecureStream()).shape == (0,)


@pytest.mark.parametrize(("value", "std"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, math.nan), (0.0, math.inf)])
def test_what_cannot_be_noised_is_refused(value: float, std: float) -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        noised(np.array([value]), std, SecureStream())


def test_forty_megabytes_are_noised_in_seconds() -> None:
    total, start = np.zeros(2_500_000), time.process_time()
    noised(total, 1.0, SecureStream())
    assert time.process_time() - start < 2.5  # a quarter of 40 MB of float32: some 0.2 s on an idle core


def test_poisson_sampling_compares_whole_64_bit_numbers() -> None:
    quarter = 1 << 62
    assert poisson_sample(4, 0.25, Scripted(quarter - 1, quarter, 0, (1 << 64) - 1)).tolist() == [0, 2]
    assert poisson_sample(2, 2.0**-64, Scripted(0, 1)).tolist() == [0]
    assert poisson_sample(3, 1.0, SecureStream()).tolist() == [0, 1, 2]
    assert poisson_sample(1000, 0.0, SecureStream()).tolist() == []
    assert poisson_sample(0, 0.5, SecureStream()).tolist() == []
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="sampling rate"):
            poisson_sample(1, rate, SecureStream())


def test_poisson_sampling_draws_everybody_alike_and_sizes_are_binomial() -> None:
    stream, count, rate, rounds = SecureStream(), 100, 0.032, 20_000
    drawn = [poisson_sample(count, rate, stream) for _ in range(rounds)]
    each = np.bincount(np.concatenate(drawn), minlength=count)
    assert stats.chisquare(each).pvalue > RARE
    assert stats.binomtest(int(each.sum()), count * rounds, rate).pvalue > RARE
    sizes = np.bincount([min(len(d), 9) for d in drawn], minlength=10)
    expected = stats.binom.pmf(np.arange(9), count, rate)
    assert stats.chisquare(sizes, rounds * np.append(expected, 1 - expected.sum())).pvalue > RARE
    assert sizes[0] > 0  # empty draws happen
