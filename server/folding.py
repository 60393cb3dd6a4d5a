"""Folding beside training: while one site trains, the update of the one before is added to the sum."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from tmca_core.algorithms.interface import Fold
from tmca_core.messages import Update

LARGE = 1_000_000
"""Numbers in an update from which on handing it to another thread costs less than it spares."""


class Folding:
    """Adds checked updates to a fold in the order in which they come; a large one in a thread, one at a time.

    At most one update waits, so memory does not grow with the number of sites. An update's tensors must not change once it is
    handed over.

    Args:
        fold: nobody else may touch it between `add` and `settle`.
    """

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fold")
        self._adding: Future[None] | None = None

    def add(self, update: Update) -> None:
        """Have an update added.

        Raises:
            Exception: what adding the one before raised.
        """
        self.settle()
        if sum(tensor.numel() for tensor in update.tensors.values()) < LARGE:
            self._fold.add(update)
        else:
            self._adding = self._thread.submit(self._fold.add, update)

    def settle(self) -> None:
        """Wait until all is added.

        Raises:
            Exception: what adding the last one raised.
        """
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()
