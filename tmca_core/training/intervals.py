"""Bootstrap intervals that resample patients, not cases: images of one patient are no independent evidence."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tmca_core.seeds import numpy_rng

_CHUNK = 4_000_000  # drawn counts held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval and the standard error of the mean it belongs to."""

    low: float
    high: float
    standard_error: float


def patient_bootstrap(values: Sequence[float], patients: Sequence[Hashable], resamplings: int, seed: int, *purpose: str) -> Interval | None:
    """Interval of the mean over cases when whole patients are drawn with replacement.

    Every resampling draws as many patients as there are and takes all of a drawn patient's cases, so its mean is
    Σ c_k s_k / Σ c_k n_k with c the multinomial counts, s a patient's sum and n its number of cases
    (Efron and Tibshirani 1993, chapter 13; cluster variant: Field and Welsh 2007).

    Args:
        values: N values, one a case.
        patients: N patients, any hashable.
        resamplings: number of draws.
        seed: with `purpose` it names the random stream.

    Returns:
        None where `resamplings` is 0 or fewer than two patients are there: nothing can be said about spread.
    """
    index = {patient: k for k, patient in enumerate(dict.fromkeys(patients))}
    n = len(index)
    if resamplings == 0 or n < 2:
        return None
    place = np.array([index[patient] for patient in patients])
    sums = np.bincount(place, weights=np.asarray(values, dtype=np.float64), minlength=n)
    cases = np.bincount(place, minlength=n).astype(np.float64)
    rng = numpy_rng(seed, "bootstrap", *purpose)
    means: list[npt.NDArray[np.float64]] = []
    left = resamplings
    while left:
        draws = min(left, max(1, _CHUNK // n))
        counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
        means.append((counts @ sums) / (counts @ cases))
        left -= draws
    drawn = np.concatenate(means)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high), float(drawn.std()))
