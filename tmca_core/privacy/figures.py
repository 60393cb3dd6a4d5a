"""Means over patients with noise: one Gaussian mechanism for all figures that leave together, charged like a step of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmca_core.privacy.randomness import Stream, noised


def means_of(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and numbers of patients, figure by figure; NaN where nobody has a value.

    Args:
        values: (patients, figures), NaN where a patient has none.
    """
    there = ~np.isnan(values)
    counts = there.sum(0).astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0/0: nobody
        return np.where(there, values, 0.0).sum(0) / counts, counts


def noised_means(
    values: NDArray[np.float64], groups: Sequence[str], noise_multiplier: float, stream: Stream
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same with Gaussian noise on sums and numbers; neither exact sums nor exact numbers enter what is returned.

    A value v counts as v − ½, so one patient moves each sum by ½ at most and the number of each group by 1: the whole vector by
    √(figures/4 + groups). Noise of `noise_multiplier` times that on every entry is one release of the Gaussian mechanism of that
    multiplier under add/remove. Division, bounds and rounding come after it and cost nothing.

    Args:
        values: (patients, figures) between 0 and 1, NaN where a patient has none; figures of a group are there for the same patients.
        groups: of each figure.
        noise_multiplier: σ, in sensitivities; above 0.
        stream: of the noise.

    Returns:
        Means between 0 and 1, and numbers, both (figures,) and noised; NaN where the noised number is below 1.

    Raises:
        ValueError: a value is out of its bounds: the guarantee would not hold.
    """
    there = ~np.isnan(values)
    if not ((values[there] >= 0) & (values[there] <= 1)).all():
        raise ValueError("a figure that is to be noised lies outside of 0 to 1.")
    names = list(dict.fromkeys(groups))
    of_group = [names.index(group) for group in groups]
    # A patient counts in a group once, and a value of a patient who does not count there is none.
    member = np.stack([there[:, [k for k, g in enumerate(of_group) if g == n]].all(1) for n in range(len(names))], 1)
    sums = np.where(member[:, of_group], np.nan_to_num(values) - 0.5, 0.0).sum(0)
    exact = np.concatenate([sums, member.sum(0).astype(np.float64)])
    released = noised(exact, noise_multiplier * math.sqrt(len(of_group) / 4 + len(names)), stream)
    counts = released[len(of_group) :][of_group]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = 0.5 + released[: len(of_group)] / counts
    return np.where(counts >= 1, np.clip(means, 0, 1), np.nan), counts
