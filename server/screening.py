"""The size of an update against what other sites send: an update blown up to replace the model is refused.

The norm is divided by the square root of the local steps that the site's announced cases ask for (a walk of n steps gets about √n
far), so that a large hospital may go further than a small one, and by the round's learning rate, or a warm-up would make the first
rounds' updates some 35 times smaller than those that follow. The bound is `federation.max_norm_ratio` medians of the last
accepted updates, of which a hostile minority does not move the median far. The first of a run are held until three of one round
can be compared with each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tmca_core.config import Config
from tmca_core.errors import UpdateRejected
from tmca_core.training.loop import learning_rate

FEWEST, REMEMBERED = 3, 50


def size_of(norm: float, steps: int, rate: float) -> float:
    """norm / (√steps · rate)."""
    return norm / (math.sqrt(steps) * rate)


def mean_rate(config: Config, round: int, steps: int) -> float:
    """Mean learning rate of the local steps of a round, over the peak rate: above 0."""
    rates = [learning_rate(config.training, (round - 1 + step / steps) / config.federation.rounds) for step in _sample(steps)]
    return statistics.fmean(rates) / config.training.learning_rate


def _sample(steps: int) -> list[int]:
    """At most a hundred steps, evenly spread."""
    return list(range(0, steps, max(1, steps // 100)))


def screen(
    norm: float, steps: int, accepted: list[float], ratio: float, among: Sequence[float] | None = None, *, rate: float = 1.0
) -> None:
    """Refuse an update that is too large; note the size of one that is not.

    Args:
        norm: 2-norm of the update.
        steps: local steps that lead to it, above 0.
        accepted: `size_of` the last updates taken; the newest is appended and the oldest dropped.
        ratio: largest size in medians; 0: any.
        rate: `mean_rate`.
        among: sizes that it is compared with where these are others than the accepted ones.

    Raises:
        UpdateRejected: it is too large.
    """
    size, others = size_of(norm, steps, rate), accepted if among is None else among
    median = statistics.median(others) if len(others) >= FEWEST else 0.0
    if ratio and median and not size <= ratio * median:
        raise UpdateRejected(
            f"its norm of {norm:.3g} is {size / median:.3g} times the median of the last {len(others)} for its steps and learning rate; "
            f"at most {ratio:g} are allowed (federation.max_norm_ratio).",
            "norm",
        )
    accepted.append(size)
    del accepted[:-REMEMBERED]
