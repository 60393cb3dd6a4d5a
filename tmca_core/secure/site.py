"""A site's half of the protocol: five answers, each of which checks what it rests on. Nothing here is kept between them.

Whoever calls these must answer a stage once, and in order (`client.secure` keeps a site to that, on its disk): a mask that served twice
gives the difference of two updates away, and two survivor sets give both a site's self-mask and its pairwise masks.
"""

from __future__ import annotations

import json
import secrets as os_randomness
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace

from tmca_core.errors import PolicyRefusal
from tmca_core.secure import shamir
from tmca_core.secure.fixed_point import Codes
from tmca_core.secure.keys import SIZE, Identity, Roster, derived, genuine, new_secret, public_of, seal, shared_key, sign, unseal
from tmca_core.secure.masking import Mask, apply
from tmca_core.secure.session import Advert, Book, Occasion, Shares, promise_of, stated


@dataclass(frozen=True)
class Secrets:
    """What a site keeps to itself during a session, and destroys after it.

    Attributes:
        sealing, masking: private X25519 keys.
        own: seed of the self-mask.
    """

    site: str
    sealing: bytes
    masking: bytes
    own: bytes

    def as_values(self) -> dict[str, str]:
        """JSON values, for the site's own disk."""
        return {key: value.hex() if isinstance(value, bytes) else value for key, value in asdict(self).items()}

    @classmethod
    def from_values(cls, values: Mapping[str, str]) -> Secrets:
        """The inverse."""
        return cls(values["site"], *(bytes.fromhex(values[key]) for key in ("sealing", "masking", "own")))


def announce(site: str, weight: int, occasion: Occasion, identity: Identity) -> tuple[Secrets, Advert]:
    """Stage `keys`: new secrets, each of the operating system's full entropy, and their public half, signed."""
    own = Secrets(site, new_secret(), new_secret(), os_randomness.token_bytes(SIZE))
    advert = Advert(site, weight, public_of(own.sealing), public_of(own.masking), promise_of(own.own))
    return own, replace(advert, signature=sign(identity, advert.statement(occasion)))


def deal(own: Secrets, book: Book, roster: Roster) -> dict[str, bytes]:
    """Stage `shares`: one sealed parcel for each site, itself included.

    Raises:
        PolicyRefusal: a site is unknown, a signature is not its own or of another occasion, this site's keys are not those it announced,
            or there are too few sites.
    """
    _check_book(own, book, roster)
    masking = shamir.split(own.masking, len(book.adverts), book.threshold)
    seed = shamir.split(own.own, len(book.adverts), book.threshold)
    parcels = {}
    for advert in book.adverts:
        place = book.places[advert.site] - 1
        content = json.dumps([hex(masking[place]), hex(seed[place])]).encode()
        key = shared_key(own.sealing, advert.sealing, book.digest, "parcel", own.site, advert.site)
        parcels[advert.site] = seal(key, content, _label(book, own.site, advert.site))
    return parcels


def open_parcels(own: Secrets, book: Book, parcels: Mapping[str, bytes]) -> Shares:
    """The shares that other sites dealt to this one; who dealt them is who takes part from here on.

    Raises:
        PolicyRefusal: a parcel is not from whom the server says, or there are too few.
    """
    _check_members("dealt shares", parcels, own.site, book, book.threshold, among=book.places)
    held: Shares = {}
    for dealer, parcel in parcels.items():
        key = shared_key(own.sealing, book[dealer].sealing, book.digest, "parcel", dealer, own.site)
        content = unseal(key, parcel, _label(book, dealer, own.site))
        if content is None:
            raise PolicyRefusal(f"the shares that the server hands on as those of site '{dealer}' are not from it, or not for this site.")
        masking, seed = (int(share, 16) for share in json.loads(content))
        held[dealer] = masking, seed
    return held


def masks(own: Secrets, book: Book, dealers: Collection[str]) -> list[Mask]:
    """y = x + PRG(b_u) + Σ_{v > u} PRG(s_uv) − Σ_{v < u} PRG(s_uv), over the sites that dealt shares (Bonawitz et al. 2017, fig. 4)."""
    others = [site for site in dealers if site != own.site]
    pairs = [pair_mask(own.masking, own.site, other, book) for other in others]
    return [self_mask(own.own, own.site, book), *pairs]


def mask(own: Secrets, book: Book, dealers: Collection[str], vector: Codes) -> None:
    """Stage `masked`: put all masks on a vector, in place."""
    apply(vector, masks(own, book, dealers))


def agree(own: Secrets, book: Book, dealers: Collection[str], survivors: Collection[str], identity: Identity, fewest: int) -> bytes:
    """Stage `agree`: sign whose updates are in the sum.

    Raises:
        PolicyRefusal: they are too few, or not among those that dealt shares, or this site's own is not there.
    """
    _check_survivors(own, book, dealers, survivors, fewest)
    return sign(identity, book.agreement(list(dealers), list(survivors)))


def reveal(
    own: Secrets, book: Book, held: Shares, survivors: Collection[str], signatures: Mapping[str, bytes], roster: Roster
) -> dict[str, int]:
    """Stage `unmask`: one share of each site that dealt: of a survivor's self-mask, of a drop-out's masking key; never both.

    Args:
        own: the site's secrets.
        book: of the session.
        held: shares that this site holds, by who dealt them.
        survivors: that this site signed.
        signatures: of the same set, by site.
        roster: whose signatures count.

    Raises:
        PolicyRefusal: fewer than t sites have signed this very set.
    """
    _check_survivors(own, book, held, survivors, roster.fewest)
    _check_members("signed the set of survivors", signatures, own.site, book, book.threshold, among=survivors)
    statement = book.agreement(list(held), list(survivors))
    for site, signature in signatures.items():
        if site not in roster.sites or not genuine(roster.sites[site], statement, signature):
            raise PolicyRefusal(
                f"site '{site}' has not signed the set of survivors and the weights that this site was shown: the server tells sites "
                "different sets or sends them different weights, and so it could unmask a single update. No share leaves."
            )
    return {dealer: seed if dealer in survivors else masking for dealer, (masking, seed) in held.items()}


def pair_mask(secret: bytes, site: str, other: str, book: Book) -> Mask:
    """The mask between two sites as the first applies it: added by who comes first in the order of names, taken away by the other."""
    first, second = sorted((site, other))
    return Mask(shared_key(secret, book[other].masking, book.digest, "pair", first, second), added=site == first)


def self_mask(seed: bytes, site: str, book: Book) -> Mask:
    """A site's own mask."""
    return Mask(derived(seed, book.digest, "self", site), added=True)


def _check_book(own: Secrets, book: Book, roster: Roster) -> None:
    for advert in book.adverts:
        known = roster.sites.get(advert.site)
        if known is None:
            raise PolicyRefusal(
                f"site '{advert.site}' is not in this hospital's roster, so nobody can say whose keys these are: add its public key to the "
                "roster, or leave the site out of the run."
            )
        if not genuine(known, advert.statement(book.occasion), advert.signature):
            raise PolicyRefusal(
                f"the keys of site '{advert.site}' are not signed by it for this run, round and session: they were changed or replayed on "
                "their way, or the roster holds another key of that site. Nothing is masked with them."
            )
    _check_members("announced keys", book.places, own.site, book, max(book.threshold, roster.fewest), among=book.places)
    mine = book[own.site]
    if (mine.sealing, mine.masking, mine.promise) != (public_of(own.sealing), public_of(own.masking), promise_of(own.own)):
        raise PolicyRefusal("the keys that the server hands on as this site's are not those it announced for this session.")
    if len({key for advert in book.adverts for key in (advert.sealing, advert.masking)}) < 2 * len(book.adverts):
        raise PolicyRefusal("two sites announced the same key.")


def _check_survivors(own: Secrets, book: Book, dealers: Collection[str], survivors: Collection[str], fewest: int) -> None:
    _check_members("are said to be in the sum", survivors, own.site, book, max(book.threshold, fewest), among=dealers)


def _check_members(what: str, sites: Collection[str], own: str, book: Book, fewest: int, among: Collection[str]) -> None:
    """Hold a set of sites against what it may be."""
    if strange := sorted(set(sites) - set(among)):
        raise PolicyRefusal(f"site '{strange[0]}' is named among those that {what}, and has no part in this session as this site knows it.")
    if len(set(sites)) != len(sites) or own not in sites:
        raise PolicyRefusal(f"the sites that {what} are named twice, or this site is not among them.")
    if len(sites) < fewest:
        raise PolicyRefusal(
            f"{len(sites)} of {len(book.adverts)} sites {what}; at least {fewest} are needed, or their sum would say too much of each."
        )


def _label(book: Book, dealer: str, holder: str) -> bytes:
    return stated("parcel", book.digest.hex(), dealer, holder)
