"""One round of secure aggregation between made-up sites, any of which may leave at any stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tmca_core.secure import site
from tmca_core.secure.fixed_point import Codes, FixedPoint
from tmca_core.secure.keys import Identity, Roster, new_identity
from tmca_core.secure.recovery import MaskedSum, Recovered, recover
from tmca_core.secure.session import Advert, Book, Occasion, Shares

OCCASION = Occasion("a1b2", 3, "0123456789abcdef0123456789abcdef")


@lru_cache(maxsize=64)
def identity_of(name: str) -> Identity:
    return new_identity()


def roster_of(names: Sequence[str], fewest: int = 3) -> Roster:
    return Roster({name: identity_of(name).public_key() for name in names}, fewest)


@dataclass
class Round:
    """The honest course of a round, a stage at a time; tests change what passes in between.

    Attributes:
        values: each site's update. `weights`: its weight.
        trained_on: digest of the weights that a site was sent, where it is not "".
    """

    values: Mapping[str, NDArray[np.float32]]
    weights: Mapping[str, int]
    share: float = 2 / 3
    bits: int = 32
    bound: float = 1.0
    fewest: int = 3
    occasion: Occasion = OCCASION
    trained_on: Mapping[str, str] = field(default_factory=dict)
    own: dict[str, site.Secrets] = field(default_factory=dict)
    adverts: dict[str, Advert] = field(default_factory=dict)
    parcels: dict[str, dict[str, bytes]] = field(default_factory=dict)
    held: dict[str, Shares] = field(default_factory=dict)
    masked: dict[str, Codes] = field(default_factory=dict)

    @property
    def roster(self) -> Roster:
        return roster_of(sorted(self.values), self.fewest)

    def keys(self, without: Collection[str] = ()) -> Book:
        for name in self.values.keys() - set(without):
            self.own[name], self.adverts[name] = site.announce(name, self.weights[name], self.occasion, identity_of(name))
        self.book = Book.of(self.occasion, list(self.adverts.values()), self.share)
        return self.book

    def shares(self, without: Collection[str] = ()) -> list[str]:
        for name in self.adverts.keys() - set(without):
            self.parcels[name] = site.deal(self.own[name], self.book, self.roster)
        self.dealers = sorted(self.parcels)
        return self.dealers

    def book_of(self, name: str) -> Book:
        return self.book.on(self.trained_on.get(name, ""))

    @property
    def grid(self) -> FixedPoint:
        return self.book.fixed_point(self.bits, self.bound)

    def codes(self, name: str) -> Codes:
        out = self.grid.zeros(len(self.values[name]))
        self.grid.encode(self.values[name], self.weights[name], out)
        return out

    def mask(self, without: Collection[str] = ()) -> MaskedSum:
        count = len(next(iter(self.values.values())))
        self.total = MaskedSum(self.grid, self.grid.zeros(count))
        for name in self.dealers:
            self.held[name] = site.open_parcels(self.own[name], self.book, {dealer: self.parcels[dealer][name] for dealer in self.dealers})
            vector = self.codes(name)
            site.mask(self.own[name], self.book_of(name), self.dealers, vector)
            self.masked[name] = vector
            if name not in without:
                self.total.add(name, vector)
        return self.total

    def agree(self, survivors: Collection[str], without: Collection[str] = ()) -> dict[str, bytes]:
        return {
            name: site.agree(self.own[name], self.book_of(name), self.dealers, survivors, identity_of(name), self.fewest)
            for name in survivors
            if name not in without
        }

    def unmask(
        self, survivors: Collection[str], signatures: Mapping[str, bytes], without: Collection[str] = ()
    ) -> dict[str, dict[str, int]]:
        return {
            name: site.reveal(self.own[name], self.book_of(name), self.held[name], survivors, signatures, self.roster)
            for name in signatures
            if name not in without
        }

    def open(self, revealed: Mapping[str, Mapping[str, int]]) -> tuple[NDArray[np.float64], Recovered]:
        recovered = recover(self.book, self.dealers, self.total.sites, revealed)
        return self.total.open(self.book, recovered.masks), recovered


def plain_mean(round: Round, sites: Collection[str]) -> NDArray[np.float64]:
    """The oracle: Σ w x / Σ w in float64."""
    total = sum(round.weights[name] * round.values[name].astype(np.float64) for name in sorted(sites))
    mean: NDArray[np.float64] = total / sum(round.weights[name] for name in sites)  # type: ignore[operator]
    return mean


def some_round(count: int, seed: int, length: int = 50, **more: object) -> Round:
    draws = np.random.default_rng(seed)
    names = [f"site-{i:02d}" for i in range(count)]
    values = {name: draws.uniform(-1, 1, length).astype(np.float32) for name in names}
    return Round(values, {name: int(draws.integers(1, 500)) for name in names}, **more)  # type: ignore[arg-type]
