"""What a round of secure aggregation is about: who takes part with which keys, on which weights, and what is signed. All of it is public.

| stage | the server sends | the site answers |
|---|---|---|
| keys | occasion | `Advert`: two public keys, the commitment to its self-mask, its weight; signed |
| shares | all adverts | shares of its two secrets, sealed to each site |
| masked (`train`) | who dealt shares, the shares for this site; the round's weights | its update, masked |
| agree | whose masked updates are in the sum | its signature under that |
| unmask | signatures of at least t sites | a share each: of the self-mask of sites in the sum, of the masking key of drop-outs |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from tmca_core.errors import PolicyRefusal
from tmca_core.secure.fixed_point import FixedPoint
from tmca_core.secure.keys import SIZE

PROTOCOL = "tmca-secure-aggregation/2"
KEYS, SHARES, AGREE, UNMASK = "keys", "shares", "agree", "unmask"
"""Stages that are messages of their own; the masked update is the answer to `train`."""

Shares = dict[str, tuple[int, int]]
"""By site: one share of its masking key and one of its self-mask's seed."""


@dataclass(frozen=True)
class Occasion:
    """One attempt at one round.

    Attributes:
        run, round: of the federation.
        session: 32 hexadecimal digits, new for every attempt.
    """

    run: str
    round: int
    session: str

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Occasion:
        """From what a message says.

        Raises:
            PolicyRefusal: it says something else.
        """
        run, round, session = (values.get(key) for key in ("run", "round", "session"))
        if not (isinstance(run, str) and isinstance(round, int) and isinstance(session, str) and len(session) == SIZE):
            raise PolicyRefusal("the server's message names no run, round and session of 32 digits: it is another version.")
        return cls(run, round, session)


@dataclass(frozen=True)
class Advert:
    """A site's public half of a session.

    Attributes:
        weight: with which its update goes into the sum.
        sealing, masking: X25519 keys: what is sealed to it, and what its pairwise masks are made of.
        promise: sha256 of the seed of its self-mask.
        signature: of all that, and of the occasion, by the site's own key.
    """

    site: str
    weight: int
    sealing: bytes
    masking: bytes
    promise: bytes
    signature: bytes = b""

    def statement(self, occasion: Occasion) -> bytes:
        """What is signed."""
        return stated("advert", asdict(occasion), {**self.as_values(), "signature": ""})

    def as_values(self) -> dict[str, Any]:
        """JSON values."""
        return {key: value.hex() if isinstance(value, bytes) else value for key, value in asdict(self).items()}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Advert:
        """The inverse.

        Raises:
            PolicyRefusal: it is none.
        """
        try:
            keys = {key: bytes.fromhex(values[key]) for key in ("sealing", "masking", "promise", "signature")}
            site, weight = values["site"], values["weight"]
        except (KeyError, TypeError, ValueError):
            raise PolicyRefusal("a site's keys cannot be read: it runs another version.") from None
        lengths = {len(keys[key]) for key in ("sealing", "masking", "promise")}
        if not (isinstance(site, str) and isinstance(weight, int) and not isinstance(weight, bool) and weight > 0 and lengths == {SIZE}):
            raise PolicyRefusal("a site's keys or its weight are none: it runs another version.")
        return cls(site, weight, **keys)


@dataclass(frozen=True)
class Book:
    """The adverts of all sites of a session.

    Attributes:
        adverts: by the sites' names.
        threshold: t: with so many sites' help a sum is opened, and with fewer nothing is.
        weights: digest of what the round's sites were sent to train on; "" before. Masks and signatures are bound to it: between sites that
            trained on different weights no mask cancels, so a server cannot have one real update beside others that it knows.
    """

    occasion: Occasion
    adverts: tuple[Advert, ...]
    threshold: int
    weights: str = ""

    @classmethod
    def of(cls, occasion: Occasion, adverts: Sequence[Advert], share: float) -> Book:
        """The book with t = ⌊share·n⌋ + 1.

        Two sets of t sites have at least 2t − n sites in common, more than (2·share − 1)·n: with a share of ½ one, and with ⅔ more than a
        third of them, so that a server and a third of the sites cannot have two survivor sets signed (Bonawitz et al. 2017, section 6.2).

        Raises:
            PolicyRefusal: two adverts are of one site.
        """
        ordered = tuple(sorted(adverts, key=lambda advert: advert.site))
        if len({advert.site for advert in ordered}) < len(ordered):
            raise PolicyRefusal("two of the keys that the server handed on are of one site.")
        return cls(occasion, ordered, min(len(ordered), math.floor(share * len(ordered) + 1e-9) + 1))

    @cached_property
    def digest(self) -> bytes:
        """sha256 of everything in it; what is sealed, signed and derived afterwards is bound to it."""
        return hashlib.sha256(stated("book", asdict(self.occasion), self.threshold, self.as_values(), self.weights)).digest()

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each site's share lies on the polynomials: 1, 2, …, in the order of names."""
        return {advert.site: place for place, advert in enumerate(self.adverts, 1)}

    def __getitem__(self, site: str) -> Advert:
        return self.adverts[self.places[site] - 1]

    def fixed_point(self, bits: int, bound: float) -> FixedPoint:
        """The grid of this session's sums."""
        return FixedPoint(bits, bound, len(self.adverts), sum(advert.weight for advert in self.adverts))

    def on(self, weights: str) -> Book:
        """The same from the masked stage on: with the digest of the weights that were received."""
        return replace(self, weights=weights)

    def as_values(self) -> list[dict[str, Any]]:
        """Its adverts as JSON values."""
        return [advert.as_values() for advert in self.adverts]

    def agreement(self, dealers: Sequence[str], survivors: Sequence[str]) -> bytes:
        """What the sites sign before they help to unmask: the book, the weights, who dealt shares, and whose updates are in the sum."""
        return stated("survivors", self.digest.hex(), sorted(dealers), sorted(survivors))


def stated(kind: str, *values: Any) -> bytes:
    """Values as the one text that is signed or hashed."""
    return f"{PROTOCOL}\n{kind}\n{json.dumps(values, sort_keys=True)}".encode()


def promise_of(seed: bytes) -> bytes:
    """Commitment to a self-mask's seed, which has full entropy: nothing can be read out of it."""
    return hashlib.sha256(stated("self-mask", seed.hex())).digest()


# --- on the wire ------------------------------------------------------------------------------------
def as_text(value: Any) -> str:
    """JSON, bytes by name as hexadecimal digits."""
    return json.dumps(value, default=bytes.hex)


def from_text(text: object) -> dict[str, Any]:
    """The JSON object in a message.

    Raises:
        PolicyRefusal: it is none.
    """
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PolicyRefusal("a message of secure aggregation cannot be read: the other end runs another version.")
    return value


def bytes_by_site(values: object) -> dict[str, bytes]:
    """Bytes by site from hexadecimal digits.

    Raises:
        PolicyRefusal: they are none.
    """
    try:
        return {str(site): bytes.fromhex(digits) for site, digits in values.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        raise PolicyRefusal("a message of secure aggregation holds no bytes by site: the other end runs another version.") from None
