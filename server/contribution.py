"""What each site adds: the round's model against the models that the same round makes without one of the sites.

The round is aggregated anew once for every site, by the run's own algorithm and from the replies on disk, so memory holds the
round's start, one more model, and the fold's own memory twice. For N sites that is N (N − 1) additions and N validations at all
sites: a setting for every so many rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from server.fairness import mean_dice
from server.received import Received
from server.turns import decoded
from tmca_core.errors import FederationError

if TYPE_CHECKING:
    from server.rounds import Federation


@dataclass(frozen=True)
class Before:
    """Copies of what a round began with: weights by name, and the state of the fold."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, federation: Federation) -> Before:
        """Of the round that is about to begin."""
        weights = {name: tensor.clone() for name, tensor in federation.weights.items()}
        return cls(weights, {name: tensor.clone() for name, tensor in federation.fold.state().items()})


def contributions(federation: Federation, before: Before, received: Received) -> dict[str, float]:
    """Dice gained by having a site: mean validation Dice of the round's weights, minus that of the round without it.

    Args:
        federation: after the round.
        before: the round.
        received: the round's replies.

    Returns:
        By site; {} where nothing can be validated, or one site answered alone.
    """
    names = [reply.site for reply in received.replies()]
    whole = mean_dice(federation.assess(federation.weights, "val"))
    if len(names) < 2 or whole is None:
        return {}
    gains: dict[str, float] = {}
    for site in sorted(names):
        try:
            without = mean_dice(federation.assess(_without(federation, before, received, site), "val"))
        except FederationError as error:
            federation.note(f"round {federation.round}: the contribution of '{site}' cannot be measured: {error}")
            continue
        if without is not None:
            gains[site] = whole - without
    return gains


def _without(federation: Federation, before: Before, received: Received, site: str) -> Mapping[str, Tensor]:
    """The weights that the round makes of all replies but one."""
    weights = {name: tensor.clone() for name, tensor in before.weights.items()}
    fold = federation.algorithm.fold(weights, federation.config)
    fold.restore(before.state)
    weighting = federation.config.federation.weighting
    fold.begin(sum(hello.weight(weighting) for name, hello in federation.roster.hellos.items() if name != site))
    for reply in received.replies():
        if reply.site != site:
            fold.add(decoded(federation, reply)[0])
    fold.finish(weights)
    return weights
