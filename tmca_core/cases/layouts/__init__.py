"""Public data set layouts, read into a manifest: `convert("lvit", Path("QaTa-Covid19"), Path("qata"))`.

A further layout is one module with one registered reader `(source folder) -> Listing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tmca_core.cases.layouts import languide, lvit, prolearn, sgseg
from tmca_core.cases.layouts.listing import LAYOUTS, Fault, Item, Listing
from tmca_core.cases.layouts.write import write
from tmca_core.errors import ManifestError

__all__ = ["LAYOUTS", "Fault", "Item", "Listing", "convert", "languide", "lvit", "prolearn", "sgseg"]


def convert(layout: str, src: Path, dst: Path, *, on_bad_case: Literal["skip", "fail"] = "fail") -> Path:
    """Write the data set at `src` to `dst` as `manifest.csv`, `manifest.toml`, `images/` and `masks/`.

    `src` is left as it is, and `dst` appears whole or not at all. What had to be decided (patients found in file names, splits
    that shared a patient, the side convention, masks made two-valued) is logged and written into `manifest.toml`.

    Args:
        layout: lvit, languide, sgseg or prolearn.
        src: the data set's folder.
        dst: a folder that does not exist yet or is empty.
        on_bad_case: what a row without its image, mask or report does.

    Returns:
        The path of the manifest.

    Raises:
        ConfigError: the layout is unknown.
        ManifestError: `src` does not hold this layout, rows have no match, or `dst` is not empty.
    """
    read = LAYOUTS[layout]
    if not src.is_dir():
        raise ManifestError(f"{src} is not a folder. Name the folder that holds the data set in layout '{layout}'.")
    src = src.resolve()  # its name becomes the site
    listing = read(src)
    if listing.faults and on_bad_case == "fail":
        shown = [f"{fault.place}: {fault.reason}" for fault in listing.faults]
        more = f"\n  … and {len(shown) - 10} more" if len(shown) > 10 else ""
        raise ManifestError(
            f"{src} has {len(shown)} problems beside {len(listing.items)} usable cases:\n  "
            + "\n  ".join(shown[:10])
            + more
            + "\nMend the data set, or convert with --on-bad-case skip to leave them out."
        )
    if not listing.items:
        raise ManifestError(f"{src} holds no usable case in layout '{layout}'.")
    return write(listing, layout, dst)
