"""What a model says about a case that an attacker holds: four numbers, each higher where the case may have been trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tmca_core.audits.rehearsal import CPU, Subject, Weights
from tmca_core.audits.scores import Numbers
from tmca_core.cases.case import CaseTensors
from tmca_core.losses import LOSSES
from tmca_core.losses.segmentation import soft_dice
from tmca_core.networks.interface import Output
from tmca_core.text.sides import swap_sides
from tmca_core.training.batches import prepare_images
from tmca_core.training.evaluation import inference

TINY = 1e-6


def signal_names(subject: Subject) -> tuple[str, ...]:
    """Of `signals`, in order; a network that reads no report has no text signal."""
    return ("loss", "Dice", "pixels", "text") if subject.network.uses_text else ("loss", "Dice", "pixels")


def signals(subject: Subject, weights: Weights, data: CaseTensors) -> Numbers:
    """(N, S) of N cases under one model.

    loss: −log of the training loss. Dice: log-odds of the soft Dice overlap. pixels: mean log-odds of a pixel's being called right,
    target and background counting alike. text: loss with the sides of the report exchanged less the loss with the true report; 0
    where the report names no side.
    """
    subject.network.load_state_dict(weights)
    loss = LOSSES[subject.config.training.loss]().per_case
    texts = [case.text for case in data.cases]
    swapped = [swap_sides(text) for text in texts]
    size, rows = subject.config.evaluation.batch_size, []
    with inference(subject.network):
        for start in range(0, len(data), size):
            part = slice(start, start + size)
            images, masks = prepare_images(data.images[part]), data.masks[part].float()
            logits = _logits(subject, images, texts[part])
            value = loss(logits, masks)
            overlap = (1 - soft_dice(logits, masks)).clamp(TINY, 1 - TINY)
            columns = [-(value + TINY).log(), overlap.logit(), _margin(logits, masks)]
            if subject.network.uses_text:
                other = _logits(subject, images, swapped[part]) if swapped[part] != texts[part] else logits
                columns.append(loss(other, masks) - value)
            rows.append(torch.stack(columns, 1))
    return torch.cat(rows).double().numpy()


def watched(subject: Subject, released: Weights, sites: Mapping[str, Weights], data: CaseTensors) -> Numbers:
    """(N, S) from a round's sight: every case under its own site's model where that is seen, else under the released one."""
    if not sites:
        return signals(subject, released, data)
    names = [case.site for case in data.cases]
    found = np.empty((len(data), len(signal_names(subject))))
    for site in dict.fromkeys(names):
        rows = [i for i, name in enumerate(names) if name == site]
        found[rows] = signals(subject, sites.get(site, released), data.subset(rows))
    return found


def _logits(subject: Subject, images: Tensor, texts: Sequence[str]) -> Tensor:
    output: Output = subject.network(images, subject.pipeline.encode(list(texts)).to(CPU))
    return output.logits.float()


def _margin(logits: Tensor, masks: Tensor) -> Tensor:
    """(B,) mean of (2y − 1)·logit, half over target pixels and half over the others; over the others alone where there is no target."""
    right, target = ((2 * masks - 1) * logits).flatten(1), masks.flatten(1)
    inside, outside = target.sum(1), (1 - target).sum(1)
    within = (right * target).sum(1) / inside.clamp_min(1)
    without = (right * (1 - target)).sum(1) / outside.clamp_min(1)
    both = (inside > 0) & (outside > 0)
    return torch.where(both, (within + without) / 2, within + without)
