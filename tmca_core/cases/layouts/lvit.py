"""LViT: `<task>/{Train,Val,Test}_Folder/{img,labelcol,*_text.xlsx}`; column Image holds the MASK's name (Li et al., arXiv:2206.14718)."""

from __future__ import annotations

from pathlib import Path

from tmca_core.cases.layouts.listing import LAYOUTS, SPLITS, Folder, Listing, child, data_sets, needed, table_rows
from tmca_core.errors import ManifestError

FOLDERS = ("Train_Folder", "Val_Folder", "Test_Folder")


@LAYOUTS.register("lvit")
def read(src: Path) -> Listing:
    """List a task's folder, or a folder of tasks."""
    listing = Listing()
    for task in data_sets(src, lambda folder: child(folder, *FOLDERS) is not None, "Train_Folder, Val_Folder and Test_Folder"):
        for folder in (found for name in FOLDERS if (found := child(task, name)) is not None):
            images, masks = Folder(needed(folder, "img", "images"), "image"), Folder(needed(folder, "labelcol", "labels"), "mask")
            table = _captions(folder)
            split = SPLITS[folder.name.lower().removesuffix("_folder")]
            for row, entry in table_rows(table, {"name": ("Image",), "report": ("Description", "text")}):
                listing.add(entry, f"{table} row {row}", images, masks, split, task.name)
            listing.add_unlisted(table, images, masks)
    return listing


def _captions(folder: Path) -> Path:
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".xlsx", ".csv") and "text" in p.stem.lower())
    tables = [table for table in tables if not table.name.startswith(("~", "."))]  # lock files of open workbooks
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables) or "none"
        raise ManifestError(f"{folder} must hold one table of captions (such as Train_text.xlsx), found {names}.")
    return tables[0]
