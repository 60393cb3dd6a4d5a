"""`krum`, `multi-krum`: the update, or the updates, that lie closest to others."""

from __future__ import annotations

import logging
from functools import partial

from torch import Tensor

from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.replies import Replies, weighted
from tmca_core.algorithms.robust import ALL_UPDATES, Combine, Robust
from tmca_core.config import FederationSettings

log = logging.getLogger(__name__)


def scores(distances: Tensor, hostile: int) -> Tensor:
    """Each update's sum of squared distances to its n − f − 2 nearest others, at least one: (n, n) → (n,).

    Args:
        distances: squared, with zeros on the diagonal.
        hostile: f.
    """
    count = len(distances)
    near = min(max(1, count - hostile - 2), count - 1)
    return distances.sort(1).values[:, 1 : 1 + near].sum(1)


def lowest(values: Tensor, count: int) -> Tensor:
    """Equal shares for the `count` lowest of (n,), and 0 for the others; all that tie with the last of them are in, too."""
    last = values.sort().values[count - 1]
    chosen = (values <= last * (1 + 1e-9)).double()
    return chosen / chosen.sum()


def choose(replies: Replies, settings: FederationSettings, several: bool) -> Combine:
    """Blanchard et al. 2017: the update with the lowest score, or the plain mean of the n − f with the lowest.

    Every site counts the same, whatever its public weight. Where several updates tie for the last place (with n − f − 2 = 1 the
    closest two always do) all of them are in, so that the order of arrival does not decide.
    """
    count, hostile = len(replies), settings.byzantine
    if count < 2 * hostile + 3:
        log.warning("Krum against %d hostile sites needs %d updates; of %d it promises nothing.", hostile, 2 * hostile + 3, count)
    return partial(weighted, lowest(scores(replies.distances(), hostile), max(1, count - hostile) if several else 1))


ALGORITHMS.register("krum")(Algorithm(partial(Robust, choose=partial(choose, several=False)), ALL_UPDATES, sparse=False))
ALGORITHMS.register("multi-krum")(Algorithm(partial(Robust, choose=partial(choose, several=True)), ALL_UPDATES, sparse=False))
