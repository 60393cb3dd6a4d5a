"""What a federated algorithm is: its fold at the server, its rule at the site, and what of a network it leaves there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from tmca_core.config import Config
from tmca_core.messages import Spec, Update
from tmca_core.registry import Registry
from tmca_core.training.rules import LocalRule

if TYPE_CHECKING:
    from tmca_core.networks.interface import Network

EXTRA = "extra/"
"""Prefix of tensors that travel beside the shared ones."""


class Fold(Protocol):
    """The server's half: a round's aggregation, from the first update to the new weights, and what is kept between rounds.

    Attributes:
        linear: all that it does with a round's updates is to take their weighted mean, so one update that is the mean of several, with
            their weight together, is as good as these.
    """

    linear: bool

    def begin(self, total: int) -> None:
        """A round begins; what an abandoned one has left is dropped.

        Args:
            total: sum of the public weights of all sites of the federation, in this round's cohort or not.
        """

    def add(self, update: Update) -> None:
        """Take an update in; its tensors do not change until this returns."""

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Turn the weights of the round's start into those of its end, in place, and start over for the next round.

        Raises:
            FederationError: no update was added.
        """

    def state(self) -> dict[str, Tensor]:
        """What lasts from round to round (momentum, variates) as CPU tensors; {} where nothing does."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""

    def broadcast(self) -> dict[str, Tensor]:
        """What a round's start sends beside the weights, names beginning with "extra/"; {} mostly."""


class Stateless:
    """The halves of `Fold` that most algorithms leave empty."""

    linear = False

    def begin(self, total: int) -> None:
        """Only those who answer count."""

    def state(self) -> dict[str, Tensor]:
        """Nothing lasts."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to go on from."""

    def broadcast(self) -> dict[str, Tensor]:
        """Only the weights are sent."""
        return {}


def nothing_personal(network: Network, config: Config) -> set[str]:
    """Every trainable tensor is shared."""
    return set()


def plain_rule(config: Config) -> LocalRule:
    """Local training without any change."""
    return LocalRule()


def shared_only(spec: Spec) -> Spec:
    """The shared tensors, and nothing beside them."""
    return spec


@dataclass(frozen=True)
class Algorithm:
    """Both halves of an algorithm.

    Attributes:
        fold: the server's half, from the shared tensors by name and the configuration.
        memory: what the server holds while a round's replies arrive, beside the weights.
        personal: names of the trainable tensors that stay at the site.
        local: the site's half.
        sent: names, shapes and dtypes of the tensors in an update, from those of the shared ones; what the server sends beside the
            weights has the same names.
        sparse: updates that are zero nearly everywhere, each elsewhere, may be folded. Coordinate by coordinate their median is zero,
            and all are equally far from each other: algorithms that compare updates take none.
    """

    fold: Callable[[Mapping[str, Tensor], Config], Fold]
    memory: str
    personal: Callable[[Network, Config], set[str]] = nothing_personal
    local: Callable[[Config], LocalRule] = plain_rule
    sent: Callable[[Spec], Spec] = shared_only
    sparse: bool = True


ALGORITHMS: Registry[Algorithm] = Registry("federated algorithm")
