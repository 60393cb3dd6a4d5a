"""A listing becomes a folder with `manifest.csv`, `manifest.toml`, `images/` and `masks/`."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from collections import Counter
from pathlib import Path

from tmca_core.cases.layouts.listing import Item, Listing
from tmca_core.cases.layouts.masks import copy_mask
from tmca_core.cases.layouts.patients import describe, patient_of, settle_splits
from tmca_core.cases.layouts.sides import side_conventions
from tmca_core.errors import ManifestError

log = logging.getLogger(__name__)

# Data sets that the layouts were published for, by a part of their folder's name.
MODALITIES = {"qata": "chest X-ray", "mosmed": "CT", "monuseg": "histology", "kvasir": "endoscopy", "clinicdb": "endoscopy"}


def write(listing: Listing, layout: str, dst: Path) -> Path:
    """Write all items; see `layouts.convert`.

    Raises:
        ManifestError: `dst` is not empty or cannot be written.
    """
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ManifestError(f"{dst} exists and is not an empty folder. Name a new folder: nothing is overwritten.")
    items = listing.items
    names = _case_ids(items)
    splits, notes = settle_splits(items)
    conventions, reasons = side_conventions(items)
    notes = [describe(items), *notes, *reasons, *(f"Left out: {fault.place}: {fault.reason}" for fault in listing.faults)]
    staging = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for folder in ("images", "masks"):
            (staging / folder).mkdir(parents=True)
        extra = sorted({key for item in items for key in item.extra})
        changed = any(split != item.split for split, item in zip(splits, items, strict=True))
        differ = len(set(conventions.values())) > 1
        several = len(conventions) > 1  # data sets, which may use the same names for different patients
        columns = ["case_id", "patient_id", "image", "mask", "report", "split", "site"]
        columns += [*(["laterality"] if differ else []), *extra, *(["layout_split"] if changed else [])]
        treatments: Counter[str] = Counter()
        with (staging / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            rows.writeheader()
            for item, name, split in zip(items, names, splits, strict=True):
                image = name + item.image.suffix.lower()
                shutil.copyfile(item.image, staging / "images" / image)
                mask, treatment = copy_mask(item.mask, item.image, staging / "masks", name)
                treatments[treatment] += 1
                patient = f"{_slug(item.site)}-" * several + patient_of(item.name)[0]
                row = {"case_id": name, "patient_id": patient, "image": f"images/{image}", "mask": f"masks/{mask}"}
                row |= {"report": item.report, "split": split, "site": _slug(item.site), **item.extra}
                row |= {"laterality": conventions[item.site] or ""} if differ else {}
                row |= {"layout_split": item.split} if changed else {}
                rows.writerow(row)
        notes += [f"{treatment}: {count}." for treatment, count in sorted(treatments.items()) if treatment]
        _write_sidecar(staging / "manifest.toml", layout, items, None if differ else conventions[items[0].site], notes)
        if dst.exists():
            dst.rmdir()
        staging.rename(dst)
    except OSError as error:
        raise ManifestError(
            f"cannot write {dst}: {error.strerror or error} ({error.filename}). Free space, or name another folder."
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for note in notes:
        log.warning("%s", note)
    return dst / "manifest.csv"


def _case_ids(items: list[Item]) -> list[str]:
    """The image's stem; with data set and split in front where several images share it (letter case aside)."""
    shared = {name for name, count in Counter(item.name.lower() for item in items).items() if count > 1}
    return [f"{_slug(item.site)}-{item.split}-{item.name}" if item.name.lower() in shared else item.name for item in items]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "all"


def _write_sidecar(path: Path, layout: str, items: list[Item], convention: str | None, notes: list[str]) -> None:
    sites = ", ".join(sorted({item.site for item in items}))
    modality = sorted({kind for item in items for part, kind in MODALITIES.items() if part in item.site.lower()})
    fields = {
        "modality": " and ".join(modality) or "unknown",
        "source": f"{sites}, layout {layout}",
        "licence": "unknown: ask the publisher of the data set",
    }
    if convention:
        fields["laterality"] = convention
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    comments = ["# " + re.sub(r"[\x00-\x1f\x7f]+", " ", note) for note in notes]
    path.write_text("\n".join([*comments, *lines]) + "\n", encoding="utf-8")
