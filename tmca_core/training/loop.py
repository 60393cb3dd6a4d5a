"""One round of local training: the same function for a federated site, a pooled baseline and a site alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tmca_core.cases.case import CaseTensors
from tmca_core.config import Config, TrainingSettings
from tmca_core.errors import TmcaError
from tmca_core.losses import LOSSES
from tmca_core.networks.interface import Network
from tmca_core.seeds import stream
from tmca_core.text.features import TextPipeline
from tmca_core.training.batches import Batch, steps_a_round, training_batches
from tmca_core.training.device import autocast
from tmca_core.training.rules import LocalRule
from tmca_core.training.state import TrainState, capture, restore

AUXILIARY_WARMUP = 0.1


@dataclass(frozen=True)
class FitResult:
    """What one round of local training did.

    Attributes:
        loss: mean over the cases seen.
        steps: optimiser steps taken this round.
        cases_seen: cases trained on, repetitions counted.
        seconds: wall time of the steps.
        state: to be handed to the next round.
    """

    loss: float
    steps: int
    cases_seen: int
    seconds: float
    state: TrainState


class DivergedError(TmcaError):
    """Training produced a loss that is not finite."""


def learning_rate(settings: TrainingSettings, progress: float) -> float:
    """Rate at `progress` in [0, 1) of all steps: linear warm-up, then constant or a cosine to 1 % of the peak."""
    if progress < settings.warmup:
        return settings.learning_rate * max(progress, 1e-3) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    along = (progress - settings.warmup) / (1 - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))


def build_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW, or plain SGD, over trainable parameters; only matrices and kernels decay."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate)  # without momentum, its decay is the decoupled one
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def case_losses(network: Network, batch: Batch, settings: TrainingSettings, progress: float = 1.0) -> Tensor:
    """Segmentation loss plus the network's auxiliary losses: (B,).

    Args:
        progress: share of all steps done; auxiliary losses rise linearly to their weight over the first tenth.
    """
    with autocast(settings, batch.images.device):
        output = network(batch.images, batch.text)
    losses = LOSSES[settings.loss]().per_case(output.logits, batch.masks)
    rise = min(1.0, progress / AUXILIARY_WARMUP)
    for auxiliary in network.auxiliary(output, batch.masks).values():
        losses = losses + rise * auxiliary.per_case
    return losses


def train_step(
    network: Network,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    progress: float = 1.0,
    change: Callable[[], None] | None = None,
) -> Tensor:
    """One optimiser step; returns the mean loss as a tensor of its own (no host synchronisation).

    Args:
        change: called between the backward pass and the clipping; may change gradients.
    """
    loss = case_losses(network, batch, settings, progress).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if change is not None:
        change()
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
    optimizer.step()
    return loss.detach()


def fit(
    network: Network,
    data: CaseTensors,
    pipeline: TextPipeline,
    config: Config,
    *,
    round: int,
    site: str,
    state: TrainState | None,
    device: torch.device,
    average: bool = False,
    rule: LocalRule | None = None,
    keep: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
) -> FitResult:
    """Train `network` in place for round `round` (1-based).

    The learning rate follows `federation.rounds` as the whole length. Every random draw is a function of
    (seed, site, round). With `average`, `training.ema` maintains averaged weights in the state. A started `rule` may
    change the gradients of every step. Without `keep` the resulting state holds the number of steps only;
    then an `optimizer` of this network may be given, which is started afresh: memory that is there already is several times as fast
    as new.

    Raises:
        DivergedError: the loss is not finite; the network is left as it is then.
    """
    settings = config.training
    # Both walk over all modules, which a round of a small network would feel.
    if next(network.parameters()).device != device:
        network.to(device)
    if not network.training:
        network.train()
    optimizer = build_optimizer(network, settings) if optimizer is None else _afresh(optimizer)
    before = state.step if state else 0
    if state:
        restore(network, optimizer, state)
    decay = settings.ema if average else 0.0
    averaged = dict(state.average) if state and decay else {}
    steps = steps_a_round(len(data), config)
    total, seen, start = torch.zeros((), device=device), 0, time.perf_counter()
    # What a network draws while it trains is a function of (seed, site, round) too.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed(stream(config.seed, "network", site, round), device)
        for step, batch in enumerate(training_batches(data, pipeline, config, round=round, site=site, device=device)):
            progress = (round - 1 + step / steps) / config.federation.rounds
            rate = learning_rate(settings, progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
            change = partial(rule.after_backward, step, steps) if rule else None
            total += train_step(network, batch, optimizer, settings, progress, change) * len(batch)
            seen += len(batch)
            if decay:
                _accumulate(averaged, network, decay, before + step + 1)
    loss = float(total) / seen
    if not math.isfinite(loss):
        raise DivergedError(f"site '{site}', round {round}: the loss is {loss}. Lower training.learning_rate, or look at the site's data.")
    seconds, done = time.perf_counter() - start, before + steps
    return FitResult(loss, steps, seen, seconds, capture(network, optimizer, done, averaged) if keep else TrainState(done))


def _afresh(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser as it was before its first step: step counts and moments are 0."""
    kept = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    if kept:
        torch._foreach_zero_(kept)
    return optimizer


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that training here draws from; `torch.manual_seed` notes a call stack for every kind of device there is."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@torch.no_grad()
def _accumulate(averaged: dict[str, Tensor], network: nn.Module, decay: float, step: int) -> None:
    """averaged ← d·averaged + (1−d)·weights, d rising from 0 so that early steps are forgotten soon."""
    d = min(decay, step / (step + 10))
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in averaged:
            averaged[name] = averaged[name].lerp(parameter, 1 - d)
        else:
            averaged[name] = parameter.detach().clone()
