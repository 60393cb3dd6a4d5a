"""Run a network over cases and score every case: with its own report, and with reports that should move or break the mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tmca_core.cases.case import CaseTensors
from tmca_core.config import EvaluationSettings
from tmca_core.losses.segmentation import dice_cross_entropy
from tmca_core.training.batches import prepare_images
from tmca_core.training.metrics import areas, counterfactual_texts, dice, hausdorff95, iou, named_side, other_side_share
from tmca_core.training.scores import CaseScore, SiteSummary, combine, site_summary, summarise

if TYPE_CHECKING:
    from tmca_core.networks.interface import Network, Output
    from tmca_core.text.features import TextPipeline

__all__ = ["CaseLoss", "CaseScore", "SiteSummary", "combine", "evaluate", "inference", "predict_logits", "site_summary", "summarise"]

CaseLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, 1, S, S) and float masks of the same shape → (B,) losses."""


@contextmanager
def inference(network: Network) -> Iterator[None]:
    """Evaluation mode without gradients; the mode the network came in is restored."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


def predict_logits(
    network: Network, data: CaseTensors, texts: Sequence[str], pipeline: TextPipeline, *, batch_size: int, device: torch.device
) -> Tensor:
    """Logits (N, 1, S, S) float32 on the CPU for N cases read with N texts (not necessarily their own).

    Raises:
        ValueError: there is not one text a case.
    """
    if len(texts) != len(data):
        raise ValueError(f"{len(data)} cases, {len(texts)} texts.")
    if not len(data):
        return torch.empty(0, 1, *data.images.shape[-2:])
    parts = []
    with inference(network):
        for start in range(0, len(data), batch_size):
            images = prepare_images(data.images[start : start + batch_size].to(device))
            batch = pipeline.encode(list(texts[start : start + batch_size])).to(device)
            parts.append(network(images, batch).logits.float().cpu())
    return torch.cat(parts)


def evaluate(
    network: Network,
    data: CaseTensors,
    pipeline: TextPipeline,
    *,
    settings: EvaluationSettings,
    device: torch.device,
    counterfactual: bool = True,
    hd95: bool = True,
    loss: CaseLoss | None = dice_cross_entropy,
    seed: int = 0,
) -> list[CaseScore]:
    """Score every case, in the order of `data.cases`, holding one batch at a time.

    Args:
        network: on `device`.
        counterfactual: also predict with swapped, shuffled and empty reports (up to four forward passes instead of one).
        hd95: also measure boundary distance (CPU; some 2 ms a case at 128²).
        loss: also measured a case; None: not.
        seed: of the shuffled reports.
    """
    texts = [case.text for case in data.cases]
    variants = counterfactual_texts(texts, seed) if counterfactual else {}
    threshold = math.log(settings.threshold / (1 - settings.threshold))
    scores: list[CaseScore] = []
    with inference(network):
        for start in range(0, len(data), settings.batch_size):
            part = slice(start, min(start + settings.batch_size, len(data)))
            truth = data.masks[part].to(device)
            images = prepare_images(data.images[part].to(device))

            def logits(these: Sequence[str], images: Tensor = images) -> Tensor:
                output: Output = network(images, pipeline.encode(list(these)).to(device))
                return output.logits.float()

            own = logits(texts[part])
            losses = None if loss is None else loss(own, truth.float()).tolist()
            scores += _score(data, part, own > threshold, truth, losses, hd95)
            for name, others in variants.items():
                # A text that stays as it was, or a network that reads none, gives the same mask: no second pass for it.
                same = not network.uses_text or others[part] == texts[part]
                other = own if same else logits(others[part])
                found = areas(other > threshold, truth)
                for score, value in zip(scores[part], dice(found.intersection, found.predicted, found.truth).tolist(), strict=True):
                    score.counterfactual[name] = value
    return scores


def _score(data: CaseTensors, part: slice, predicted: Tensor, truth: Tensor, losses: list[float] | None, hd95: bool) -> list[CaseScore]:
    """Scores of one batch, counterfactuals still missing."""
    found = areas(predicted, truth)
    overlap = dice(found.intersection, found.predicted, found.truth).tolist()
    union = iou(found.intersection, found.predicted, found.truth).tolist()
    cases = data.cases[part]
    sides = [named_side(case.text) for case in cases]
    errors, floors = other_side_share(predicted, sides), other_side_share(truth, sides)
    return [
        CaseScore(
            case_id=case.case_id,
            patient_id=case.patient_id,
            site=case.site,
            intersection=int(found.intersection[i]),
            predicted=int(found.predicted[i]),
            truth=int(found.truth[i]),
            dice=overlap[i],
            iou=union[i],
            hd95=hausdorff95(predicted[i, 0], truth[i, 0]) if hd95 else None,
            laterality_error=errors[i],
            laterality_floor=floors[i],
            loss=None if losses is None else losses[i],
            counterfactual={},
        )
        for i, case in enumerate(cases)
    ]
