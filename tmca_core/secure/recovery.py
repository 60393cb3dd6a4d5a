"""The server's half: a running sum of masked updates, and the removal of the masks that do not cancel in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tmca_core.errors import FederationError, UpdateRejected
from tmca_core.secure import shamir
from tmca_core.secure.fixed_point import Codes, FixedPoint
from tmca_core.secure.keys import public_of
from tmca_core.secure.masking import Mask, apply
from tmca_core.secure.session import Book, promise_of
from tmca_core.secure.site import pair_mask, self_mask


@dataclass
class MaskedSum:
    """Σ of masked updates, each added as it arrives and dropped.

    Attributes:
        grid: of the values.
        total: (count,) whole numbers modulo 2ᵏ; without a meaning until it is unmasked.
        sites: whose updates are in it.
    """

    grid: FixedPoint
    total: Codes
    sites: list[str] = field(default_factory=list)

    def add(self, site: str, masked: Codes) -> None:
        """total += masked.

        Raises:
            UpdateRejected: of another length or type, or the site's is in it already.
        """
        if masked.dtype != self.total.dtype or masked.shape != self.total.shape:
            raise UpdateRejected(
                f"the masked update has {masked.shape} numbers of {masked.dtype}, expected {self.total.shape} of {self.total.dtype}.",
                "shape",
            )
        if site in self.sites:
            raise UpdateRejected("the site's masked update is in the sum already.", "duplicate")
        np.add(self.total, masked, out=self.total)
        self.sites.append(site)

    def open(self, book: Book, left: Collection[Mask]) -> NDArray[np.float64]:
        """Take the masks away that are left, in place; returns the weighted mean of the updates, (count,)."""
        apply(self.total, left)
        return self.grid.decode(self.total, sum(book[site].weight for site in self.sites))


@dataclass(frozen=True)
class Recovered:
    """What the sites' shares gave.

    Attributes:
        masks: that bring the masked sum to the plain one.
        wrong: sites one of whose shares was wrong.
    """

    masks: list[Mask]
    wrong: set[str]


def recover(book: Book, dealers: Collection[str], survivors: Collection[str], revealed: Mapping[str, Mapping[str, int]]) -> Recovered:
    """The masks left in a sum: each survivor's own, and those between survivors and sites that dealt shares and then dropped out.

    Args:
        book: of the session.
        dealers: who masked with whom.
        survivors: whose updates are in the sum.
        revealed: share holder → dealer → share.

    Raises:
        FederationError: fewer than t right shares of a secret are there. The sum stays masked.
    """
    left: list[Mask] = []
    wrong: set[str] = set()
    sites = list(book.places)

    def secret_of(dealer: str, right: Callable[[bytes], bool]) -> bytes:
        shares = {book.places[holder]: given[dealer] for holder, given in revealed.items() if dealer in given}
        found = shamir.recover(shares, book.threshold, right)
        if found is None:
            raise FederationError(
                f"of the secret of site '{dealer}' there are {len(shares)} shares, and no {book.threshold} of them give what it announced: "
                "too many sites left before the sum was opened, or sent wrong shares. The round's sum stays masked; repeat the command."
            )
        wrong.update(sites[place - 1] for place in found[1])
        return found[0]

    for dealer in sorted(dealers):
        advert = book[dealer]
        if dealer in survivors:
            seed = secret_of(dealer, lambda secret, advert=advert: promise_of(secret) == advert.promise)  # type: ignore[misc]
            left.append(_opposite(self_mask(seed, dealer, book)))
        else:
            key = secret_of(dealer, lambda secret, advert=advert: public_of(secret) == advert.masking)  # type: ignore[misc]
            # The drop-out's own view of each pair is the opposite of what the survivor applied: adding it takes that away.
            left += [pair_mask(key, dealer, other, book) for other in survivors]
    return Recovered(left, wrong)


def _opposite(mask: Mask) -> Mask:
    return Mask(mask.seed, not mask.added)
