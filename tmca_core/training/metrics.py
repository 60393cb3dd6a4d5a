"""What is measured on a mask: overlap, boundary distance, laterality, and the counterfactual reports that test the text.

Pure functions on masks of shape (N, C, H, W), bool or uint8 of 0 and 1: N cases, C targets. A case's figure is the mean over its
targets, each by the rule below; sides are measured on the union of the targets.

The empty-mask rule, everywhere: both masks empty → Dice and IoU are 1; one of them empty → 0.
Per image and pooled figures differ by several points and are never mixed: per image is the mean of the cases' own
values, pooled is one value from the summed areas of all cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from tmca_core.seeds import numpy_rng

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COUNTERFACTUALS = ("swapped", "shuffled", "empty")


@dataclass(frozen=True)
class Areas:
    """Areas a case and target in pixels, each (N, C) int64: |P ∩ T|, |P| and |T|."""

    intersection: Integers
    predicted: Integers
    truth: Integers


def areas(predicted: Tensor, truth: Tensor) -> Areas:
    """Areas of N × C pairs of masks.

    Raises:
        ValueError: the shapes differ or are not (N, C, H, W).
    """
    if predicted.shape != truth.shape or predicted.ndim != 4:
        raise ValueError(f"masks must both be (N, C, H, W), got {tuple(predicted.shape)} and {tuple(truth.shape)}.")
    p, t = predicted.bool(), truth.bool()

    def count(mask: Tensor) -> Integers:
        return np.asarray(mask.flatten(2).sum(2).cpu().numpy(), dtype=np.int64)

    return Areas(count(p & t), count(p), count(t))


def dice(intersection: npt.ArrayLike, predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Floats:
    """Dice 2|P∩T| / (|P|+|T|), element by element; areas a case give it per image, summed areas give it pooled.

    Example:
        >>> dice([2, 0, 0], [4, 0, 5], [4, 0, 0]).tolist()
        [0.5, 1.0, 0.0]
    """
    i, p, t = (np.asarray(x, dtype=np.float64) for x in (intersection, predicted, truth))
    return _ratio(2 * i, p + t)


def iou(intersection: npt.ArrayLike, predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Floats:
    """Intersection over union |P∩T| / |P∪T|, element by element; the same rules as `dice`."""
    i, p, t = (np.asarray(x, dtype=np.float64) for x in (intersection, predicted, truth))
    return _ratio(i, p + t - i)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above/below, and 1 where below is 0 (both masks empty)."""
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)


def hausdorff95(predicted: Tensor | Bools, truth: Tensor | Bools) -> float | None:
    """95th percentile Hausdorff distance of one pair of (H, W) masks, in pixels.

    The larger of the two directed 95th percentiles, between mask surfaces (mask pixels with a 4-neighbour outside the
    mask or the image), by exact Euclidean distance transform: as `monai.metrics.compute_hausdorff_distance(percentile=95)`.

    Returns:
        0 where both masks are empty; None where only one is (no distance exists; such cases are counted, not averaged).
    """
    p, t = (np.asarray(m.cpu().numpy() if isinstance(m, Tensor) else m).astype(bool) for m in (predicted, truth))
    if not p.any() or not t.any():
        return None if p.any() or t.any() else 0.0
    rows, columns = (np.flatnonzero((p | t).any(axis=axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))  # every surface pixel lies inside
    p, t = np.pad(p[box], 1), np.pad(t[box], 1)
    p_edge, t_edge = (mask & ~ndimage.binary_erosion(mask) for mask in (p, t))
    there = ndimage.distance_transform_edt(~t_edge)[p_edge]
    back = ndimage.distance_transform_edt(~p_edge)[t_edge]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def named_side(text: str) -> Literal["left", "right"] | None:
    """The one side that a report in patient sides asks for; None where it names both, neither, contradicts itself or negates."""
    from tmca_core.text.findings import parse

    findings = parse(text)
    if not findings.one_sided or findings.contradictory or findings.certainty == "negated":
        return None
    return "left" if findings.side == "left" else "right"


def other_side_share(masks: Tensor, sides: Sequence[Literal["left", "right"] | None]) -> list[float | None]:
    """Share of each case's area (all targets together) on the half of the image that its report does not name.

    On predictions this is the laterality error; on true masks it is the floor that label noise and midline cases set.
    The patient's left is the image half x > 0.5; the middle column of an odd width belongs to neither.

    Args:
        masks: (N, C, H, W).
        sides: N named sides, None where the measure is not defined.

    Returns:
        N values 0..1; None where `sides` is None. An empty mask has no area on the wrong side: 0. (Predicting nothing is
        not a way to a good figure: such cases are counted beside it, and their Dice is 0.)
    """
    width = masks.shape[-1]
    flat = masks.bool().any(1)
    image_left = flat[..., : width // 2].flatten(1).sum(1).tolist()
    image_right = flat[..., (width + 1) // 2 :].flatten(1).sum(1).tolist()
    total = flat.flatten(1).sum(1).tolist()
    shares: list[float | None] = []
    for side, left_half, right_half, area in zip(sides, image_left, image_right, total, strict=True):
        wrong = left_half if side == "left" else right_half
        shares.append(None if side is None else wrong / area if area else 0.0)
    return shares


def counterfactual_texts(texts: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """The reports a network must react to if it reads them.

    Args:
        texts: N reports in patient sides.
        seed: of the shuffle.

    Returns:
        `swapped`: left and right exchanged. `shuffled`: the same reports dealt to other cases, so that as few cases as
        possible receive a text equal to their own (none, unless one text fills more than half). `empty`: "".
    """
    from tmca_core.text.sides import swap_sides

    swaps = {text: swap_sides(text) for text in set(texts)}
    order = deal_differently(texts, seed)
    return {"swapped": [swaps[text] for text in texts], "shuffled": [texts[i] for i in order], "empty": [""] * len(texts)}


def deal_differently(texts: Sequence[str], seed: int) -> list[int]:
    """A permutation with the fewest fixed texts: cases are lined up by text and shifted by the commonest text's count.

    In the line every text is one block no longer than the shift, so a shift stays inside a block only where that block
    fills more than half of the (circular) line, and then as seldom as any permutation can.
    """
    rng = numpy_rng(seed, "shuffled reports")
    distinct = sorted(set(texts))
    rank = dict(zip(distinct, rng.permutation(len(distinct)).tolist(), strict=True))
    tie = rng.permutation(len(texts)).tolist()
    line = sorted(range(len(texts)), key=lambda i: (rank[texts[i]], tie[i]))
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    shift = max(counts.values(), default=0)
    source = [0] * len(texts)
    for place, case in enumerate(line):
        source[case] = line[(place + shift) % len(line)]
    return source
