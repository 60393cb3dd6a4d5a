"""A secret in shares, of which any t give it back and any t − 1 say nothing (Shamir 1979), over the prime field of 2⁵²¹ − 1."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain

PRIME = 2**521 - 1
LENGTH = 32
"""Bytes of a secret."""
TRIES = 2000
"""Sets of shares that are tried where some are wrong: each takes well below a millisecond."""


def split(secret: bytes, holders: int, threshold: int) -> list[int]:
    """One share for each of the places 1 … holders: values there of a random polynomial of degree threshold − 1 that is the secret at 0.

    Args:
        secret: bytes, `LENGTH` of them.
        holders: n.
        threshold: t, from 1 to n.
    """
    if len(secret) != LENGTH or not 1 <= threshold <= holders < PRIME:
        raise ValueError(f"{len(secret)} bytes cannot be split into {holders} shares of which {threshold} are enough.")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, place) for place in range(1, holders + 1)]


def join(shares: Mapping[int, int]) -> bytes | None:
    """The secret of shares by place; None where what they give is none: one of them is wrong, or they are too few."""
    found = _at(shares, 0)
    return found.to_bytes(LENGTH, "big") if found >> (8 * LENGTH) == 0 else None


def recover(shares: Mapping[int, int], threshold: int, right: Callable[[bytes], bool]) -> tuple[bytes, list[int]] | None:
    """The secret although some shares may be wrong, as long as `threshold` of them are right.

    Args:
        shares: by place.
        threshold: t of the split.
        right: tells the secret from any other.

    Returns:
        (secret, places of shares that do not go with those that gave it: the wrong ones, unless liars agreed on theirs); None where no
        set of t shares that was tried gives it.
    """
    places = sorted(shares)
    if len(places) < threshold:
        return None
    draw = secrets.SystemRandom()
    others = (draw.sample(places, threshold) for _ in range(TRIES))
    for chosen in chain([places[:threshold]], others if len(places) > threshold else ()):
        taken = {place: shares[place] for place in chosen}
        secret = join(taken)
        if secret is not None and right(secret):
            return secret, [place for place in places if shares[place] != _at(taken, place)]
    return None


def _value(coefficients: Sequence[int], place: int) -> int:
    """The polynomial there, by Horner's rule."""
    total = 0
    for coefficient in reversed(coefficients):
        total = (total * place + coefficient) % PRIME
    return total


def _at(shares: Mapping[int, int], place: int) -> int:
    """Value of the polynomial through the shares, by Lagrange."""
    places = tuple(sorted(shares))
    return sum(factor * shares[other] for factor, other in zip(_factors(places, place), places, strict=True)) % PRIME


@lru_cache(maxsize=256)
def _factors(places: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Lagrange's factors: Π (at − k) / (j − k) over the other places k, for each place j."""
    found = []
    for j in places:
        above = below = 1
        for k in places:
            if k != j:
                above, below = above * (at - k) % PRIME, below * (j - k) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(found)
