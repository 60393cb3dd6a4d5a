"""LanGuideMedSeg: `QaTa-COV19-v2/{prompt/{train,test}.csv, {Train,Test}/{Images,GTs}}`; Image is `mask_*.png`.

Zhong et al., Ariadne's Thread, MICCAI 2023.
"""

from __future__ import annotations

from pathlib import Path

from tmca_core.cases.layouts.listing import LAYOUTS, SPLITS, Folder, Listing, child, data_sets, needed, table_rows


@LAYOUTS.register("languide")
def read(src: Path) -> Listing:
    """List a data set's folder, or a folder of them; the layout names no validation cases."""
    listing = Listing()
    for root in data_sets(src, lambda folder: child(folder, "prompt") is not None, "prompt/train.csv, Train/Images and Train/GTs"):
        tables = needed(root, "prompt")
        for name in ("train", "valid", "val", "test"):
            table = child(tables, f"{name}.csv")
            if table is None and name in ("valid", "val"):
                continue
            table = table or needed(tables, f"{name}.csv")
            folder = needed(root, name)
            images, masks = Folder(needed(folder, "Images"), "image"), Folder(needed(folder, "GTs", "Masks"), "mask")
            for row, entry in table_rows(table, {"name": ("Image",), "report": ("Description",)}):
                listing.add(entry, f"{table} row {row}", images, masks, SPLITS[name], root.name)
            listing.add_unlisted(table, images, masks)
    return listing
