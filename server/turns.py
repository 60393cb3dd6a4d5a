"""One training phase: a cohort is asked, every good reply is folded as it arrives, every other is named and counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from server.exchange import Answer, carried_bytes, packed
from server.private import local_steps
from server.received import Received, Reply, start_digest
from server.screening import FEWEST, mean_rate, screen, size_of
from tmca_core.errors import FederationError, PolicyRefusal, UpdateRejected
from tmca_core.messages import (
    ARRAYS,
    METRICS,
    SETTINGS,
    TRAIN,
    TRAIN_METRICS,
    WITHHELD,
    Update,
    check_update,
    finite,
    part_of,
    unpack_update,
)
from tmca_core.wire import tensors_of

if TYPE_CHECKING:
    from server.rounds import Federation


@dataclass
class Turns:
    """What a training phase has brought so far.

    Attributes:
        completed: sites whose update was folded. `failed`: the others' reasons; `refusing`: those of them whose policy refuses.
        surplus: asked and not needed.
        steps, busy: local steps and the sites' own seconds, summed over `completed`.
        folding: seconds that checking, keeping and folding kept the round waiting.
        held: replies, with updates and norms, that wait until there are enough to compare their sizes; before that nothing is folded.
    """

    completed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    refusing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    steps: float = 0.0
    busy: float = 0.0
    folding: float = 0.0
    held: list[tuple[Reply, Update, float]] = field(default_factory=list)


def train_round(federation: Federation, received: Received | None) -> Turns:
    """Train the cohort of a round, fold its updates and bring the weights to the round's end.

    Args:
        federation: at the start of its round.
        received: where good replies are kept until the round's checkpoint is written; those already there are folded first, and
            their sites not asked again. None: they are not kept.

    Raises:
        FederationError: fewer than `min_sites` usable updates; the weights are those of the round's start. Or what came of them is not
            finite, and must not be kept.
        PolicyRefusal: there would be enough without the sites whose policy refuses.
        StorageError: a reply could not be kept.
    """
    begin, settings, roster = time.perf_counter(), federation.config.federation, federation.roster
    drawn = roster.cohort(federation.round)
    sent = {**federation.weights, **federation.fold.broadcast()}
    cohort = _pinned(federation, received, drawn, start_digest(sent)) if received else drawn
    wanted = min(settings.cohort or len(cohort), len(cohort))
    arrays = packed(sent, roster.deployed)
    fields: dict[str, str | int] = {"round": federation.round, "run": federation.progress.run}
    counted = {site: record["round"] for record in federation.progress.history for site in record["completed"]}
    requests = {
        site: federation.request(TRAIN, site, arrays, {**fields, "counted": counted.get(site, 0)}, str(federation.round))
        for site in cohort
        if site in roster.nodes
    }
    down = carried_bytes(next(iter(requests.values())).content) if requests else 0
    turns = Turns()
    federation.folding.settle()
    federation.fold.begin(sum(hello.weight(settings.weighting) for hello in roster.hellos.values()))
    for reply in received.replies() if received else ():
        _take(federation, turns, reply, down, received, kept=True)
        requests.pop(reply.site, None)
    there = {*turns.completed, *turns.failed, *(reply.site for reply, _, _ in turns.held)}
    for site in cohort:
        if site not in requests and site not in there:
            lose(federation, turns, Answer(site, None, "it was asked before the server was started again, and is gone", "failed"))
    for answer in federation.ask(requests, enough=lambda: len(turns.completed) + len(turns.held) >= wanted):
        if answer.content is None:
            lose(federation, turns, answer)
            continue
        folded = time.perf_counter()
        try:
            reply = read_reply(federation, answer, answer.content)
        except UpdateRejected as error:
            lose(federation, turns, Answer(answer.site, None, str(error), error.kind))
        else:
            _take(federation, turns, reply, down, received)
        turns.folding += time.perf_counter() - folded
    _release(federation, turns, down, received)
    if not turns.completed or len(turns.completed) < settings.min_sites:
        enough = len(turns.completed) + len(turns.refusing) >= settings.min_sites
        raise (PolicyRefusal if enough else FederationError)(_too_few(federation, turns))
    wall, start = time.perf_counter() - begin, time.perf_counter()
    federation.settle()
    federation.folding.settle()
    federation.fold.finish(federation.weights)
    hold_to_finite(federation, received)
    federation.progress.add_seconds("training", turns.busy)
    federation.progress.add_seconds("communication", max(0.0, wall - turns.folding - turns.busy))
    federation.progress.add_seconds("aggregation", turns.folding + time.perf_counter() - start)
    return turns


def decoded(federation: Federation, reply: Reply) -> tuple[Update, float]:
    """The update that a reply carries, checked, and its norm.

    Raises:
        UpdateRejected: it cannot be folded.
    """
    spec = federation.algorithm.sent(federation.spec)
    tensors = federation.compression.decode(reply.tensors, spec)
    update = unpack_update(tensors, reply.settings, reply.metrics, federation.config.privacy.enabled)
    norm = check_update(update, spec, federation.round)
    check_announced(update, reply)
    return update, norm


def check_announced(update: Update, reply: Reply) -> None:
    """Hold an update to what its site announced.

    Raises:
        UpdateRejected: another number of steps, or another weight.
    """
    if (steps := update.metrics["steps"]) != reply.steps:
        raise UpdateRejected(f"it is of {steps:g} steps, but the cases that the site announced take {reply.steps} steps.", "metrics")
    if update.weight != reply.weight:
        raise UpdateRejected(f"its weight is {update.weight}, but it announced {reply.weight}.", "weight")


def read_reply(federation: Federation, answer: Answer, content: RecordDict) -> Reply:
    """A reply that can be read; what it says is checked later."""
    arrays, metrics = part_of(content, ARRAYS, ArrayRecord), part_of(content, METRICS, MetricRecord)
    settings = part_of(content, SETTINGS, ConfigRecord) or ConfigRecord()
    if arrays is None or metrics is None:
        raise UpdateRejected(f"the reply holds no '{ARRAYS if arrays is None else METRICS}'.", "names")
    hello = federation.roster.hellos[answer.site]
    return Reply(
        site=answer.site,
        tensors=tensors_of(arrays),
        settings={key: value for key, value in settings.items() if key in ("round", "weight", WITHHELD)},
        metrics={key: value for key, value in metrics.items() if key in TRAIN_METRICS},
        bytes=carried_bytes(content),
        seconds=answer.seconds,
        weight=hello.weight(federation.config.federation.weighting),
        steps=local_steps(hello, federation.config),
    )


def _pinned(federation: Federation, received: Received, drawn: list[str], start: str) -> list[str]:
    """The cohort: the one of before a crash as long as enough of it can still come together."""
    cohort, kept = received.cohort(drawn, start), received.sites()
    gone = [site for site in cohort if site not in federation.roster.nodes and site not in kept]
    if not gone or len({*cohort, *kept} - {*gone}) >= max(1, federation.config.federation.min_sites):
        return cohort
    federation.note(
        f"round {federation.round}: {', '.join(gone)} {'was' if len(gone) == 1 else 'were'} asked before the server was started again and "
        "not there now; without them there are too few sites, so the cohort is drawn anew. Replies that are kept still count."
    )
    return received.pin([*kept, *(site for site in drawn if site not in kept)], start)


def _take(federation: Federation, turns: Turns, reply: Reply, down: int, received: Received | None, kept: bool = False) -> None:
    """Check, keep (unless it is kept) and fold one reply; one of the first of a run waits for others to be compared with."""
    norms, ratio = federation.progress.norms, federation.config.federation.max_norm_ratio
    early = bool(ratio) and len(norms) < FEWEST
    try:
        update, norm = decoded(federation, reply)
        if not early:
            screen(norm, reply.steps, norms, ratio, rate=_rate(federation, reply))
    except UpdateRejected as error:
        _refuse(federation, turns, reply, error, received)
        return
    if received and not kept:
        received.write(reply)
    if not early:
        _fold(federation, turns, reply, update, down)
        return
    turns.held.append((reply, update, norm))
    if len(turns.held) >= FEWEST:
        _release(federation, turns, down, received)


def _release(federation: Federation, turns: Turns, down: int, received: Received | None) -> None:
    """Fold the replies that were held, but those too large among them: of one round, for the warm-up makes the first rounds' small.

    Fewer than three are compared with those before, as any other.
    """
    norms, held = federation.progress.norms, turns.held
    turns.held = []
    sizes = [size_of(norm, reply.steps, _rate(federation, reply)) for reply, _, norm in held] if len(held) >= FEWEST else None
    for reply, update, norm in held:
        try:
            ratio = federation.config.federation.max_norm_ratio
            screen(norm, reply.steps, norms, ratio, among=sizes, rate=_rate(federation, reply))
        except UpdateRejected as error:
            _refuse(federation, turns, reply, error, received)
        else:
            _fold(federation, turns, reply, update, down)


def _rate(federation: Federation, reply: Reply) -> float:
    return mean_rate(federation.config, federation.round, reply.steps)


def _refuse(federation: Federation, turns: Turns, reply: Reply, error: UpdateRejected, received: Received | None) -> None:
    """What is refused is not kept."""
    lose(federation, turns, Answer(reply.site, None, str(error), error.kind))
    if received:
        received.drop(reply.site)


def _fold(federation: Federation, turns: Turns, reply: Reply, update: Update, down: int) -> None:
    federation.folding.add(update)
    note_turn(federation, turns, reply, update, reply.bytes, down)


def note_turn(federation: Federation, turns: Turns, reply: Reply, update: Update, up: int, down: int) -> None:
    """A site has done its turn: count it, and say so."""
    # No site has worked longer than was waited for it.
    seconds = min(update.metrics.get("seconds", reply.seconds), reply.seconds)
    turns.completed.append(reply.site)
    turns.steps += reply.steps
    turns.busy += seconds
    federation.progress.count(reply.site, up, down, reply.seconds)
    federation.emit(
        "site_train",
        round=federation.round,
        site=reply.site,
        loss=update.metrics.get("loss"),
        seconds=seconds if "seconds" in update.metrics else None,
        bytes_up=up,
        bytes_down=down,
    )


def hold_to_finite(federation: Federation, received: Received | None) -> None:
    """Stop before weights that overflowed are kept.

    Raises:
        FederationError: naming the first tensor of the weights or of the fold's state that is not finite.
    """
    for name, tensor in {**federation.weights, **federation.fold.state()}.items():
        if not finite(tensor):
            if received:
                received.discard()
            raise FederationError(
                f"round {federation.round}: tensor '{name}' is not finite after the updates were folded, each of which was. Round "
                f"{federation.round - 1} is kept in {federation.run.folder}; see which site's updates are huge (federation.max_norm_ratio "
                "bounds them) and repeat the command to go on from there."
            )


def lose(federation: Federation, turns: Turns, answer: Answer) -> None:
    """Name a site that has no part in the round, or an answer that has none."""
    if answer.kind == "surplus":
        turns.surplus.append(answer.site)
        return
    if answer.kind != "duplicate":
        turns.failed[answer.site] = answer.failure
    if answer.kind == "refusal":
        turns.refusing.append(answer.site)
    federation.fault("train", answer.site, answer.failure, answer.kind)


def _too_few(federation: Federation, turns: Turns) -> str:
    reasons: Mapping[str, str] = dict(sorted(turns.failed.items()))
    listed = "; ".join(f"{site}: {reason}" for site, reason in reasons.items())
    return (
        f"round {federation.round}: {len(turns.completed)} usable updates, {max(1, federation.config.federation.min_sites)} are needed "
        f"(federation.min_sites){': ' + listed if listed else '; no site has training cases'}. Round {federation.round - 1} is kept in "
        f"{federation.run.folder}; put the sites right and repeat the command to go on from there."
    )
