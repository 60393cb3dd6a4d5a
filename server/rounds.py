"""The federation from the first hello to run.json: train a round, fold, checkpoint, evaluate, again; then test.

Repeating a command goes on from the last checkpoint. What is drawn in a round is a function of (seed, round) and of names,
so a round done twice, before and after a crash, gives the same weights; in metrics.jsonl its later events replace the earlier.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from server.aggregate import ALGORITHMS
from server.exchange import carried_bytes, exchange, pack, request
from server.progress import Progress
from server.roster import Identity, Roster
from server.summaries import check_summary, declared
from tmca_core.config import Config
from tmca_core.errors import FederationError, UpdateRejected
from tmca_core.messages import (
    ARRAYS,
    EVALUATE,
    METRICS,
    PLACE,
    SETTINGS,
    TRAIN,
    Update,
    check_update,
    source_digest,
    spec_digest,
    spec_of,
    unpack_update,
)
from tmca_core.networks import build_network, frozen_digest, shared_state
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
    """

    def __init__(self, grid: Grid, config: Config, run: Run, on_event: OnEvent | None = None) -> None:
        self.grid, self.config, self.run, self.on_event = grid, config, run, on_event
        self.network = build_network(config)
        self.weights = shared_state(self.network)
        self.spec = spec_of(self.weights)
        self.fold = ALGORITHMS[config.federation.algorithm](self.weights)
        self.average: dict[str, Tensor] | None = None
        if config.training.ema:
            self.average = {name: tensor.clone() for name, tensor in self.weights.items()}
        code = source_digest(Path(__file__).parents[1])
        identity = Identity(config.digest(), spec_digest(self.spec), frozen_digest(self.network), code)
        self.roster = Roster(identity, config, lambda site, reason: self.fault("hello", site, reason))
        self.progress = Progress.new()
        self.round = 0

    # --- the whole ------------------------------------------------------------------------------
    def start(self, settle: float) -> None:
        """Resume from the last checkpoint, or write that of round 0, and gather the sites.

        Raises:
            FederationError: too few sites, or a checkpoint of another network.
        """
        if last := self.run.last_checkpoint():
            self._restore(last)
        self.roster.gather(self.grid, settle)
        self.progress.describe(self.roster.hellos.values())
        if not last:
            self._checkpoint()

    def train(self) -> None:
        """Rounds up to `federation.rounds`, each checkpointed."""
        settings = self.config
        for number in range(self.round + 1, settings.federation.rounds + 1):
            begin = time.perf_counter()
            self.round = number
            self.roster.refresh(self.grid, settings.federation.wait)
            self.progress.describe(self.roster.hellos.values())
            completed, failed = self._train_round()
            dice: float | None = None
            if number % settings.evaluation.every == 0 or number == settings.federation.rounds:
                dice = _mean_dice(self.evaluate("val"))
            seconds = time.perf_counter() - begin
            record = {"round": number, "dice_image": dice, "seconds": seconds, "completed": completed, "failed": failed}
            self.progress.history.append(record)
            self._checkpoint()
            self.emit("round", **record)

    def evaluate(self, split: str) -> dict[str, SiteSummary]:
        """Aggregates of every site that has cases in `split`; a site that fails is named and left out."""
        begin = time.perf_counter()
        arrays = pack(self.average or self.weights)
        holders = self.roster.holders(split)
        settings: dict[str, str | int] = {"round": self.round, "split": split, "run": self.progress.run}
        requests = {site: self._request(EVALUATE, site, arrays, settings, f"{self.round}-{split}") for site in holders}
        found: dict[str, SiteSummary] = {}
        targets = len(self.config.data.target_names)
        for answer in exchange(self.grid, requests, poll=self.config.federation.poll, seconds=self.config.federation.deadline):
            summary = {} if answer.content is None else declared(answer.content.metric_records.get(METRICS, {}), targets)
            reason = answer.failure or check_summary(summary, self.roster.held(answer.site, split), targets)
            if reason:
                self.fault(split, answer.site, reason)
                continue
            found[answer.site] = summary
            loss = summary["loss_sum"] / summary["loss_cases"] if summary["loss_cases"] else None
            event = "site_eval" if split == "val" else "site_test"
            self.emit(event, round=self.round, site=answer.site, dice_image=summary["dice_image"], loss=loss, cases=int(summary["cases"]))
        self.progress.add_seconds("evaluation", time.perf_counter() - begin)
        return found

    # --- one round ------------------------------------------------------------------------------
    def _train_round(self) -> tuple[list[str], dict[str, str]]:
        """Train a cohort and fold; returns names of the sites whose update was folded, and the others' reasons.

        Raises:
            FederationError: fewer than `min_sites` usable updates; the weights are those of the round's start.
        """
        begin, settings = time.perf_counter(), self.config.federation
        arrays = pack(self.weights)
        fields: dict[str, str | int] = {"round": self.round, "run": self.progress.run}
        cohort = self.roster.cohort(self.round)
        requests = {site: self._request(TRAIN, site, arrays, fields, str(self.round)) for site in cohort}
        down = carried_bytes(next(iter(requests.values())).content) if requests else 0
        completed: dict[str, int] = {}
        failed: dict[str, str] = {}
        busy = folding = steps = 0.0
        for answer in exchange(self.grid, requests, poll=settings.poll, seconds=settings.deadline):
            folded = time.perf_counter()
            try:
                if answer.content is None:
                    raise UpdateRejected(answer.failure)
                update = self._checked(answer.site, answer.content)
            except UpdateRejected as error:
                failed[answer.site] = str(error)
                self.fault("train", answer.site, str(error))
                continue
            self.fold.add(update)
            folding += time.perf_counter() - folded
            busy, steps = busy + update.metrics["seconds"], steps + update.metrics["steps"]
            completed[answer.site] = update.weight
            up = carried_bytes(answer.content)
            self.progress.count(up, down)
            self.emit(
                "site_train",
                round=self.round,
                site=answer.site,
                loss=update.metrics["loss"],
                seconds=update.metrics["seconds"],
                bytes_up=up,
                bytes_down=down,
            )
        if not completed or len(completed) < settings.min_sites:
            raise FederationError(self._too_few(len(completed), failed))
        wall, start = time.perf_counter() - begin, time.perf_counter()
        self.fold.finish(self.weights)
        self._average(round(steps / len(completed)))
        self.progress.add_seconds("training", busy)
        self.progress.add_seconds("communication", max(0.0, wall - folding - busy))
        self.progress.add_seconds("aggregation", folding + time.perf_counter() - start)
        return sorted(completed), dict(sorted(failed.items()))

    def _request(self, kind: str, site: str, arrays: ArrayRecord, settings: Mapping[str, str | int], group: str) -> Message:
        node, place = self.roster.nodes[site]
        return request(kind, node, arrays, {**settings, PLACE: place}, group)

    def _checked(self, site: str, content: Any) -> Update:
        arrays, metrics = content.array_records.get(ARRAYS), content.metric_records.get(METRICS)
        if arrays is None or metrics is None:
            raise UpdateRejected(f"the reply holds no '{ARRAYS if arrays is None else METRICS}'.")
        update = unpack_update(arrays, content.config_records.get(SETTINGS, {}), metrics)
        check_update(update, self.spec, self.round)
        announced = self.roster.hellos[site].weight(self.config.federation.weighting)
        if update.weight != announced:
            raise UpdateRejected(f"its weight is {update.weight}, but it announced {announced}.")
        return update

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

    def _too_few(self, good: int, failed: Mapping[str, str]) -> str:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(failed.items()))
        return (
            f"round {self.round}: {good} usable updates, {max(1, self.config.federation.min_sites)} are needed (federation.min_sites)"
            f"{': ' + reasons if reasons else '; no site has training cases'}. Round {self.round - 1} is kept in {self.run.folder}; "
            "put the sites right and repeat the command to go on from there."
        )

    # --- records --------------------------------------------------------------------------------
    def emit(self, event: str, **values: Any) -> None:
        """Log an event, and hand it to the live table."""
        fields = {"arm": ARM, **values}
        self.run.log(event, **fields)
        if self.on_event:
            self.on_event({"event": event, **fields})

    def fault(self, phase: str, site: str, reason: str) -> None:
        """Name a site that lost its turn: in the log, in metrics.jsonl and in run.json."""
        log.warning("round %d, %s: site '%s' loses its turn: %s", self.round, phase, site, reason)
        fault = {"round": self.round, "site": site, "phase": phase, "reason": reason}
        self.progress.faults.append(fault)
        self.emit("fault", **fault)

    def _checkpoint(self) -> None:
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        aside = {}
        if self.average is not None:
            aside = {f"global/{name}": tensor for name, tensor in self.weights.items()}
            state |= self.average
        self.progress.tick()
        full = sum(tensor.nbytes for tensor in state.values())
        self.progress.full_state = full
        keep = 0 if full * self.config.federation.rounds <= KEEP_ALL_BYTES else 3
        self.run.save_checkpoint(Checkpoint(self.round, state, self.progress.as_values(), aside), keep=keep)

    def _restore(self, last: Checkpoint) -> None:
        if spec_of(last.weights) != spec_of(self.network.state_dict()):
            raise FederationError(f"the checkpoint of round {last.round} in {self.run.folder} is of another network. Choose another --out.")
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(last.training.get(f"global/{name}", last.weights[name]))
                if self.average is not None:
                    self.average[name].copy_(last.weights[name])
        self.progress = Progress.from_values(last.state, resumed_from=last.round)
        self.round = last.round


def _mean_dice(found: Mapping[str, SiteSummary]) -> float | None:
    cases = sum(summary["cases"] for summary in found.values())
    return sum(summary["dice_sum"] for summary in found.values()) / cases if cases else None
