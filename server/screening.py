"""The size of an update against what other sites send: an update blown up to replace the model is refused.

The norm is divided by the square root of the local steps that the site's announced cases ask for (a walk of n steps gets about √n
far), so that a large hospital may go further than a small one. The bound is `federation.max_norm_ratio` medians of the last
accepted updates, of which a hostile minority does not move the median far; it begins with the third.
"""

from __future__ import annotations

import math
import statistics

from tmca_core.errors import UpdateRejected

FEWEST, REMEMBERED = 3, 50


def screen(norm: float, steps: int, accepted: list[float], ratio: float) -> None:
    """Refuse an update that is too large; note the size of one that is not.

    Args:
        norm: 2-norm of the update.
        steps: local steps that lead to it, above 0.
        accepted: norm / √steps of the last updates taken; the newest is appended and the oldest dropped.
        ratio: largest size in medians; 0: any.

    Raises:
        UpdateRejected: it is too large.
    """
    size = norm / math.sqrt(steps)
    median = statistics.median(accepted) if len(accepted) >= FEWEST else 0.0
    if ratio and median and not size <= ratio * median:
        raise UpdateRejected(
            f"its norm of {norm:.3g} is {size / median:.3g} times the median of the last {len(accepted)} updates for its number of steps; "
            f"at most {ratio:g} are allowed (federation.max_norm_ratio).",
            "norm",
        )
    accepted.append(size)
    del accepted[:-REMEMBERED]
