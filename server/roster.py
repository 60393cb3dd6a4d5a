"""Who takes part: the hello of every node, the wait for enough sites, and the draw of a round's cohort."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from server.exchange import exchange, request
from tmca_core.config import Config
from tmca_core.errors import LEFT, PAUSED, FederationError, PolicyRefusal
from tmca_core.messages import PLACE, PLACES, QUERY, SETTINGS, Hello, part_of
from tmca_core.privacy.central import drawn_secretly
from tmca_core.privacy.randomness import SecureStream
from tmca_core.seeds import numpy_rng

log = logging.getLogger(__name__)

# A simulated node serves no more sites than this.
MOST_PLACES = 100_000
# Seconds that a deployed node has for its hello before it is asked again; where there are enough sites without it, that is after as long
# a pause, which doubles every time, so that a node that hangs costs little.
HELLO_SECONDS = 60.0
# Seconds until a deployed node whose site refuses is asked whether its hospital still does; they double up to the second figure, where
# there are enough sites without it.
REFUSED_SECONDS, LONGEST_REFUSED = 15.0, 240.0

OnRefusal = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Identity:
    """What every site must have in common with the server."""

    config: str
    network: str
    frozen: str
    code: str


@dataclass
class Roster:
    """Sites that said hello and fit, by name. Node ids are random in every run; names are not.

    Attributes:
        refused: told name, reason and kind of every hello that is none.
        deployed: every node is one site; else one may serve several.
        nodes: site → (node id, which of the sites that this node serves).
        known: names of all sites that have ever said hello in this run.
        refusing: sites whose policy refuses the run, and why.
        changed: told whenever nodes were looked after.
        run: the run's name for the sites; "": it has none yet.
    """

    identity: Identity
    config: Config
    refused: OnRefusal
    deployed: bool = False
    hellos: dict[str, Hello] = field(default_factory=dict)
    nodes: dict[str, tuple[int, int]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    refusing: dict[str, str] = field(default_factory=dict)
    changed: Callable[[], None] = lambda: None
    run: str = ""
    _asked: set[int] = field(default_factory=set)
    _silent: dict[int, tuple[float, float]] = field(default_factory=dict)  # node → (the moment to ask it again, the pause before that)
    _refused: dict[int, tuple[float, float, str]] = field(default_factory=dict)  # the same, of a site that refuses, and its name
    _aside: dict[str, str] = field(default_factory=dict)

    def gather(self, grid: Grid, settle: float) -> None:
        """Wait until `min_sites` sites can be trained on; at first also until every node that is there has answered or had its time.

        Args:
            grid: where the nodes are.
            settle: seconds without a new node after which no more are expected, at most `federation.wait`.

        Raises:
            FederationError: there are too few; the message says who answered what, and who was there before and is missing.
            PolicyRefusal: there would be enough without the sites whose policy refuses.
        """
        settings, start = self.config.federation, time.monotonic()
        problems: dict[str, str] = {}
        newest, first, waiting = start, not self.hellos, False
        while True:
            before = set(self._asked)
            left = max(start + settings.wait - time.monotonic(), 1e-3)
            enough = len(self.trainers()) >= settings.min_sites
            # A simulation's sites are all there, and may all be waited for; of hospitals' nodes one may hang.
            problems |= self.refresh(grid, min(left, HELLO_SECONDS) if enough or self.deployed else left, needed=not enough)
            now = time.monotonic()
            newest = now if self._asked - before else newest
            end = min(start + settings.wait, newest + settle)
            enough = len(self.trainers()) >= settings.min_sites
            if enough and (not first or now >= end or set(grid.get_node_ids()) <= self._asked):
                break
            if now >= end:
                refused = bool(self.refusing) and len(self.trainers()) + len(self.refusing) >= settings.min_sites
                raise (PolicyRefusal if refused else FederationError)(self._too_few(len(self._asked), problems))
            if not waiting and self.missing():
                log.warning("waiting up to %g s for %s.", settings.wait, ", ".join(self.missing()))
            waiting = True
            time.sleep(min(settings.poll, end - now))
        if first:
            log.info("%d sites: %s", len(self.hellos), ", ".join(sorted(self.hellos)))

    def missing(self) -> list[str]:
        """Names of sites that have said hello in this run and are not there now, sorted."""
        return sorted(self.known - self.hellos.keys())

    def refresh(self, grid: Grid, seconds: float, needed: bool) -> dict[str, str]:
        """Ask nodes that were not asked before, and forget nodes that have gone, so that they may come back; returns refusals by node.

        Nodes that did not answer are asked again: where they are `needed` at once, else after their pause.
        """
        present = set(grid.get_node_ids())
        for site in [site for site, (node, _) in self.nodes.items() if node not in present]:
            log.warning("site '%s' has left.", site)
            del self.nodes[site], self.hellos[site]
        for site, reason in self._aside.items():
            if place := self.nodes.pop(site, None):
                del self.hellos[site]
                self.refusing[site] = reason
                self._refused[place[0]] = time.monotonic() + REFUSED_SECONDS, REFUSED_SECONDS, site
        self._aside.clear()
        self._asked &= present  # a SuperNode that is started again may have the same id
        self._silent = {node: pause for node, pause in self._silent.items() if node in present}
        self._refused = {node: pause for node, pause in self._refused.items() if node in present}
        now = time.monotonic()
        due = {node for node, (moment, _) in self._silent.items() if needed or moment <= now}
        due |= {node for node, (at, pause, _) in self._refused.items() if now >= (at - pause + REFUSED_SECONDS if needed else at)}
        new = sorted(present - self._asked | due)
        self._asked |= present
        problems: dict[str, str] = {}
        asking = [(node, 0) for node in new]
        while asking:
            asking = self._ask(grid, asking, seconds, problems)
        self.known |= self.hellos.keys()
        self.changed()
        return problems

    def stand_aside(self, site: str, reason: str) -> None:
        """Of a site whose hospital has paused it or left: from the next gathering on it is no longer asked for its turn, but said hello to
        now and then, so that it may come back.
        """
        if self.deployed and any(word in reason for word in (PAUSED, LEFT)):
            self._aside[site] = reason

    def _ask(self, grid: Grid, asking: list[tuple[int, int]], seconds: float, problems: dict[str, str]) -> list[tuple[int, int]]:
        """Say hello to (node, place) pairs and note who answers; returns the further places of nodes that serve several sites."""
        addresses = {f"node {node}" + (f", site {place}" if place else ""): (node, place) for node, place in asking}
        said = {"config": self.identity.config, **({"run": self.run} if self.run else {})}
        messages = {name: request(QUERY, node, None, {**said, PLACE: place}, "0") for name, (node, place) in addresses.items()}
        further: list[tuple[int, int]] = []
        for answer in exchange(grid, messages, poll=self.config.federation.poll, seconds=seconds):
            node, place = addresses[answer.site]
            name, reason, kind = answer.site, answer.failure, answer.kind or "hello"
            if answer.content is not None:
                values: Mapping[str, Any] = part_of(answer.content, SETTINGS, ConfigRecord) or {}
                places = values.get(PLACES, 1)
                if self.deployed and places != 1:
                    reason = f"it says that it serves {places} sites: in a deployment a node is one site."
                elif places == 0:
                    log.info("node %d is one more than there are sites.", node)
                    continue
                try:
                    hello = Hello.from_values(values)
                    name = hello.site
                    if hello.refusal:
                        reason, kind = f"the site refuses: {hello.refusal}", "refusal"
                    reason = reason or self._mismatch(hello)
                    if not reason:
                        self.refusing.pop(name, None)  # its hospital has changed its mind
                        self.hellos[hello.site], self.nodes[hello.site] = hello, (node, place)
                except FederationError as error:
                    reason = reason or str(error)
                if not place and isinstance(places, int) and not self.deployed:
                    further += [(node, other) for other in range(1, min(places, MOST_PLACES))]
            same = self._still_refuses(node, name, reason, kind)
            silent = node in self._silent
            if answer.kind == "late":
                pause = 2 * self._silent[node][1] if silent else HELLO_SECONDS
                self._silent[node] = time.monotonic() + pause, pause
            else:
                self._silent.pop(node, None)
            if reason:
                problems[name] = reason
                if not same and not (silent and answer.kind == "late"):
                    self.refused(name, reason, kind)
        return further

    def _still_refuses(self, node: int, name: str, reason: str, kind: str) -> bool:
        """Note what a node's answer says of its site's refusal, and when to ask again; whether it says what was known."""
        _, pause, called = self._refused.pop(node, (0.0, 0.0, ""))
        same = bool(called) and kind == "refusal" and self.refusing.get(called) == reason
        if called and (not reason or kind == "refusal"):
            self.refusing.pop(called, None)
        if kind == "refusal":
            self.refusing[name] = reason
        if self.deployed and reason and (kind == "refusal" or called):
            pause = min(2 * pause, LONGEST_REFUSED) if same else REFUSED_SECONDS
            self._refused[node] = time.monotonic() + pause, pause, name if kind == "refusal" else called
        return same

    def trainers(self) -> list[str]:
        """Names of sites with something to train on, sorted."""
        return sorted(name for name, hello in self.hellos.items() if hello.weight(self.config.federation.weighting))

    def holders(self, split: str) -> list[str]:
        """Names of sites that have cases in `split`, or do not say, sorted."""
        return sorted(name for name in self.hellos if self.held(name, split) != 0)

    def held(self, site: str, split: str) -> int | None:
        """Cases that a site announced for `split`; None: its policy keeps their number."""
        cases: int | None = getattr(self.hellos[site], f"{split}_cases")
        return cases

    def cohort(self, round: int) -> list[str]:
        """The sites to ask in a round: all, or `federation.cohort` and `oversample` more, drawn by (seed, round) over the sorted names.

        Under central privacy, whose ε rests on nobody's knowing the draw, by the operating system's randomness instead.

        Of more than are needed those count that answer first: they are asked in the order drawn, or the first names would win.
        """
        names, settings = self.trainers(), self.config.federation
        size = settings.cohort + math.ceil(settings.cohort * settings.oversample - 1e-9)
        if not size or settings.cohort >= len(names):
            return names
        if self.config.central.enabled:
            return [names[i] for i in drawn_secretly(len(names), size, SecureStream())]
        drawn = numpy_rng(self.config.seed, "cohort", round).choice(len(names), size=min(size, len(names)), replace=False)
        return [names[i] for i in (drawn if size > settings.cohort else sorted(drawn))]

    def _mismatch(self, hello: Hello) -> str:
        if hello.site in self.hellos:
            return f"another node is already site '{hello.site}': give every node its own name."
        if hello.code != self.identity.code:
            return "it runs other code than the server (another version, or imported from another directory than the submitted app)."
        if hello.config != self.identity.config:
            return "its configuration differs from the server's: its settings must come from the run, not from a local file."
        if hello.network != self.identity.network:
            return "its network has other shared tensors than the server's."
        if hello.frozen != self.identity.frozen:
            return (
                "its frozen weights or text encoder differ from the server's: put the same weight files (network.start, "
                "network.image_weights) at both ends."
            )
        return ""

    def _too_few(self, connected: int, problems: dict[str, str]) -> str:
        settings = self.config.federation
        empty = sorted(set(self.hellos) - set(self.trainers()))
        by_reason: dict[str, list[str]] = {}
        for name, reason in problems.items():
            by_reason.setdefault(reason, []).append(name)
        return (
            f"{len(self.trainers())} sites can train, {settings.min_sites} are needed (federation.min_sites): "
            f"{connected} nodes connected; ready: {', '.join(self.trainers()) or 'none'}"
            + (f"; missing: {', '.join(self.missing())} (they took part before)" if self.missing() else "")
            + (f"; without training cases: {', '.join(empty)}" if empty else "")
            + "".join(f"; {', '.join(names)}: {reason}" for reason, names in by_reason.items())
            + f". Waited at most {settings.wait:g} s (federation.wait)."
        )
