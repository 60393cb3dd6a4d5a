"""Shamir's shares: any t give the secret back, fewer say nothing, wrong ones are found."""

from __future__ import annotations

from fractions import Fraction
from secrets import randbelow

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.secure import shamir


@st.composite
def splits(draw: st.DrawFn) -> tuple[bytes, int, int, list[int]]:
    holders = draw(st.integers(1, 30))
    threshold = draw(st.integers(1, holders))
    chosen = draw(st.permutations(range(1, holders + 1)))
    return draw(st.binary(min_size=32, max_size=32)), holders, threshold, list(chosen)


@settings(max_examples=60, deadline=None)
@given(splits())
def test_any_t_shares_give_the_secret(case: tuple[bytes, int, int, list[int]]) -> None:
    secret, holders, threshold, order = case
    shares = shamir.split(secret, holders, threshold)
    assert shamir.join({place: shares[place - 1] for place in order[:threshold]}) == secret


def test_join_against_fractions() -> None:
    """f(x) = 5 + 3x − 2x² over the rationals has the values 6, 3, −4 at 1, 2, 3."""
    values = {1: 6, 2: 3, 3: -4}
    slow = sum(y * Fraction(1) * _product(Fraction(-k, j - k) for k in values if k != j) for j, y in values.items())
    assert slow == 5
    assert shamir.join({place: value % shamir.PRIME for place, value in values.items()}) == (5).to_bytes(32, "big")


def _product(factors: object) -> Fraction:
    total = Fraction(1)
    for factor in factors:  # type: ignore[attr-defined]
        total *= factor
    return total


def test_fewer_shares_fit_every_secret() -> None:
    """With t − 1 shares, for any other secret there is a polynomial through them: here the share that would make it so."""
    secret, other = bytes(range(32)), bytes(reversed(range(32)))
    shares = shamir.split(secret, 3, 3)
    seen = {1: shares[0], 2: shares[1]}
    through = {0: int.from_bytes(other, "big"), **seen}
    third = shamir._at(through, 3)
    assert shamir.join({**seen, 3: third}) == other
    assert shamir.join({**seen, 3: shares[2]}) == secret
    assert shamir.join(seen) != secret


def test_shares_are_drawn_anew() -> None:
    assert shamir.split(bytes(32), 3, 2) != shamir.split(bytes(32), 3, 2)
    assert shamir.split(bytes(32), 3, 1) == [0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), st.data())
def test_wrong_shares_are_found_while_t_right_ones_are_left(holders: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, holders))
    bad = data.draw(st.sets(st.integers(1, holders), max_size=min(3, holders - threshold)))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    shares = dict(enumerate(shamir.split(secret, holders, threshold), 1))
    shares |= {place: randbelow(shamir.PRIME) for place in bad}
    assert shamir.recover(shares, threshold, secret.__eq__) == (secret, sorted(bad))


def test_too_few_right_shares_give_nothing() -> None:
    secret = bytes(31) + b"\1"
    shares = dict(enumerate(shamir.split(secret, 4, 3), 1))
    assert shamir.recover({1: shares[1], 2: shares[2]}, 3, secret.__eq__) is None
    assert shamir.recover({**shares, 1: 7, 2: 8}, 3, secret.__eq__) is None


@pytest.mark.parametrize(("secret", "holders", "threshold"), [(bytes(31), 3, 2), (bytes(32), 3, 4), (bytes(32), 3, 0)])
def test_impossible_splits(secret: bytes, holders: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        shamir.split(secret, holders, threshold)
