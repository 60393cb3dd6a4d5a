"""ProLearn: `images/ masks/ reports/<id>.txt split.json`; one text file a case (Ye et al., arXiv:2507.11055)."""

from __future__ import annotations

import json
from pathlib import Path

from tmca_core.cases.layouts.listing import LAYOUTS, SPLITS, Fault, Folder, Listing, child, data_sets, needed, read_text
from tmca_core.errors import ManifestError


@LAYOUTS.register("prolearn")
def read(src: Path) -> Listing:
    """List a data set's folder, or a folder of them."""
    listing = Listing()
    for root in data_sets(src, lambda folder: child(folder, "split.json") is not None, "split.json, images, masks and reports"):
        table = needed(root, "split.json")
        images, masks = Folder(needed(root, "images"), "image"), Folder(needed(root, "masks"), "mask")
        reports = {path.stem.lower(): path for path in sorted(needed(root, "reports").glob("*.[tT][xX][tT]"))}
        for name, ids in _splits(table).items():
            for number, case in enumerate(ids, start=1):
                place = f"{table} '{name}' entry {number}"
                report = reports.get(case.lower())
                try:
                    text = read_text(report) if report is not None else ""
                except ManifestError as error:
                    listing.faults.append(Fault(place, str(error)))
                    continue
                if report is None:
                    listing.faults.append(Fault(place, f"'{case}': no report {root / 'reports' / case}.txt"))
                    continue
                listing.add({"name": case, "report": text}, place, images, masks, SPLITS[name.lower()], root.name)
        listing.add_unlisted(table, images, masks)
    return listing


def _splits(table: Path) -> dict[str, list[str]]:
    try:
        splits = json.loads(read_text(table))
    except ValueError as error:
        raise ManifestError(f"{table} is not JSON: {error}.") from None
    if not isinstance(splits, dict) or not all(
        isinstance(ids, list) and all(isinstance(case, str) for case in ids) for ids in splits.values()
    ):
        raise ManifestError(f"{table} must be an object of lists of case ids, one a split.")
    unknown = [name for name in splits if name.lower() not in SPLITS]
    if unknown:
        raise ManifestError(f"{table} names the split '{unknown[0]}'; known: train, valid, test.")
    return splits
