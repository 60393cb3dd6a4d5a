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
from tmca_core.training.scores import CaseScore, SiteSummary, TargetScore, combine, site_summary, summarise

if TYPE_CHECKING:
    from tmca_core.networks.interface import Network, Output
    from tmca_core.text.features import TextPipeline

__all__ = ["CaseLoss", "CaseScore", "SiteSummary", "combine", "evaluate", "inference", "predict_logits", "site_summary", "summarise"]

CaseLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C, S, S), C targets, and float masks of the same shape → (B,) losses."""


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
    """Logits (N, C, S, S) float32, a channel a target, on the CPU for N cases read with N texts (not necessarily their own).

    Raises:
        ValueError: there is not one text a case.
    """
    if len(texts) != len(data):
        raise ValueError(f"{len(data)} cases, {len(texts)} texts.")
    if not len(data):
        return torch.empty(0, *data.masks.shape[1:])
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
                values = dice(found.intersection, found.predicted, found.truth).mean(1).tolist()
                for score, value in zip(scores[part], values, strict=True):
                    score.counterfactual[name] = value
    return scores


def _score(data: CaseTensors, part: slice, predicted: Tensor, truth: Tensor, losses: list[float] | None, hd95: bool) -> list[CaseScore]:
    """Scores of one batch, counterfactuals still missing."""
    targets = _targets(predicted, truth, hd95)
    union = areas(predicted.any(1, keepdim=True), truth.bool().any(1, keepdim=True))
    cases = data.cases[part]
    sides = [named_side(case.text) for case in cases]
    errors, floors = other_side_share(predicted, sides), other_side_share(truth, sides)
    scores = []
    for i, (case, each) in enumerate(zip(cases, targets, strict=True)):
        distances = [one.hd95 for one in each if one.hd95 is not None]
        score = CaseScore(
            case_id=case.case_id,
            patient_id=case.patient_id,
            site=case.site,
            intersection=int(union.intersection[i, 0]),
            predicted=int(union.predicted[i, 0]),
            truth=int(union.truth[i, 0]),
            dice=sum(one.dice for one in each) / len(each),
            iou=sum(one.iou for one in each) / len(each),
            hd95=sum(distances) / len(distances) if distances else None,
            laterality_error=errors[i],
            laterality_floor=floors[i],
            loss=None if losses is None else losses[i],
            counterfactual={},
            without_report=not case.text,
            targets=each if len(each) > 1 else (),
        )
        scores.append(score)
    return scores


def _targets(predicted: Tensor, truth: Tensor, hd95: bool) -> list[tuple[TargetScore, ...]]:
    """Scores of N cases' C targets from masks (N, C, S, S)."""
    found = areas(predicted, truth)
    overlap = dice(found.intersection, found.predicted, found.truth).tolist()
    union = iou(found.intersection, found.predicted, found.truth).tolist()
    return [
        tuple(
            TargetScore(
                intersection=int(found.intersection[i, k]),
                predicted=int(found.predicted[i, k]),
                truth=int(found.truth[i, k]),
                dice=overlap[i][k],
                iou=union[i][k],
                hd95=hausdorff95(predicted[i, k], truth[i, k]) if hd95 else None,
            )
            for k in range(truth.shape[1])
        )
        for i in range(len(truth))
    ]
