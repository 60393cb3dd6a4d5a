"""Published figures that a run is held against. Pooled and per-image Dice differ by several points: they are never mixed.

Figures are as the papers print them (or as later papers print them of a baseline); test splits, input sizes and training data
differ between papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Metric = Literal["pooled", "pooled?", "per image"]
"""How a mean was taken: over all pixels, presumably over all pixels (the source does not say), or over images."""


@dataclass(frozen=True)
class Figure:
    """One published result on a data set's test cases; Dice and IoU are shares 0..1, None where not on record.

    Attributes:
        year: of the method.
        text: the method reads a text with every image.
    """

    method: str
    year: int
    metric: Metric
    dice: float
    iou: float | None = None
    text: bool = True


PUBLISHED: Mapping[str, tuple[Figure, ...]] = {
    "qata-cov19": (
        Figure("SSA", 2025, "pooled?", 0.9165),
        Figure("TGC-Net", 2025, "pooled?", 0.9054),
        Figure("FMISeg", 2025, "pooled", 0.9122, 0.8384),
        Figure("Ariadne's Thread", 2023, "pooled", 0.8978, 0.8145),
        Figure("U-Net", 2015, "pooled", 0.8299, 0.7092, text=False),
        Figure("C2Seg", 2026, "per image", 0.8525, 0.7697),
        Figure("RecLMIS", 2024, "per image", 0.8522, 0.7700),
        Figure("LViT", 2023, "per image", 0.8366, 0.7511),
        Figure("U-Net", 2015, "per image", 0.7902, 0.6946, text=False),
    ),
    "mosmed-plus": (
        Figure("SSA", 2025, "pooled?", 0.8037),
        Figure("TGC-Net", 2025, "pooled?", 0.8094),
        Figure("C2Seg", 2026, "per image", 0.7781),
        Figure("RecLMIS", 2024, "per image", 0.7748, 0.6507),
        Figure("LViT", 2023, "per image", 0.7457, 0.6133),
        Figure("U-Net", 2015, "per image", 0.6460, 0.5073, text=False),
    ),
    # TGANet (arXiv 2205.04280) and PraNet (arXiv 2006.11392) print means over images; the U-Net is the baseline in the paper
    # of Dual Cross-Attention (arXiv 2303.17696), which does not say. TGANet's words are size and number, told in training.
    "kvasir-seg": (
        Figure("U-Net", 2015, "pooled?", 0.8299, 0.7101, text=False),
        Figure("TGANet", 2022, "per image", 0.898, 0.833),
        Figure("PraNet", 2020, "per image", 0.898, text=False),
    ),
    "cvc-clinicdb": (
        Figure("U-Net", 2015, "pooled?", 0.8963, 0.8143, text=False),
        Figure("TGANet", 2022, "per image", 0.9457),
    ),
}
"""By the name that `evaluation.published` gives."""


def figures(name: str, *, pooled: bool) -> list[Figure]:
    """Published figures of a data set, pooled (said or presumed) or per image, highest Dice first; [] where none is on record."""
    return sorted((f for f in PUBLISHED.get(name, ()) if (f.metric == "per image") is not pooled), key=lambda f: -f.dice)
