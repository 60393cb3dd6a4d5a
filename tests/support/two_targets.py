"""A made-up manifest with two targets: the square that the report names, and the bar that every second film has. They may overlap."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48
COLUMNS = ("case_id", "patient_id", "site", "image", "mask:square", "mask:bar", "report", "laterality")


def write(folder: Path, *, sites: int = 2, cases: int = 8, silent: int = 0, **cells: dict[str, str]) -> Path:
    """One case a patient. The last `silent` cases of a site have no report and no square; `cells` replaces cells of a case by id."""
    (folder / "f").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for site in "abcdefgh"[:sites]:
            for i in range(cases):
                name, named = f"{site}{i}", i < cases - silent
                left, bar = i % 2 == 0, i % 4 < 2
                film = rng.integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
                masks = {"square": np.zeros((SIDE, SIDE), np.uint8), "bar": np.zeros((SIDE, SIDE), np.uint8)}
                film[10:26, 4:20] = film[10:26, 28:44] = 150
                if named:
                    masks["square"][10:26, slice(28, 44) if left else slice(4, 20)] = 255
                if bar:
                    film[20:30, 8:40] = 240
                    masks["bar"][20:30, 8:40] = 255
                Image.fromarray(film).save(folder / "f" / f"{name}.png")
                row = {"case_id": name, "patient_id": f"p-{name}", "site": site, "image": f"f/{name}.png", "laterality": "patient"}
                row["report"] = f"Consolidation in the {'left' if left else 'right'} lung." if named else ""
                for target, mask in masks.items():
                    Image.fromarray(mask).save(folder / "f" / f"{name}-{target}.png")
                    row[f"mask:{target}"] = f"f/{name}-{target}.png"
                writer.writerow(row | cells.get(name, {}))
    return folder / "cases.csv"
