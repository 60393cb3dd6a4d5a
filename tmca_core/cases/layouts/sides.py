"""Which side "left" means in a public data set: measured where it can be, known by name, or left open."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from tmca_core.cases.case import Case, Laterality
from tmca_core.cases.images import open_raster
from tmca_core.cases.laterality import FEWEST, measure_laterality
from tmca_core.cases.layouts.listing import Item
from tmca_core.errors import ImageError
from tmca_core.text.findings import parse

SIDE = 64  # pixels at which centroids are taken
# QaTa-COV19's file names. Its captions use image sides: 96 to 97 % of 1,066 one-sided training captions agree with them.
QATA = re.compile(r"(covid_\d+$|sub-s\d+_ses-|cxr_s\d+-e\d+)", re.I)


def side_conventions(items: Sequence[Item]) -> tuple[dict[str, Laterality | None], list[str]]:
    """Data set → its convention (None where nothing tells), and a sentence on how each is known."""
    conventions: dict[str, Laterality | None] = {}
    notes = []
    for site in sorted({item.site for item in items}):
        conventions[site], reason = _of_one([item for item in items if item.site == site])
        notes.append(f"{site}: side convention of the reports: {conventions[site] or 'not stated'}; {reason}.")
    return conventions, notes


def _of_one(items: Sequence[Item]) -> tuple[Laterality | None, str]:
    cases, masks = [], []
    for item in items:
        mask = _small(item) if parse(item.report).one_sided else None
        if mask is not None:
            cases.append(Case(item.name, item.name, item.site, item.image, (item.mask,), item.report, item.report, "patient"))
            masks.append(mask)
    sides = measure_laterality(cases, torch.stack(masks) if masks else torch.zeros((0, 1, SIDE, SIDE), dtype=torch.uint8))
    number = sides.one_sided_cases
    better: Laterality = "patient" if sides.patient_agreement >= sides.image_agreement else "image"
    seen = f"{round(sides.agreement * number)} of {number} one-sided reports agree with {better.upper()} sides"
    if sides.measured:
        return sides.measured, f"measured on the masks: {seen}"
    cause = f"fewer than {FEWEST} can be measured" if number < FEWEST else "the masks do not decide"
    if sum(bool(QATA.match(item.name)) for item in items) > len(items) / 2:
        return "image", f"known of QaTa-COV19's captions; {cause} ({seen})"
    if number and sides.agreement == 1:
        return better, f"{seen}, but {cause}: check it"
    return None, f"{cause} ({seen}), so `tmca` will take patient sides: check it"


def _small(item: Item) -> torch.Tensor | None:
    """(1, SIDE, SIDE) uint8 of 0 and 1, or None for a mask that cannot be read (the mask rules will name it)."""
    try:
        mask = np.asarray(open_raster(item.mask).convert("L"))
    except ImageError:
        return None
    binary = Image.fromarray(np.where(mask * 2.0 > mask.max(), 255, 0).astype(np.uint8))
    return torch.from_numpy(np.array(binary.resize((SIDE, SIDE), Image.Resampling.BOX)) > 0).to(torch.uint8)[None]
