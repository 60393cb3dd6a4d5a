"""One round of private local training: Poisson draws of patients, clipped sums, noise, an optimiser step each."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from tmca_core.algorithms import ALGORITHMS
from tmca_core.algorithms.interface import plain_rule
from tmca_core.cases.augment import augment, mirrored_targets
from tmca_core.cases.case import CaseTensors
from tmca_core.config import Config
from tmca_core.errors import PolicyRefusal
from tmca_core.networks.interface import Network
from tmca_core.privacy.gradients import ENGINES, Drawn, Gradients, clipped_sum, trainable, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.randomness import SecureStream, Stream, noised, poisson_sample
from tmca_core.text.features import TextPipeline
from tmca_core.training.batches import Batch, standardise
from tmca_core.training.loop import FitResult, build_optimizer, learning_rate
from tmca_core.training.state import TrainState, capture, restore

log = logging.getLogger(__name__)


def refuse_uncovered(network: Network, config: Config) -> None:
    """Refuse settings under which something leaves without noise, or a patient's gradient depends on the other patients of a step.

    Raises:
        PolicyRefusal: naming the setting.
    """
    algorithm = config.federation.algorithm
    if ALGORITHMS[algorithm].local is not plain_rule:
        raise PolicyRefusal(
            f"federation.algorithm={algorithm} changes local training, which no noise covers: use one with plain local training, such as "
            "fedavg, fedadam or median."
        )
    if config.tmca.alignment == "batch" and config.network.name in ("tmca", "tmca-ssa"):
        raise PolicyRefusal(
            "tmca.alignment=batch holds each report against those of the other patients in the batch, so that no patient's gradient is "
            "bounded by its own clipping (removing one patient moved the sum by more than 5 clips): set tmca.alignment=bank or off."
        )
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters()):
            raise PolicyRefusal(f"the network's '{name}' is a BatchNorm, which mixes patients: use a network with GroupNorm or LayerNorm.")


def patients_of(data: CaseTensors) -> list[list[int]]:
    """Indices of each patient's cases, patients in the order of their ids."""
    rows: dict[str, list[int]] = {}
    for index, case in enumerate(data.cases):
        rows.setdefault(case.patient_id, []).append(index)
    return [rows[patient] for patient in sorted(rows)]


def draw(
    data: CaseTensors, patients: Sequence[Sequence[int]], pipeline: TextPipeline, config: Config, device: torch.device, stream: Stream
) -> Drawn:
    """The cases of some patients (at least one), each augmented `privacy.views` times.

    Every patient has a generator of its own, so that nothing of a patient's cases depends on who else was drawn.
    """
    mirrored = mirrored_targets(config.data.target_names) if config.augmentation.flip else ()
    images, masks, texts, counts = [], [], [], []
    for rows in patients:
        seed = int.from_bytes(stream.read(8), "little") >> 1
        index = torch.tensor(list(rows)).repeat(config.privacy.views)
        x, y, said = augment(
            data.images[index].float() / 255,
            data.masks[index].float(),
            [data.cases[i].text for i in index.tolist()],
            config.augmentation,
            torch.Generator().manual_seed(seed),
            mirrored=mirrored,
        )
        images.append(x)
        masks.append(y)
        texts += said
        counts.append(len(index))
    batch = Batch(standardise(torch.cat(images)).to(device), torch.cat(masks).to(device), pipeline.encode(texts).to(device))
    return Drawn(batch, torch.tensor(counts))


def noisy_mean(sums: Gradients, mechanism: Mechanism, stream: Stream) -> Gradients:
    """(Σ + σ C z) / b by name, float32; noise from the stream, added in float64 over all parameters as one vector."""
    flat = torch.cat([value.detach().flatten() for value in sums.values()]).cpu().double().numpy()
    released = torch.from_numpy(noised(flat, mechanism.noise_multiplier * mechanism.clip, stream)).div_(mechanism.expected)
    parts = torch.split(released, [value.numel() for value in sums.values()])
    return {name: part.view_as(value).to(value) for (name, value), part in zip(sums.items(), parts, strict=True)}


def noisy_step(network: Network, sums: Gradients, optimizer: torch.optim.Optimizer, mechanism: Mechanism, stream: Stream) -> None:
    """One optimiser step along the noised mean of clipped gradients."""
    parameters = trainable(network)
    for name, gradient in noisy_mean(sums, mechanism, stream).items():
        parameters[name].grad = gradient
    optimizer.step()


def fit_privately(
    network: Network,
    data: CaseTensors,
    pipeline: TextPipeline,
    config: Config,
    mechanism: Mechanism,
    *,
    round: int,
    site: str,
    state: TrainState | None,
    device: torch.device,
    stream: Stream | None = None,
) -> FitResult:
    """Train `network` in place for round `round` (1-based) under DP-SGD, patients being what is protected.

    Whoever calls this has charged `mechanism.steps` steps to the ledger. `training.clip_norm`, `training.batch_size` and
    `training.epochs` do not apply. The result's loss is not a number: the true one is of the patients, and no noise covers it.

    Args:
        stream: of secret bytes, for draws and noise; None: the operating system's. Never derived from a seed of the run.
    """
    settings, stream = config.training, stream or SecureStream()
    refuse_uncovered(network, config)
    network.to(device).train()
    network.ready(device)
    optimizer = build_optimizer(network, settings)
    if state:
        restore(network, optimizer, state)
    before, everyone, seen, start = state.step if state else 0, patients_of(data), 0, time.perf_counter()
    engine = ENGINES[config.privacy.engine]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in range(mechanism.steps):
            progress = (round - 1 + step / mechanism.steps) / config.federation.rounds
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, progress)
            coin = int.from_bytes(stream.read(4), "little")
            chosen = poisson_sample(len(everyone), mechanism.sample_rate, stream)
            sums: Gradients = {name: torch.zeros_like(parameter) for name, parameter in trainable(network).items()}
            if len(chosen):
                drawn = draw(data, [everyone[i] for i in chosen.tolist()], pipeline, config, device, stream)
                losses = training_losses(settings, progress, coin)
                sums, _ = clipped_sum(network, drawn, losses, mechanism.clip, engine=engine, chunk=config.privacy.chunk)
                seen += len(drawn.batch)
            noisy_step(network, sums, optimizer, mechanism, stream)
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    log.debug("site '%s', round %d: %d private steps, %d cases and views.", site, round, mechanism.steps, seen)
    return FitResult(np.nan, mechanism.steps, 0, seconds, capture(network, optimizer, before + mechanism.steps, {}))
