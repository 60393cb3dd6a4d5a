"""The federation from the first hello to run.json: train a round, fold, validate, checkpoint, again; then test.

Repeating a command goes on from the last checkpoint. What is drawn in a round is a function of (seed, round) and of names,
so a round done twice, before and after a crash, gives the same weights; in metrics.jsonl its later events replace the earlier.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from server.best import best_round, stalled
from server.central import CentralFold, announce, refuse_uncentral
from server.contribution import Before, contributions
from server.exchange import Answer, Unawaited, exchange, packed, request
from server.fairness import fairness, interval, mean_dice, site_dice
from server.folding import Folding
from server.private import note_asked, note_refusal
from server.progress import Progress
from server.received import Received, clear
from server.roster import Identity, Roster
from server.secure import refuse_insecure, secure_round
from server.summaries import read_summary
from server.turns import Turns, train_round
from server.witness import Witness
from tmca_core.algorithms import ALGORITHMS
from tmca_core.compression import COMPRESSIONS
from tmca_core.config import Config
from tmca_core.digests import source_digest
from tmca_core.errors import ConfigError, FederationError, StorageError
from tmca_core.messages import EVALUATE, PLACE, TRAIN, spec_digest, spec_of
from tmca_core.networks import build_network, frozen_digest, roles, shared_state
from tmca_core.run import Checkpoint, Run
from tmca_core.training.scores import SiteSummary

log = logging.getLogger(__name__)

OnEvent = Callable[[Mapping[str, Any]], None]

ARM = "federated"
# Checkpoints of every round are kept as long as they fit in this; beyond it, the newest three.
KEEP_ALL_BYTES = 2 * 1024**3


class Federation:
    """One run's global weights and everything that happens to them.

    Attributes:
        weights: shared tensors, references into `network`, updated in place.
        average: exponential average of `weights` (`training.ema`), what is evaluated and kept; None where it is off.
        keep_replies: good replies are on disk until their round's checkpoint is.
    """

    def __init__(self, grid: Grid, config: Config, run: Run, on_event: OnEvent | None = None, *, deployed: bool = False) -> None:
        self.grid, self.config, self.run, self.on_event = grid, config, run, on_event
        self.network = build_network(config)
        self.weights = shared_state(self.network)
        self.spec = spec_of(self.weights)
        self.algorithm = ALGORITHMS[config.federation.algorithm]
        self.fold = self.algorithm.fold(self.weights, config)
        self.compression = COMPRESSIONS[config.federation.compression](config)
        keep = config.federation.keep_replies
        # Kept replies would come back into a second release of their round, which is accounted as a draw of its own.
        self.keep_replies = keep == "on" or (keep == "auto" and deployed and not config.central.enabled)
        self.average: dict[str, Tensor] | None = None
        if config.training.ema:
            self.average = {name: tensor.clone() for name, tensor in self.weights.items()}
        self._refuse_what_cannot_be()
        if config.central.enabled:
            self.fold = CentralFold(self.fold, self.weights, config, run)
        self.folding = Folding(self.fold)
        code = source_digest(Path(__file__).parents[1])
        identity = Identity(config.digest(), spec_digest(self.spec), frozen_digest(self.network), code)
        self.roster = Roster(identity, config, lambda site, reason, kind: self.fault("hello", site, reason, kind), deployed)
        self.roster.changed = self._tell_roster
        self.witness: Witness | None = None
        self.unawaited = Unawaited(self._came_late)
        self.progress = Progress.new()
        self.round = 0
        self._settle = 0.0
        self._said = False
        self._told: dict[str, Any] = {}
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    # --- the whole ------------------------------------------------------------------------------
    def start(self, settle: float) -> None:
        """Resume from the last checkpoint, or write that of round 0, and gather the sites.

        Args:
            settle: seconds without a new node after which no more are expected, at most `federation.wait`.

        Raises:
            FederationError: too few sites, or a checkpoint of another network.
            WeightsError: the checkpoint is damaged, or of another version.
        """
        self._settle = settle
        if last := self.run.last_checkpoint():
            self._restore(last)
        self.roster.run = self.progress.run
        if self.roster.deployed:
            identity = self.roster.identity
            self.witness = Witness(self.run, self.progress.run, identity.config, identity.code, self.round)
        clear(self.run, self.round, beyond=self.round + 1 if last else 0)
        self._gather()
        if self.config.central.enabled:
            announce(self)
        if not last:
            self._checkpoint()
            self.settle()

    def train(self) -> None:
        """Rounds up to `federation.rounds`, or until the rule for stopping early ends them, each checkpointed.

        Raises:
            FederationError: too few sites, or too few usable updates.
            PolicyRefusal: the sites' policies leave too few.
            StorageError: the disk is full or not writable.
        """
        try:
            self._rounds()
        finally:
            self.settle()

    def _rounds(self) -> None:
        settings, history = self.config.federation, self.progress.history
        while self.round < settings.rounds:
            if stalled(history, settings.patience, settings.min_gain):
                self.note(
                    f"round {self.round}: {settings.patience} rounds without a gain above {settings.min_gain:g} Dice; training stops."
                )
                break
            begin = time.perf_counter()
            self.round += 1
            self._gather()
            measured = bool(settings.contribution_every) and self.round % settings.contribution_every == 0
            before = Before.of(self) if measured else None
            received = Received(self.run, self.round) if self.keep_replies or before else None
            turns = secure_round(self) if settings.secure else train_round(self, received)
            self._average(round(turns.steps / len(turns.completed)))
            found: dict[str, SiteSummary] = {}
            if self.round % self.config.evaluation.every == 0 or self.round == settings.rounds:
                found = self.evaluate("val")
                self._miss(found)
            if before and received:
                self._contribution(contributions(self, before, received))
            self._finish_round(turns, found, time.perf_counter() - begin)

    def _miss(self, found: Mapping[str, SiteSummary]) -> None:
        """Say once that what goes by validation Dice has nothing to go by, because the sites keep it."""
        settings = self.config.federation
        blind = {"patience": settings.patience, "select=best": settings.select == "best", "contribution_every": settings.contribution_every}
        named = ", ".join(f"federation.{name}" for name, used in blind.items() if used)
        if named and found and mean_dice(found) is None and not self._said:
            self._said = True
            self.note(f"round {self.round}: every site's policy withholds its validation Dice, so {named} can decide nothing.")

    def choose(self) -> None:
        """Take up the weights of the best round where `federation.select` says so."""
        best = best_round(self.progress.history)
        if self.config.federation.select == "best" and best is not None and best != self.round:
            self._take_up(self.run.checkpoint(best))

    def evaluate(self, split: str) -> dict[str, SiteSummary]:
        """Aggregates of every site that has cases in `split`; a site that fails is named and left out."""
        begin = time.perf_counter()
        found = self.assess(self.average or self.weights, split, "site_eval" if split == "val" else "site_test")
        self.progress.add_seconds("evaluation", time.perf_counter() - begin)
        return found

    def assess(self, weights: Mapping[str, Tensor], split: str, event: str = "") -> dict[str, SiteSummary]:
        """The sites' aggregates of any weights, each announced as an `event` where one is named."""
        arrays, targets = packed(weights, self.roster.deployed), len(self.config.data.target_names)
        fields: dict[str, str | int] = {"round": self.round, "split": split, "run": self.progress.run}
        holders = self.roster.holders(split)
        requests = {site: self.request(EVALUATE, site, arrays, fields, f"{self.round}-{split}") for site in holders}
        if event:
            self.emit("asked", round=self.round, phase=split, sites=holders)
        found: dict[str, SiteSummary] = {}
        for answer in self.ask(requests):
            summary: SiteSummary = {}
            reason = answer.failure
            if answer.content is not None:
                summary, reason = read_summary(answer.content, self.roster.held(answer.site, split), targets)
            if reason:
                self.fault(split, answer.site, reason, answer.kind or "figures")
                continue
            found[answer.site] = summary
            if event:
                loss = summary["loss_sum"] / summary["loss_cases"] if summary.get("loss_cases") else summary.get("loss")
                dice, cases = summary.get("dice_image"), int(summary["cases"]) if "cases" in summary else None
                self.emit(event, round=self.round, site=answer.site, dice_image=dice, ci95=interval(summary), loss=loss, cases=cases)
        return found

    def request(self, kind: str, site: str, arrays: ArrayRecord | None, settings: Mapping[str, str | int], group: str) -> Message:
        """A message to a site that is there."""
        node, place = self.roster.nodes[site]
        return request(kind, node, arrays, {**settings, PLACE: place}, group)

    def ask(self, requests: Mapping[str, Message], enough: Callable[[], bool] = lambda: False) -> Iterator[Answer]:
        """Send a request to each site and yield the answers as they come (`exchange`)."""
        settings = self.config.federation
        training = any(message.metadata.message_type == TRAIN for message in requests.values())
        if training:
            if self.config.privacy.enabled:
                note_asked(self.run, self.config, self.round, requests)
            self.emit("asked", round=self.round, phase="train", sites=sorted(requests))
        answers = exchange(
            self.grid,
            requests,
            poll=settings.poll,
            seconds=settings.deadline,
            unawaited=self.unawaited,
            round=self.round,
            enough=enough,
        )
        watched = self.witness.watch(requests, self.round, answers) if self.witness else answers
        return (self._heed(answer, training) for answer in watched)

    def _heed(self, answer: Answer, training: bool) -> Answer:
        if answer.kind == "refusal":
            self.roster.stand_aside(answer.site, answer.failure)
            if training and self.config.privacy.enabled:
                note_refusal(self.run, self.config, answer.site)
        return answer

    # --- one round ------------------------------------------------------------------------------
    def _gather(self) -> None:
        before = self.roster.missing()
        self.roster.gather(self.grid, self._settle)
        if (missing := self.roster.missing()) and missing != before:
            self.note(f"round {self.round}: going on without {', '.join(missing)}, which took part before.")
        self.progress.describe(self.roster.hellos.values())

    def _tell_roster(self) -> None:
        """Say who is there, who is missing and who refuses, where that has changed."""
        roster = self.roster
        told = {"present": sorted(roster.hellos), "missing": roster.missing(), "refusing": dict(sorted(roster.refusing.items()))}
        if told != self._told:
            self._told = told
            self.emit("sites", round=self.round, **told)

    def _finish_round(self, turns: Turns, found: Mapping[str, SiteSummary], seconds: float) -> None:
        """The round's record and its checkpoint."""
        record = {
            "round": self.round,
            "dice_image": mean_dice(found),
            "seconds": seconds,
            "completed": sorted(turns.completed),
            "failed": dict(sorted(turns.failed.items())),
            "surplus": sorted(turns.surplus),
            "refused": sorted(turns.refusing),
            **fairness(site_dice(found)),
        }
        self.progress.history.append(record)
        self._checkpoint()
        self.emit("round", **record)

    def _average(self, steps: int) -> None:
        """average ← D·average + (1−D)·weights with D = Π min(ema, s/(s+10)) over the round's mean local steps s.

        That is what a step-wise average with the same rising decay would forget in one round, so that `training.ema`
        means the same with and without a federation.
        """
        before = self.progress.steps
        self.progress.steps = before + steps
        if self.average is None:
            return
        decay = math.prod(min(self.config.training.ema, s / (s + 10)) for s in range(before + 1, before + steps + 1))
        for name, tensor in self.average.items():
            tensor.lerp_(self.weights[name], 1 - decay)

    def _contribution(self, gains: Mapping[str, float]) -> None:
        for site, gain in gains.items():
            self.progress.contribution.setdefault(site, []).append(gain)
        self.emit("contribution", round=self.round, gains=dict(gains))

    def _came_late(self, site: str, round: int, kind: str, seconds: float) -> None:
        if kind == "late":
            self.progress.late.setdefault(site, []).append(seconds)
            said = "round %d: the answer of site '%s' came %.1f s too late and is discarded."
            log.warning(said, round, site, seconds, extra=self._about(site))
        self.emit("discarded", round=round, site=site, kind=kind, seconds=seconds)

    def _refuse_what_cannot_be(self) -> None:
        own = "personal" in roles(self.network).values() or self.algorithm.local(self.config).twin is not None
        if self.config.federation.select == "best" and own:
            raise ConfigError(
                "federation.select=best takes the shared tensors of an earlier round, but sites keep their own tensors of the last "
                "three rounds only: use select=last, or an algorithm without personal tensors."
            )
        if self.config.federation.secure:
            refuse_insecure(self)
        if self.config.central.enabled:
            refuse_uncentral(self)
        if self.config.privacy.enabled:
            from tmca_core.privacy.training import refuse_uncovered

            refuse_uncovered(self.network, self.config)
        if self.compression.sparse and not self.algorithm.sparse:
            chosen = self.config.federation
            raise ConfigError(
                f"federation.algorithm={chosen.algorithm} compares the updates, and those of federation.compression={chosen.compression} "
                "are zero nearly everywhere, each elsewhere: use int8 or int4, or another algorithm."
            )

    # --- records --------------------------------------------------------------------------------
    def emit(self, event: str, **values: Any) -> None:
        """Log an event, and hand it to the live table."""
        fields = {"arm": ARM, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}
        self.run.log(event, **fields)
        if self.on_event:
            self.on_event({"event": event, **fields})

    def note(self, text: str) -> None:
        """Say something that is no fault of a site."""
        log.warning(text, extra=self._about())
        self.emit("note", round=self.round, text=text)

    def _about(self, site: str = "") -> dict[str, Any]:
        return {"run": self.progress.run, "round": self.round, **({"site": site} if site else {})}

    def stopped(self, reason: str) -> None:
        """Leave word why the run ends before its time; that it cannot be left is not what stopped it."""
        with contextlib.suppress(StorageError):
            self.emit("stopped", round=self.round, reason=reason)

    def fault(self, phase: str, site: str, reason: str, kind: str) -> None:
        """Name a site that lost its turn or whose answer was refused: in the log, in metrics.jsonl and in run.json."""
        log.warning("round %d, %s: site '%s' (%s): %s", self.round, phase, site, kind, reason, extra=self._about(site))
        fault = {"round": self.round, "site": site, "phase": phase, "reason": reason, "kind": kind}
        self.progress.faults.append(fault)
        self.emit("fault", **fault)

    def settle(self) -> None:
        """Wait for the checkpoint that is being written: until then weights, average and the fold's state must stay as they are.

        Raises:
            StorageError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _checkpoint(self) -> None:
        """Have the round's state written while the next round's sites train; a crash meanwhile costs that round, no more."""
        self.settle()
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        aside = {}
        if self.average is not None:
            aside = {f"global/{name}": tensor for name, tensor in self.weights.items()}
            state |= self.average
        aside |= {f"fold/{name}": tensor for name, tensor in self.fold.state().items()}
        self.progress.tick()
        if self.witness:
            self.witness.model(self.round, self.weights)
        full = sum(tensor.nbytes for tensor in state.values())
        self.progress.full_state = full
        keep = 0 if full * self.config.federation.rounds <= KEEP_ALL_BYTES else 3
        spare = best_round(self.progress.history) if self.config.federation.select == "best" else None
        self._writing = self._writer.submit(self._write, Checkpoint(self.round, state, self.progress.as_values(), aside), keep, spare)

    def _write(self, checkpoint: Checkpoint, keep: int, spare: int | None) -> None:
        """Only when it is on disk are the round's replies no longer needed."""
        self.run.save_checkpoint(checkpoint, keep=keep, spare=spare)
        clear(self.run, checkpoint.round)

    def _restore(self, last: Checkpoint) -> None:
        self._take_up(last)
        self.fold.restore({name.removeprefix("fold/"): tensor for name, tensor in last.training.items() if name.startswith("fold/")})
        self.progress = Progress.from_values(last.state, resumed_from=last.round)
        self.roster.known |= self.progress.sites.keys()
        self.round = last.round

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """The weights of a checkpoint, and their average."""
        if spec_of(checkpoint.weights) != spec_of(self.network.state_dict()):
            raise FederationError(
                f"the checkpoint of round {checkpoint.round} in {self.run.folder} is of another network. Choose another --out."
            )
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(checkpoint.training.get(f"global/{name}", checkpoint.weights[name]))
                if self.average is not None:
                    self.average[name].copy_(checkpoint.weights[name])
