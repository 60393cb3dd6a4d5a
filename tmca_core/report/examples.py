"""Choose the cases a report shows, and keep their images, masks and the network's own maps in the run's folder.

They hold patients' images: a run's folder is as confidential as its data, and nothing here is called where data of
several hospitals would have to meet.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tmca_core.cases.case import CaseTensors
from tmca_core.config import EvaluationSettings
from tmca_core.report.maps import describe_maps
from tmca_core.run import Run, write_atomically
from tmca_core.text.phrases import keep_phrases
from tmca_core.text.sides import swap_sides
from tmca_core.training.batches import prepare_images
from tmca_core.training.evaluation import inference, predict_logits
from tmca_core.training.scores import CaseScore

if TYPE_CHECKING:
    from tmca_core.networks.interface import Network
    from tmca_core.text.features import TextPipeline

Kind = Literal["best", "median", "worst", "counterfactual"]


def choose_examples(scores: Sequence[CaseScore], count: int) -> list[tuple[int, Kind]]:
    """Indices of at most `count` cases and why each is shown; no case is shown twice.

    First best, median and worst Dice of all cases, in turn; then, in half of the places (rounded down), one-sided reports
    whose swapped text costs the most Dice, one a patient as far as patients go.
    """
    sided = [i for i, s in enumerate(scores) if s.laterality_error is not None and "swapped" in s.counterfactual and s.truth]
    sided.sort(key=lambda i: (scores[i].counterfactual["swapped"] - scores[i].dice, scores[i].case_id))
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i].dice, scores[i].case_id))
    middle = sorted(range(len(ranked)), key=lambda place: abs(2 * place - len(ranked) + 1))
    by_kind: dict[Kind, list[int]] = {
        "best": ranked,
        "median": [ranked[place] for place in middle],
        "worst": ranked[::-1],
    }
    order = list(by_kind)
    chosen: dict[int, Kind] = {}
    for k in range(min(len(scores), count - min(count // 2, len(sided)))):
        kind = order[k % 3]
        chosen[next(i for i in by_kind[kind] if i not in chosen)] = kind
    seen: set[tuple[str, str]] = set()
    first: list[int] = []
    again: list[int] = []
    for i in sided:
        if i not in chosen:
            patient = (scores[i].site, scores[i].patient_id)
            (again if patient in seen else first).append(i)
            seen.add(patient)
    swaps = (first + again)[: count - len(chosen)]
    return sorted(chosen.items(), key=lambda item: order.index(item[1])) + [(i, "counterfactual") for i in swaps]


def write_examples(
    run: Run,
    network: Network,
    data: CaseTensors,
    scores: Sequence[CaseScore],
    pipeline: TextPipeline,
    settings: EvaluationSettings,
    device: torch.device,
) -> None:
    """Write `examples/index.json` and 8-bit PNGs (masks 0 and 255, a file a target) of up to `settings.examples` cases; older ones go.

    Args:
        run: its configuration names the targets.
        scores: of `data`, case by case, as `evaluate` gave them.

    Raises:
        ValueError: there is not one score a case, or not one mask a target.
    """
    if [s.case_id for s in scores] != [case.case_id for case in data.cases]:
        raise ValueError(f"{len(scores)} scores do not belong to the {len(data)} cases.")
    targets = run.config().data.target_names
    if data.masks.shape[1] != len(targets):
        raise ValueError(f"masks of {data.masks.shape[1]} targets; the run's configuration names {', '.join(targets)}.")
    chosen = choose_examples(scores, settings.examples)
    part = data.subset([i for i, _ in chosen])
    swapped_texts = [swap_sides(case.text) for case in part.cases]
    threshold = math.log(settings.threshold / (1 - settings.threshold))
    swapped = predict_logits(network, part, swapped_texts, pipeline, batch_size=settings.batch_size, device=device) > threshold

    folder = run.folder / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    entries: list[dict[str, Any]] = []
    for k, (i, kind) in enumerate(chosen):
        name, case = f"{k:03d}", part.cases[k]
        logits, maps, pictures = _explained(network, part.images[k], case.text, pipeline, device)
        layers = {"truth": part.masks[k], "prediction": logits[0] > threshold, "swapped": swapped[k]}
        for layer, masks in layers.items():
            pictures |= {
                layer if len(targets) == 1 else f"{layer}/{target}": mask * 255
                for target, mask in zip(targets, masks.to(torch.uint8), strict=True)
            }
        pictures["image"] = part.images[k]
        files = {what: f"{name}-{what.replace('/', '-')}.png" for what in pictures}
        for what, pixels in pictures.items():
            write_atomically(folder / files[what], png(pixels.reshape(-1, *pixels.shape[-2:])))
        entries.append(
            {
                "id": name,
                "case_id": case.case_id,
                "site": case.site,
                "report": case.text,
                "swapped_report": swapped_texts[k],
                "kind": kind,
                "dice": scores[i].dice,
                "dice_swapped": scores[i].counterfactual.get("swapped"),
                "one_sided": scores[i].laterality_error is not None,
                "targets": list(targets),
                "files": files,
                "maps": maps,
            }
        )
    write_atomically(folder / "index.json", json.dumps({"examples": entries}, indent=1, allow_nan=False) + "\n")


def _explained(
    network: Network, image: Tensor, text: str, pipeline: TextPipeline, device: torch.device
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Logits (1, C, S, S) of one case read alone; what its maps say, and their pictures by name."""
    with inference(network):
        batch = pipeline.encode([text]).to(device)
        output = network(prepare_images(image[None].to(device)), batch)
    facts: dict[str, Any] = {}
    pictures: dict[str, Tensor] = {}
    if output.maps:
        read = keep_phrases(text, pipeline.phrase_kinds)
        facts, pictures = describe_maps(read, pipeline.encoder.spans(read), batch.kinds[0].tolist(), float(batch.certainty[0]), output.maps)
    return output.logits.float().cpu(), facts, pictures


def png(pixels: Tensor) -> bytes:
    """(C, H, W) uint8 with C of 1 (grey) or 3 (colour) as PNG."""
    array = np.ascontiguousarray(pixels.cpu().permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
