"""SGSeg: `data/QaTa/prompts/annotation.json`, `images/<split>/{images,masks}`; captions with zone labels (Ye et al., MICCAI 2024)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tmca_core.cases.case import ZONES
from tmca_core.cases.layouts.listing import LAYOUTS, SPLITS, Fault, Folder, Listing, child, data_sets, needed, read_text
from tmca_core.errors import ManifestError


@LAYOUTS.register("sgseg")
def read(src: Path) -> Listing:
    """List a data set's folder, or a folder of them; zone labels become the column `zones`, in the captions' own sides."""
    listing = Listing()
    for root in data_sets(src, _recognise, "prompts/annotation.json and images/train/{images,masks}"):
        table = needed(needed(root, "prompts"), "annotation.json")
        for name, entries in _annotations(table).items():
            folder = needed(needed(root, "images"), name)
            images, masks = Folder(needed(folder, "images"), "image"), Folder(needed(folder, "masks"), "mask")
            for number, entry in enumerate(entries, start=1):
                place = f"{table} '{name}' entry {number}"
                if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image_path", "caption")):
                    listing.faults.append(Fault(place, "needs the texts 'image_path' and 'caption'"))
                    continue
                fields = {"name": entry["image_path"], "report": entry["caption"], **_zones(entry.get("pseudo_label"))}
                listing.add(fields, place, images, masks, SPLITS[name.lower()], root.name)
            listing.add_unlisted(table, images, masks)
    return listing


def _recognise(folder: Path) -> bool:
    prompts = child(folder, "prompts")
    return prompts is not None and child(prompts, "annotation.json") is not None


def _annotations(table: Path) -> dict[str, list[Any]]:
    try:
        annotations = json.loads(read_text(table))
    except ValueError as error:
        raise ManifestError(f"{table} is not JSON: {error}.") from None
    if not isinstance(annotations, dict) or not all(isinstance(entries, list) for entries in annotations.values()):
        raise ManifestError(f"{table} must be an object of lists, one a split.")
    unknown = [name for name in annotations if name.lower() not in SPLITS]
    if unknown:
        raise ManifestError(f"{table} names the split '{unknown[0]}'; known: train, valid, test.")
    return annotations


def _zones(label: object) -> dict[str, str]:
    """`[0, 1, 1, 0, 0, 0]` as "LM LL"; an absent or malformed label as ""."""
    named = label if isinstance(label, list) and len(label) == len(ZONES) else []
    return {"zones": " ".join(zone for zone, value in zip(ZONES, named, strict=False) if value == 1)}
