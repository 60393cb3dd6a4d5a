"""Whole rounds: the sum is the plain sum whoever drops out, and what a server or a site may try against it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from masked_rounds import OCCASION, Round, identity_of, plain_mean, roster_of, some_round
from scipy import stats

from tmca_core.errors import FederationError, PolicyRefusal, UpdateRejected
from tmca_core.secure import site
from tmca_core.secure.fixed_point import FixedPoint
from tmca_core.secure.masking import Mask, apply
from tmca_core.secure.recovery import MaskedSum
from tmca_core.secure.session import Advert, Book


@st.composite
def courses(draw: st.DrawFn) -> tuple[int, int, int, dict[str, set[int]]]:
    """Sites, seed, bits, and who leaves at which stage: as many as may, or fewer."""
    count = draw(st.integers(3, 16))
    order = list(draw(st.permutations(range(count))))
    spare = count - (2 * count // 3 + 1)
    left: dict[str, set[int]] = {}
    taken = 0
    # Those who never announce keys are not counted in n.
    for stage in ("shares", "mask", "agree", "unmask"):
        number = draw(st.integers(0, spare - taken))
        left[stage] = set(order[taken : taken + number])
        taken += number
    return count, draw(st.integers(0, 2**32)), draw(st.sampled_from([16, 32])), left


def _all_at_once(count: int) -> tuple[int, int, int, dict[str, set[int]]]:
    """As many as may leave, a quarter of them at each stage."""
    gone = range(count - (2 * count // 3 + 1))
    return count, count, 32, {stage: set(gone[k::4]) for k, stage in enumerate(("shares", "mask", "agree", "unmask"))}


@settings(max_examples=20, deadline=None)
@given(courses())
@example(_all_at_once(50))
def test_the_sum_is_the_plain_sum_whoever_leaves_when(course: tuple[int, int, int, dict[str, set[int]]]) -> None:
    count, seed, bits, left = course
    gone = {stage: {f"site-{i:02d}" for i in numbers} for stage, numbers in left.items()}
    round = some_round(count, seed, bits=bits)
    round.keys()
    assert round.book.threshold == 2 * count // 3 + 1
    round.shares(gone["shares"])
    total = round.mask(gone["mask"])
    signatures = round.agree(total.sites, gone["agree"])
    mean, recovered = round.open(round.unmask(total.sites, signatures, gone["unmask"]))
    assert len(total.sites) == count - len(gone["shares"]) - len(gone["mask"])
    weight = sum(round.weights[name] for name in total.sites)
    off = np.abs(mean - plain_mean(round, total.sites)).max()
    assert off <= len(total.sites) / 2 * round.grid.step(weight) * (1 + 1e-6)
    assert recovered.wrong == set()


def test_one_more_drop_out_than_allowed_leaves_the_sum_masked() -> None:
    round = some_round(6, 1)  # t = 5
    round.keys()
    round.shares()
    total = round.mask()
    signatures = round.agree(total.sites)
    revealed = round.unmask(total.sites, signatures, without=["site-00", "site-01"])
    before = total.total.copy()
    with pytest.raises(FederationError, match=r"4 shares, and no 5 of them.*stays masked"):
        round.open(revealed)
    assert (total.total == before).all()
    with pytest.raises(PolicyRefusal, match="4 of 6 sites signed the set"):
        round.unmask(total.sites, {name: signatures[name] for name in total.sites[2:]})


def test_a_late_masked_update_stays_masked_although_its_masking_key_was_recovered() -> None:
    """Double masking: the server has the late site's pairwise masks, and its self-mask is still on (Bonawitz et al. 2017, section 4)."""
    round = some_round(6, 2, length=4096)
    late = "site-03"
    round.keys()
    round.shares()
    total = round.mask(without=[late])
    revealed = round.unmask(total.sites, round.agree(total.sites))
    mean, recovered = round.open(revealed)
    np.testing.assert_allclose(mean, plain_mean(round, total.sites), atol=1e-8)
    # Everything that the server now knows, applied to what came late.
    pairs = [site.pair_mask(round.own[late].masking, late, other, round.book) for other in round.book.places if other != late]
    guess = round.masked[late].copy()
    apply(guess, [Mask(mask.seed, not mask.added) for mask in pairs])
    assert (guess == round.codes(late)).mean() < 0.01
    assert abs(np.corrcoef(guess.view(np.int32).astype(float), round.values[late])[0, 1]) < 0.1
    apply(guess, [Mask(site.self_mask(round.own[late].own, late, round.book).seed, added=False)])
    assert (guess == round.codes(late)).all()  # with the self-mask's seed, which nobody revealed, it would be open
    assert all(late in given for given in revealed.values())
    seeds = [mask.seed for mask in recovered.masks]
    assert site.self_mask(round.own[late].own, late, round.book).seed not in seeds


@pytest.mark.parametrize("alone", [True, False])
def test_between_sites_that_trained_on_different_weights_no_mask_cancels(alone: bool) -> None:
    """The server sends one site the real weights and the others dead ones, from which nothing comes: their sum is that one's update.

    The others know nothing of it, agree among themselves and are enough to open every self-mask.
    """
    round, victim = some_round(6, 4, length=4096), "site-00"
    round.trained_on = {name: "real" if alone and name == victim else "dead" for name in round.values}
    round.values = {name: value if name == victim else np.zeros_like(value) for name, value in round.values.items()}
    round.keys()
    round.shares()
    total = round.mask()
    signatures = {name: signed for name, signed in round.agree(total.sites).items() if name != victim}
    assert len(round.unmask(total.sites, signatures)) == 5 == round.book.threshold
    left = [Mask(site.self_mask(round.own[name].own, name, round.book_of(name)).seed, added=False) for name in total.sites]
    opened = total.open(round.book, left)
    related = abs(np.corrcoef(opened, round.values[victim])[0, 1])
    assert related < 0.1 if alone else related > 0.99  # where all got the same it is their sum, which is what the server is for
    if alone:
        with pytest.raises(PolicyRefusal, match="has not signed the set of survivors and the weights"):
            round.unmask(total.sites, round.agree(total.sites))


@pytest.mark.parametrize("bits", [16, 32])
def test_a_single_masked_update_looks_random(bits: int) -> None:
    """Of constant updates, the worst case: chi-square over its bytes, Kolmogorov-Smirnov over its numbers, correlation with the update.

    Each test fails by chance once in a million runs; the same tests condemn the update without masks.
    """
    round = some_round(3, 5, bits=bits)
    round.values = {name: np.sin(np.arange(40_000) / 500).astype(np.float32) * 0.9 for name in round.values}
    round.keys()
    round.shares()
    round.mask()
    name = "site-01"
    for vector, random in ((round.masked[name], True), (round.codes(name), False)):
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        chi = stats.chisquare(counts).pvalue
        uniform = stats.kstest(vector.astype(np.float64) / 2**bits, "uniform").pvalue
        related = abs(np.corrcoef(vector.view(f"<i{bits // 8}").astype(np.float64), round.values[name])[0, 1])
        assert (chi > 1e-6) == (uniform > 1e-6) == (related < 5 / np.sqrt(40_000)) == random


def test_two_maskings_of_one_update_share_nothing() -> None:
    first, second = some_round(3, 5, length=20_000), some_round(3, 5, length=20_000)
    for round in (first, second):
        round.keys()
        round.shares()
        round.mask()
    assert (first.codes("site-00") == second.codes("site-00")).all()
    difference = (first.masked["site-00"] - second.masked["site-00"]).view(np.uint8)
    assert stats.chisquare(np.bincount(difference, minlength=256)).pvalue > 1e-6


# --- what is refused --------------------------------------------------------------------------------
def _announced(count: int = 4) -> Round:
    round = some_round(count, 3)
    round.keys()
    return round


def _with(round: Round, advert: Advert) -> Book:
    others = [other for other in round.book.adverts if other.site != advert.site]
    return Book.of(round.occasion, [*others, advert], round.share)


def test_a_tampered_advert_is_refused_whatever_was_changed() -> None:
    round = _announced()
    real = round.book["site-02"]
    mallory = site.announce("site-02", 5, OCCASION, identity_of("mallory"))[1]
    changed = [
        replace(real, signature=bytes([real.signature[0]]) + bytes(len(real.signature) - 1)),
        replace(real, masking=mallory.masking),
        replace(real, sealing=mallory.sealing),
        replace(real, promise=mallory.promise),
        replace(real, weight=real.weight + 1),
        replace(round.book["site-03"], site="site-02"),
        mallory,
    ]
    for advert in changed:
        with pytest.raises(PolicyRefusal, match="keys of site 'site-02' are not signed by it"):
            site.deal(round.own["site-00"], _with(round, advert), round.roster)
    site.deal(round.own["site-00"], _with(round, real), round.roster)


@pytest.mark.parametrize("change", [{"round": 4}, {"run": "ffff"}, {"session": "f" * 32}])
def test_an_advert_of_another_occasion_is_refused(change: dict[str, object]) -> None:
    old, new = _announced(), some_round(4, 3, occasion=replace(OCCASION, **change))  # type: ignore[arg-type]
    new.keys()
    with pytest.raises(PolicyRefusal, match="changed or replayed"):
        site.deal(new.own["site-00"], _with(new, old.book["site-01"]), new.roster)


def test_a_stranger_two_of_a_name_and_too_few_are_refused() -> None:
    round = _announced()
    known = roster_of(["site-00", "site-01", "site-02"])
    with pytest.raises(PolicyRefusal, match="'site-03' is not in this hospital's roster"):
        site.deal(round.own["site-00"], round.book, known)
    with pytest.raises(PolicyRefusal, match="two of the keys"):
        Book.of(OCCASION, [*round.book.adverts, round.book.adverts[0]], 2 / 3)
    two = Book.of(OCCASION, round.book.adverts[:2], 2 / 3)
    with pytest.raises(PolicyRefusal, match="2 of 2 sites announced keys; at least 3"):
        site.deal(round.own["site-00"], two, round.roster)
    with pytest.raises(PolicyRefusal, match="this site is not among them"):
        site.deal(round.own["site-00"], Book.of(OCCASION, round.book.adverts[1:], 2 / 3), round.roster)
    other = site.announce("site-00", round.weights["site-00"], OCCASION, identity_of("site-00"))[1]
    with pytest.raises(PolicyRefusal, match="not those it announced"):
        site.deal(round.own["site-00"], _with(round, other), round.roster)


def test_shares_are_sealed_to_one_site_from_one_site() -> None:
    round = _announced()
    round.shares()
    mine = {dealer: round.parcels[dealer]["site-00"] for dealer in round.dealers}
    assert len(site.open_parcels(round.own["site-00"], round.book, mine)) == 4
    for swapped in (
        {**mine, "site-01": round.parcels["site-02"]["site-00"]},  # from somebody else
        {**mine, "site-01": round.parcels["site-01"]["site-02"]},  # to somebody else
        {**mine, "site-01": mine["site-01"][:-1] + bytes([mine["site-01"][-1] ^ 1])},
        {**mine, "site-01": b""},
    ):
        with pytest.raises(PolicyRefusal, match="as those of site 'site-01'"):
            site.open_parcels(round.own["site-00"], round.book, swapped)
    with pytest.raises(PolicyRefusal, match="2 of 4 sites dealt shares; at least 3"):
        site.open_parcels(round.own["site-00"], round.book, {dealer: mine[dealer] for dealer in ("site-00", "site-01")})
    other = _announced()
    other.shares()
    with pytest.raises(PolicyRefusal, match="not from it, or not for this site"):
        site.open_parcels(round.own["site-00"], round.book, {**mine, "site-01": other.parcels["site-01"]["site-00"]})


def test_two_survivor_sets_open_nothing() -> None:
    """The server shows half of the sites a set with site-00 and the others one without it; with both it could open that site's update."""
    round = some_round(6, 4)
    round.keys()
    round.shares()
    total = round.mask()
    whole, without = total.sites, total.sites[1:]
    signatures = {**round.agree(whole), **{name: round.agree(without)[name] for name in total.sites[3:]}}
    for name in total.sites:
        shown = whole if name in total.sites[:3] else without
        with pytest.raises(PolicyRefusal, match="different sets"):
            site.reveal(round.own[name], round.book, round.held[name], shown, {k: signatures[k] for k in shown}, round.roster)
    # A site gives one share of each dealer, never both.
    given = round.unmask(without, round.agree(without))["site-01"]
    assert given.keys() == set(round.dealers)
    masking, seed = round.held["site-01"]["site-00"]
    assert given["site-00"] == masking != seed
    assert given["site-02"] == round.held["site-01"]["site-02"][1]


@pytest.mark.parametrize(
    ("survivors", "says"),
    [
        (["site-00", "site-01", "site-02", "site-02"], "named twice"),
        (["site-01", "site-02", "site-03"], "this site is not among them"),
        (["site-00", "site-01"], "at least 3 are needed"),
        (["site-00", "site-01", "site-02", "mallory"], "'mallory' is named among those"),
    ],
)
def test_a_site_signs_no_impossible_set(survivors: list[str], says: str) -> None:
    round = _announced()
    round.shares()
    with pytest.raises(PolicyRefusal, match=says):
        site.agree(round.own["site-00"], round.book, round.dealers, survivors, identity_of("site-00"), 3)


def test_a_hospital_may_ask_for_more_company_than_the_run() -> None:
    round = some_round(4, 3, share=0.5, fewest=4)
    round.keys()
    round.shares()
    with pytest.raises(PolicyRefusal, match="3 of 4 sites are said to be in the sum; at least 4"):
        round.agree(["site-00", "site-01", "site-02"])


def test_a_wrong_share_is_named_and_survived_and_too_many_are_not() -> None:
    round = some_round(7, 6)  # t = 5
    round.keys()
    round.shares()
    total = round.mask(without=["site-06"])
    revealed = round.unmask(total.sites, round.agree(total.sites))
    spoilt = {**revealed, "site-02": {dealer: share + 1 for dealer, share in revealed["site-02"].items()}}
    mean, recovered = round.open(spoilt)
    assert recovered.wrong == {"site-02"}
    np.testing.assert_allclose(mean, plain_mean(round, total.sites), atol=1e-8)
    spoilt["site-03"] = dict.fromkeys(spoilt["site-03"], 1)
    with pytest.raises(FederationError, match="sent wrong shares"):
        round.open(spoilt)


def test_a_site_beyond_the_range_says_so_itself() -> None:
    round = some_round(3, 7, bound=0.5)
    round.keys()
    with pytest.raises(UpdateRejected, match=r"at most 0\.5"):
        round.codes("site-00")


def test_what_is_no_masked_update_is_not_added() -> None:
    total = MaskedSum(FixedPoint(32, 1.0, 3, 3), np.zeros(4, "<u4"))
    total.add("ghent", np.ones(4, "<u4"))
    for wrong in (np.ones(5, "<u4"), np.ones(4, "<u2"), np.ones(4, "<i4")):
        with pytest.raises(UpdateRejected, match="expected"):
            total.add("iowa", wrong)  # type: ignore[arg-type]
    with pytest.raises(UpdateRejected, match="already"):
        total.add("ghent", np.ones(4, "<u4"))
    assert total.total.tolist() == [1, 1, 1, 1]


def test_keystream_against_aes_by_blocks() -> None:
    """The slow oracle: block i of the keystream is AES of the 128-bit number i."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    seed, count = bytes(range(32)), (1 << 16) + 21
    vector = np.arange(count, dtype="<u4")
    apply(vector, [Mask(seed, True), Mask(seed[::-1], True), Mask(seed[::-1], False)])
    cipher = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    blocks = cipher.update(b"".join(i.to_bytes(16, "big") for i in range(-(-count // 4))))
    assert (vector - np.arange(count, dtype="<u4") == np.frombuffer(blocks, "<u4", count)).all()


def test_no_seed_comes_twice() -> None:
    round = some_round(5, 8)
    round.keys()
    seeds = Counter(mask.seed for name in round.own for mask in site.masks(round.own[name], round.book, list(round.own)))
    # Each pair's is known to both; a self-mask's to its site alone.
    assert sorted(seeds.values()) == [1] * 5 + [2] * 10
