"""The shared nouns: a case on disk, a set of cases in memory, and the side conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Laterality = Literal["patient", "image"]
Split = Literal["train", "val", "test"]

# Zone order everywhere: what the PATIENT calls left comes first.
ZONES = ("LU", "LM", "LL", "RU", "RM", "RL")


@dataclass(frozen=True, slots=True)
class Case:
    """One image, its report and (for training and evaluation) its masks.

    Attributes:
        masks: a file a target, in the order of `data.targets`; () where the case has none.
        report: as written at the site, in the site's own side convention; "" where there is none.
        text: the same in PATIENT sides ("left" is the patient's left, on the image's right); what networks read.
        laterality: convention of `report`.
        split: "" where the manifest does not say.
        row: line of the manifest (header is 1), for messages.
        metadata: every further column; never leaves the site.
    """

    case_id: str
    patient_id: str
    site: str
    image: Path
    masks: tuple[Path, ...]
    report: str
    text: str
    laterality: Laterality
    split: Split | Literal[""] = ""
    row: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseTensors:
    """Decoded cases, ready for batching.

    Attributes:
        cases: N cases; `images[i]` and `masks[i]` belong to `cases[i]`.
        images: (N, C, S, S) uint8; intensities windowed to 0..255.
        masks: (N, C, S, S) uint8 of 0 and 1, a channel a target; all zero where a case has no mask.
    """

    cases: Sequence[Case]
    images: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        if not len(self.cases) == len(self.images) == len(self.masks):
            raise ValueError(f"{len(self.cases)} cases, {len(self.images)} images, {len(self.masks)} masks.")

    def __len__(self) -> int:
        return len(self.cases)

    def subset(self, indices: Sequence[int]) -> CaseTensors:
        """The cases at `indices`, in that order."""
        index = torch.as_tensor(list(indices), dtype=torch.long)
        return CaseTensors([self.cases[i] for i in indices], self.images[index], self.masks[index])

    @property
    def patients(self) -> int:
        """Number of distinct patients."""
        return len({case.patient_id for case in self.cases})
