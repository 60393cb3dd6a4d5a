"""A training phase under secure aggregation: the server sees keys, sealed shares and masked updates, and at the end their sum.

Five stages, each a question to every site that answered the one before (`tmca_core.secure.session`). A site that leaves before its masked
update came is left out of the sum; one that leaves afterwards is in it. Fewer than t sites at any stage end the round, with nothing opened.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from flwr.app import ConfigRecord, RecordDict

from server.exchange import Answer, carried_bytes, packed
from server.turns import Turns, check_announced, hold_to_finite, lose, note_turn, read_reply
from tmca_core.compression.interface import FLOAT, Layout
from tmca_core.digests import tensors_digest
from tmca_core.errors import ConfigError, FederationError, PolicyRefusal, TmcaError, UpdateRejected
from tmca_core.messages import ARRAYS, MASKED, SECURE, SETTINGS, TRAIN, Update, check_update, part_of, unpack_update
from tmca_core.secure.keys import FEWEST
from tmca_core.secure.recovery import MaskedSum, recover
from tmca_core.secure.session import AGREE, KEYS, SHARES, UNMASK, Advert, Book, Occasion, as_text, bytes_by_site, from_text
from tmca_core.secure.shamir import PRIME

if TYPE_CHECKING:
    from server.rounds import Federation

T = TypeVar("T")

# What a scenario may do to a site whose update nobody sees: its data, or its presence.
POISONS = ("", "label-flip", "swap-reports", "raise")


@dataclass
class Session:
    """One attempt at one round.

    Attributes:
        carried: bytes up and down by site, since they were last counted.
        lost: why a site went no further, by site.
    """

    federation: Federation
    occasion: Occasion
    turns: Turns = field(default_factory=Turns)
    carried: dict[str, list[int]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, str | int]:
        """What every message says."""
        return asdict(self.occasion)

    def ask(self, stage: str, bodies: Mapping[str, Mapping[str, Any]], read: Callable[[str, dict[str, Any]], T]) -> dict[str, T]:
        """Put a stage's question to sites; answers by site, of those that gave one that can be read."""
        found: dict[str, T] = {}
        requests = {}
        for site, body in bodies.items():
            if site in self.federation.roster.nodes:
                settings = {**self.fields(), "stage": stage, "body": as_text(body)}
                requests[site] = self.federation.request(SECURE, site, None, settings, f"{self.occasion.round}-{stage}")
                self.count(site, 0, carried_bytes(requests[site].content))
        for answer in self.federation.ask(requests):
            if answer.content is None:
                self.lose(stage, answer)
                continue
            self.count(answer.site, carried_bytes(answer.content), 0)
            try:
                said = part_of(answer.content, SETTINGS, ConfigRecord) or ConfigRecord()
                found[answer.site] = read(answer.site, from_text(said.get("body")))
            except TmcaError as error:
                self.lose(stage, Answer(answer.site, None, str(error), "payload"))
        return found

    def lose(self, stage: str, answer: Answer) -> None:
        """Name a site that goes no further; one whose update is in the sum has done its turn."""
        self.lost[answer.site] = answer.failure
        if answer.site in self.turns.completed:
            self.federation.fault(stage, answer.site, answer.failure, answer.kind)
        else:
            lose(self.federation, self.turns, answer)

    def count(self, site: str, up: int, down: int) -> None:
        """Bytes of a message."""
        carried = self.carried.setdefault(site, [0, 0])
        carried[0] += up
        carried[1] += down

    def hold_to(self, number: int, needed: int, what: str) -> None:
        """Go on only with enough sites.

        Raises:
            FederationError: there are too few. `PolicyRefusal` where there would be enough without those that refuse.
        """
        needed = max(needed, self.federation.config.federation.min_sites)
        if number >= needed:
            return
        listed = "; ".join(f"{site}: {reason}" for site, reason in sorted(self.lost.items()))
        kind = PolicyRefusal if number + len(self.turns.refusing) >= needed else FederationError
        raise kind(
            f"round {self.occasion.round}: {number} sites {what}, {needed} are needed (federation.secure_threshold, federation.min_sites)"
            f"{': ' + listed if listed else ''}. Round {self.occasion.round - 1} is kept in {self.federation.run.folder}; put the sites "
            "right and repeat the command to go on from there."
        )


def secure_round(federation: Federation) -> Turns:
    """Train the cohort of a round, open the sum of its masked updates, and bring the weights to the round's end.

    The fold gets one update, the mean over the sites with their weight together: to a linear fold that is the same.

    Raises:
        FederationError: too few sites at some stage, shares that open nothing, or weights that are not finite.
        PolicyRefusal: there would be enough without the sites that refuse.
    """
    begin, settings, roster = time.perf_counter(), federation.config.federation, federation.roster
    session = Session(federation, Occasion(federation.progress.run, federation.round, secrets.token_hex(16)))
    cohort = [site for site in roster.cohort(federation.round) if site in roster.nodes]
    federation.fold.begin(sum(hello.weight(settings.weighting) for hello in roster.hellos.values()))
    adverts = session.ask(KEYS, {site: {} for site in cohort}, lambda site, body: _advert(federation, site, body))
    session.hold_to(len(adverts), FEWEST, "announced keys")
    book = Book.of(session.occasion, list(adverts.values()), settings.secure_threshold)
    parcels = session.ask(SHARES, {site: {"adverts": book.as_values()} for site in adverts}, lambda site, body: _parcels(book, body))
    session.hold_to(len(parcels), book.threshold, "dealt shares")
    book, total = _train(session, book, parcels)
    opening = time.perf_counter()
    survivors, dealers = sorted(total.sites), sorted(parcels)
    signatures = session.ask(AGREE, {site: {"survivors": survivors} for site in survivors}, lambda site, body: _signature(site, body))
    session.hold_to(len(signatures), book.threshold, "signed whose updates are in the sum")
    revealed = session.ask(UNMASK, {site: {"signatures": signatures} for site in signatures}, lambda site, body: _shares(dealers, body))
    session.hold_to(len(revealed), book.threshold, "helped to open the sum")
    asked = time.perf_counter() - opening
    recovered = recover(book, dealers, survivors, revealed)
    for site in sorted(recovered.wrong):
        federation.fault(UNMASK, site, "it sent a wrong share; enough others sent theirs.", "share")
    mean = torch.from_numpy(total.open(book, recovered.masks))
    layout = Layout.of(federation.algorithm.sent(federation.spec))
    weight = sum(book[site].weight for site in survivors)
    federation.fold.add(Update(layout.split(mean), weight, {}, federation.round))
    federation.settle()
    federation.fold.finish(federation.weights)
    hold_to_finite(federation, None)
    for up, down in session.carried.values():  # of the stages after a site's turn was counted, and of sites that were lost
        federation.progress.bytes_up += up
        federation.progress.bytes_down += down
    turns, wall = session.turns, time.perf_counter() - begin
    aggregation = turns.folding + time.perf_counter() - opening - asked
    federation.progress.add_seconds("training", turns.busy)
    federation.progress.add_seconds("communication", max(0.0, wall - aggregation - turns.busy))
    federation.progress.add_seconds("aggregation", aggregation)
    return turns


def refuse_insecure(federation: Federation) -> None:
    """Refuse settings that need single updates, which nobody sees.

    Raises:
        ConfigError: naming the setting and what to do.
    """
    config, settings = federation.config, federation.config.federation
    if not federation.fold.linear:
        raise ConfigError(
            f"federation.algorithm={settings.algorithm} looks at single updates, and with federation.secure there is only their sum: "
            "use one that needs the mean only, such as fedavg, fedavgm, fedadam, fedprox, fedbn or scaffold."
        )
    for name, (_, dtype) in federation.algorithm.sent(federation.spec).items():
        if dtype != FLOAT:
            raise ConfigError(
                f"the shared tensor '{name}' is {dtype}; federation.secure masks {FLOAT} only, and nothing travels without a mask."
            )
    why = {
        f"federation.max_norm_ratio={settings.max_norm_ratio:g}": (
            settings.max_norm_ratio != 0,
            "it compares the norms of single updates; set it to 0. What stays is the bound on every number, federation.secure_range",
        ),
        f"federation.contribution_every={settings.contribution_every}": (
            settings.contribution_every != 0,
            "a round without one of its sites would give that site's update away; set it to 0",
        ),
        f"federation.compression={settings.compression}": (
            settings.compression != "none",
            "masked numbers do not compress, and every site would have scales of its own; set it to none; federation.secure_bits=16 takes "
            "half the bytes",
        ),
        "federation.keep_replies=on": (settings.keep_replies == "on", "a masked update is worth nothing after its session; set it to auto"),
        f"federation.oversample={settings.oversample:g}": (
            settings.oversample != 0,
            "a sum is over a cohort that is known beforehand; set it to 0",
        ),
        "central.enabled=true": (
            config.central.enabled,
            "the server cannot clip what it does not see; choose one of the two. Noise at the sites (privacy.enabled) goes with both",
        ),
        f"scenario.poison={config.scenario.poison}": (
            config.scenario.poison not in POISONS,
            f"on its way a masked update can be made useless, but not poisoned; use {', '.join(POISONS[1:])}",
        ),
    }
    for setting, (wrong, reason) in why.items():
        if wrong:
            raise ConfigError(f"federation.secure does not go with {setting}: {reason}.")


def _train(session: Session, book: Book, parcels: Mapping[str, Mapping[str, bytes]]) -> tuple[Book, MaskedSum]:
    """Have the sites that dealt shares train, and add their masked updates as they come; with the book on the weights that were sent.

    Raises:
        FederationError: fewer than t came.
    """
    federation, turns = session.federation, session.turns
    settings = federation.config.federation
    sent = {**federation.weights, **federation.fold.broadcast()}
    arrays, counted = (
        packed(sent, federation.roster.deployed),
        {site: record["round"] for record in federation.progress.history for site in record["completed"]},
    )
    requests = {}
    for site in parcels:
        if site in federation.roster.nodes:
            body = as_text({"parcels": {dealer: dealt[site] for dealer, dealt in parcels.items()}})
            fields = {**session.fields(), "counted": counted.get(site, 0), "body": body}
            requests[site] = federation.request(TRAIN, site, arrays, fields, str(federation.round))
            session.count(site, 0, carried_bytes(requests[site].content))
    grid = book.fixed_point(settings.secure_bits, settings.secure_range)
    total = MaskedSum(grid, grid.zeros(Layout.of(federation.algorithm.sent(federation.spec)).total))
    for answer in federation.ask(requests):
        if answer.content is None:
            session.lose(TRAIN, answer)
            continue
        start = time.perf_counter()
        try:
            _add(session, total, answer, answer.content)
        except UpdateRejected as error:
            session.lose(TRAIN, Answer(answer.site, None, str(error), error.kind))
        turns.folding += time.perf_counter() - start
    session.hold_to(len(total.sites), book.threshold, "sent masked updates")
    return book.on(tensors_digest({ARRAYS: arrays})), total


def _add(session: Session, total: MaskedSum, answer: Answer, content: RecordDict) -> None:
    federation = session.federation
    reply = read_reply(federation, answer, content)
    update = unpack_update({}, reply.settings, reply.metrics, federation.config.privacy.enabled)
    check_update(update, {}, federation.round)
    check_announced(update, reply)
    vector = reply.tensors.get(MASKED)
    if reply.tensors.keys() != {MASKED} or vector is None or vector.dtype != torch.uint8 or vector.dim() != 1:
        raise UpdateRejected(
            f"the reply holds {', '.join(reply.tensors) or 'no tensor'}, expected one vector of bytes, '{MASKED}'.", "names"
        )
    if len(vector) % total.total.itemsize:
        raise UpdateRejected(f"the masked update has {len(vector)} bytes, which are no whole numbers of {total.grid.bits} bits.", "shape")
    total.add(answer.site, total.grid.received(vector.contiguous().numpy().data))
    session.count(answer.site, reply.bytes, 0)
    note_turn(federation, session.turns, reply, update, *session.carried.pop(answer.site))


# --- what sites answer, in which nothing is trusted ---------------------------------------------------
def _advert(federation: Federation, site: str, body: Mapping[str, Any]) -> Advert:
    advert, expected = Advert.from_values(body), federation.roster.hellos[site].weight(federation.config.federation.weighting)
    if advert.site != site or advert.weight != expected:
        raise UpdateRejected(
            f"it announces keys of '{advert.site}' with weight {advert.weight}, expected '{site}' with {expected}.", "weight"
        )
    return advert


def _parcels(book: Book, body: Mapping[str, Any]) -> dict[str, bytes]:
    parcels = bytes_by_site(body.get("parcels"))
    if parcels.keys() != book.places.keys():
        raise UpdateRejected("its shares are not one for each site.")
    return parcels


def _signature(site: str, body: Mapping[str, Any]) -> bytes:
    return bytes_by_site({site: body.get("signature")})[site]


def _shares(dealers: list[str], body: Mapping[str, Any]) -> dict[str, int]:
    shares = body.get("shares")
    try:
        found = {str(dealer): int(share, 16) for dealer, share in shares.items()}  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        raise UpdateRejected("its shares cannot be read.") from None
    if sorted(found) != dealers or not all(0 <= share < PRIME for share in found.values()):
        raise UpdateRejected("its shares are not one of each site that dealt, in the field.")
    return found
