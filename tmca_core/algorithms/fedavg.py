"""`fedavg`: the weighted mean of the sites' updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tmca_core.algorithms.interface import ALGORITHMS, Algorithm, Stateless
from tmca_core.config import Config
from tmca_core.errors import FederationError
from tmca_core.messages import Update

ONE_SUM = "one float64 sum of the shared tensors"
PIECE = 2**17
"""Values that are added at a time."""


class FedAvg(Stateless):
    """w ← w + η Σ n_k Δ_k / Σ n_k over the sites k that answered (McMahan et al. 2017, with n_k the public weight; η = 1).

    The sum is kept un-normalised in float64 and the weights are integers: n·Δ has a 24-bit mantissa times a small
    integer, hence no rounding at all, and the sum of a few such products is exact too as long as their bits span no
    more than 53 positions (weights to 2⁸ in 8 sites leave 18 bits, a factor of 10⁵ between the largest and the
    smallest update of one parameter). What rounding is left is near 2⁻⁵³, and vanishes in the one rounding to
    float32 at the end. So the order of arrival does not show in the result, and no list of replies is needed to sort.
    """

    linear = True
    own_rate = 1.0

    def __init__(self, like: Mapping[str, Tensor], config: Config) -> None:
        self._sum = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}
        self._piece = torch.empty(PIECE, dtype=torch.float64)
        self._weight = 0
        self._rate = config.federation.server_learning_rate or self.own_rate

    def begin(self, total: int) -> None:
        """The mean is over those who answer; the others do not count."""
        if self._weight:
            self.start_over()

    def add(self, update: Update) -> None:
        """sum += n·Δ, in place."""
        self._add(update, update.weight)

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """w += η·sum / Σn, computed in float64 and rounded once.

        Raises:
            FederationError: no update was added.
        """
        self._insist()
        for name, total in self._sum.items():
            for part, piece in _pieces(total, weights[name]):
                # As `add_` of a float64 mean does it, but without a float64 copy of the whole tensor.
                new = self._piece[: len(piece)].copy_(piece)
                piece.copy_(new.add_(part.div_(self._weight), alpha=self._rate))
        self.start_over()

    def means(self) -> dict[str, Tensor]:
        """Σ n Δ / Σ n by name, float64, in the place of the sums.

        Raises:
            FederationError: no update was added.
        """
        self._insist()
        return {name: total.div_(self._weight) for name, total in self._sum.items()}

    def start_over(self) -> None:
        """Empty sums."""
        for total in self._sum.values():
            total.zero_()
        self._weight = 0

    def _insist(self) -> None:
        if not self._weight:
            raise FederationError("no update was folded, so there is no mean.")

    def _add(self, update: Update, factor: float) -> None:
        small = [name for name, total in self._sum.items() if total.numel() <= PIECE]
        if small:
            torch._foreach_add_([self._sum[name] for name in small], [update.tensors[name] for name in small], alpha=factor)
        for name in self._sum.keys() - set(small):
            # A piece at a time, so that its float64 copy stays in the processor's cache; torch would make one of the whole tensor.
            for part, piece in _pieces(self._sum[name], update.tensors[name].contiguous()):
                part.add_(self._piece[: len(piece)].copy_(piece), alpha=factor)
        self._weight += update.weight


def _pieces(total: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of two contiguous tensors of one shape, a piece of at most `PIECE` numbers at a time."""
    return zip(torch.split(total.view(-1), PIECE), torch.split(like.view(-1), PIECE), strict=True)


ALGORITHMS.register("fedavg")(Algorithm(FedAvg, ONE_SUM))
