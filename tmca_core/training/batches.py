"""From decoded cases to what a network reads: order, augmentation, intensities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmca_core.cases.augment import augment, mirrored_targets
from tmca_core.cases.case import CaseTensors
from tmca_core.config import Config
from tmca_core.seeds import torch_rng
from tmca_core.text.features import TextBatch, TextPipeline


@dataclass(frozen=True)
class Batch:
    """images (B, C, S, S) float32 standardised; masks (B, M, S, S) float32 of 0 and 1, a channel a target; the reports in patient sides."""

    images: Tensor
    masks: Tensor
    text: TextBatch

    def __len__(self) -> int:
        return len(self.images)


def standardise(images: Tensor) -> Tensor:
    """(B, C, S, S) float in [0, 1] → zero mean and unit deviation an image, so that scanner gain and offset drop out."""
    mean = images.mean((1, 2, 3), keepdim=True)
    deviation = images.std((1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 1e-3)


def prepare_images(images: Tensor) -> Tensor:
    """(B, C, S, S) uint8 → float32 as networks read it."""
    return standardise(images.float() / 255)


def training_batches(
    data: CaseTensors, pipeline: TextPipeline, config: Config, *, round: int, site: str, device: torch.device
) -> Iterator[Batch]:
    """Exactly `steps_a_round` augmented batches.

    Order and augmentation are functions of (seed, site, round) alone: a round that is run again is the same round.
    """
    size, steps = config.training.batch_size, steps_a_round(len(data), config)
    done = epoch = 0
    while done < steps:
        order = torch.randperm(len(data), generator=torch_rng(config.seed, "order", site, round, epoch))
        for start in range(0, len(order), size):
            if done == steps:
                return
            rng = torch_rng(config.seed, "augment", site, round, epoch, start)
            yield _training_batch(data, order[start : start + size], pipeline, config, rng, device)
            done += 1
        epoch += 1


def steps_a_round(cases: int, config: Config) -> int:
    """Optimiser steps of one round for a site with that many training cases."""
    return config.training.steps or config.training.epochs * -(-cases // config.training.batch_size)


def _training_batch(
    data: CaseTensors, index: Tensor, pipeline: TextPipeline, config: Config, rng: torch.Generator, device: torch.device
) -> Batch:
    texts: Sequence[str] = [data.cases[i].text for i in index.tolist()]
    mirrored = mirrored_targets(config.data.target_names) if config.augmentation.flip else ()
    images, masks, texts = augment(
        data.images[index].float() / 255, data.masks[index].float(), texts, config.augmentation, rng, mirrored=mirrored
    )
    return Batch(standardise(images).to(device), masks.to(device), pipeline.encode(texts).to(device))
