"""What secure aggregation costs: the server's work on masked updates beside the plain fold of the same ones, and the sites' own."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer

from simulations.bench.interface import BENCHMARKS, Measurement, Repeats
from tmca_core.algorithms.fedavg import FedAvg
from tmca_core.compression.interface import Layout
from tmca_core.config import Config
from tmca_core.messages import Update, check_update, spec_of
from tmca_core.secure import site
from tmca_core.secure.fixed_point import Codes
from tmca_core.secure.keys import Identity, Roster, new_identity
from tmca_core.secure.recovery import MaskedSum, recover
from tmca_core.secure.session import Book, Occasion, Shares

TENSORS = 100
log = logging.getLogger(__name__)


@BENCHMARKS.register("secure")
def secure(
    megabytes: Annotated[int, typer.Option(help="Size of an update, MB.", min=1)] = 40,
    sites: Annotated[int, typer.Option(help="Sites of the round.", min=3)] = 10,
    repeats: Repeats = 5,
) -> Measurement:
    """Ratios of seconds to those of the plain fold, which checks the very same updates of all sites and adds them (FedAvg, float32).

    server: nobody leaves. server_dropouts: as many sites as may leave do so after they dealt shares, so that their pairwise masks are to be
    taken off too, which is the dearest case. all: the server and all sites together, one after the other, nobody leaving; in a
    deployment the sites work side by side. At the server are timed: the sum of masked updates, the recovery of seeds from shares, the
    removal of masks, decoding, the fold's step. At a site: keys and signatures, shares, the fixed point, its masks, its part in the
    unmasking. Training and transport are in none. All in one process with one thread; a repeat measures each once, in turn.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(megabytes, sites, repeats)
    finally:
        torch.set_num_threads(before)


def _measured(megabytes: int, sites: int, repeats: int) -> Measurement:
    count = megabytes * 10**6 // 4
    generator = torch.Generator().manual_seed(0)
    update = Update({f"{i:03d}": torch.randn(part, generator=generator) * 0.01 for i, part in enumerate(_parts(count))}, 1, {}, 1)
    weights = {name: torch.zeros_like(tensor) for name, tensor in update.tensors.items()}
    fold, rows = FedAvg(weights, Config()), dict[str, list[float]]()
    for repeat in range(repeats):
        log.info("%d of %d", repeat + 1, repeats)
        made = _masked([f"site-{i:02d}" for i in range(sites)], update)
        stays = list(made.masked)[sites - made.book.threshold :]
        took = {"server": 0.0, "server_dropouts": 0.0}
        for name, survivors in (("server", list(made.masked)), ("server_dropouts", stays)):
            revealed = made.unmask(survivors)
            took[name] = _open(made, survivors, revealed, fold, weights)
        took["plain"] = _plain([update] * sites, fold, weights)
        took["a_site"] = made.seconds / sites
        took["all"] = took["server"] + made.seconds
        for name, seconds in took.items():
            rows.setdefault(name, []).append(seconds)
    ratios = {
        name: statistics.median(a / b for a, b in zip(rows[name], rows["plain"], strict=True))
        for name in ("server", "server_dropouts", "all")
    }
    figures = {f"{name}.seconds": statistics.median(values) for name, values in rows.items()}
    return Measurement(ratios, {**figures, "dropouts": float(sites - len(stays))}, repeats)


@dataclass
class Masked:
    """A round in which every site has masked its update.

    Attributes:
        seconds: of all sites together, so far.
    """

    book: Book
    layout: Layout
    roster: Roster
    identities: dict[str, Identity]
    own: dict[str, site.Secrets]
    held: dict[str, Shares] = field(default_factory=dict)
    masked: dict[str, Codes] = field(default_factory=dict)
    seconds: float = 0.0

    def unmask(self, survivors: Sequence[str]) -> dict[str, dict[str, int]]:
        """The sites' part in opening the sum; only the first time is counted."""
        dealers = list(self.held)
        begin = time.perf_counter()
        fewest = self.roster.fewest
        signed = {name: site.agree(self.own[name], self.book, dealers, survivors, self.identities[name], fewest) for name in survivors}
        shares = {name: site.reveal(self.own[name], self.book, self.held[name], survivors, signed, self.roster) for name in survivors}
        if len(survivors) == len(dealers):
            self.seconds += time.perf_counter() - begin
        return shares


def _masked(names: Sequence[str], update: Update) -> Masked:
    """Sites that all have the same update, brought to where the server has their masked ones."""
    settings, occasion = Config().federation, Occasion("0", 1, "0" * 32)
    identities = {name: new_identity() for name in names}
    roster = Roster({name: key.public_key() for name, key in identities.items()})
    begin = time.perf_counter()
    announced = {name: site.announce(name, update.weight, occasion, identities[name]) for name in names}
    book = Book.of(occasion, [advert for _, advert in announced.values()], settings.secure_threshold)
    made = Masked(book, Layout.of(spec_of(update.tensors)), roster, identities, {name: secrets for name, (secrets, _) in announced.items()})
    parcels = {name: site.deal(made.own[name], book, roster) for name in names}
    grid = book.fixed_point(settings.secure_bits, settings.secure_range)
    for name in names:
        made.held[name] = site.open_parcels(made.own[name], book, {dealer: parcels[dealer][name] for dealer in names})
        flat, codes = made.layout.join(update.tensors), grid.zeros(made.layout.total)
        grid.encode(flat.numpy(), update.weight, codes)
        site.mask(made.own[name], book, names, codes)
        made.masked[name] = codes
    made.seconds = time.perf_counter() - begin
    return made


def _open(
    made: Masked, survivors: Sequence[str], revealed: dict[str, dict[str, int]], fold: FedAvg, weights: dict[str, torch.Tensor]
) -> float:
    """Seconds of the server, from masked updates and shares to the new weights."""
    settings = Config().federation
    begin = time.perf_counter()
    grid = made.book.fixed_point(settings.secure_bits, settings.secure_range)
    total = MaskedSum(grid, grid.zeros(made.layout.total))
    for name in survivors:
        total.add(name, made.masked[name])
    mean = torch.from_numpy(total.open(made.book, recover(made.book, list(made.held), survivors, revealed).masks))
    fold.add(Update(made.layout.split(mean), sum(made.book[name].weight for name in survivors), {}, 1))
    fold.finish(weights)
    return time.perf_counter() - begin


def _plain(updates: Sequence[Update], fold: FedAvg, weights: dict[str, torch.Tensor]) -> float:
    """Seconds of the server without masks."""
    spec, begin = spec_of(weights), time.perf_counter()
    for update in updates:
        check_update(update, spec, 1)
        fold.add(update)
    fold.finish(weights)
    return time.perf_counter() - begin


def _parts(count: int) -> list[int]:
    part = count // TENSORS
    return [part] * (TENSORS - 1) + [count - (TENSORS - 1) * part]
