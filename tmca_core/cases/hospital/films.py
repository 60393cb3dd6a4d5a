"""Films into a manifest: every object of a source is looked at, the usable ones are written as PNG, the others are listed."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tmca_core.cases.hospital.objects import Film, Masks, Unusable, Wanted, read_object
from tmca_core.cases.hospital.pseudonyms import Pseudonyms
from tmca_core.cases.hospital.rows import NAME, Rows, Skipped, reasons
from tmca_core.cases.manifest import DEFAULT_SITE, MASK
from tmca_core.errors import ManifestError
from tmca_core.run import write_atomically

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """One object of a source, before anybody has looked at it.

    Attributes:
        where: file or address; may name a person.
        open: gives its file for a while, or raises `Unusable`.
    """

    where: str
    open: Callable[[], AbstractContextManager[Path]]


@dataclass
class Imported:
    """What an import of films did.

    Attributes:
        manifest: the table.
        films: written anew. `known`: were there before. `masks`: cases that got their masks now.
        skipped: every other object, in order.
        personal: films whose header names somebody; what is written has no header.
        unsaid: films that do not say whether text is burned into their pixels.
    """

    manifest: Path
    objects: int = 0
    films: int = 0
    known: int = 0
    masks: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    personal: int = 0
    unsaid: int = 0
    patients: int = 0
    cases: int = 0

    def to_json(self, show: bool = False) -> dict[str, Any]:
        """One JSON object, without the hospital's own ids unless they are asked for."""
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        skipped = {"skipped": [one.to_json(show) for one in self.skipped], "reasons": dict(reasons(self.skipped))}
        return {"manifest": str(self.manifest), **numbers, **skipped}


def folder_of(source: Path) -> list[Source]:
    """Every file below a folder, by name; links are not followed out of it.

    Raises:
        ManifestError: there is no such folder.
    """
    if not source.is_dir():
        raise ManifestError(f"{source} is no folder. Give a folder of DICOM files, or the https address of a DICOMweb server.")
    root = source.resolve()
    files = sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return [Source(str(path.relative_to(root)), partial(_here, path, root)) for path in files]


@contextmanager
def _here(path: Path, root: Path) -> Iterator[Path]:
    if not path.resolve().is_relative_to(root):
        raise Unusable("is a link that leads out of the folder.")
    yield path


def import_films(
    sources: Sequence[Source],
    destination: Path,
    ids: Pseudonyms,
    *,
    site: str = DEFAULT_SITE,
    wanted: Wanted | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Write every usable film and mask below `destination` and add a row a film to its manifest.

    Pixels are written as `read_image` would give them of the DICOM file, without any header. A film that is there already stays as
    it is. The report's column is left empty: `tmca data fhir` fills it.

    Args:
        sources: objects, films and segmentations in any order.
        destination: folder of the manifest; made for its owner only.
        ids: of the site.
        site: what the column says.
        wanted: which films.
        progress: called with (done, all).

    Raises:
        ManifestError: the folder's ids are of another key, its manifest is damaged, or it cannot be written.
        ConfigError: a segmentation is met and highdicom is not installed.
    """
    wanted = wanted or Wanted()
    columns = [f"{MASK}:{name}" for name in wanted.targets] if len(wanted.targets) > 1 else [MASK]
    manifest = destination / NAME
    try:
        destination.mkdir(parents=True, exist_ok=True, mode=0o700)
        ids.hold(destination)
        for folder in ("images", "masks"):
            (destination / folder).mkdir(exist_ok=True, mode=0o700)
        rows, done, seen, drawn = Rows.read(manifest, columns), Imported(manifest), Counter[str](), dict[str, tuple[int, str]]()
        try:
            for number, source in enumerate(sources, start=1):
                done.objects = number
                try:
                    with source.open() as path:
                        found = read_object(path, wanted, ids, number)
                    if isinstance(found, Masks):
                        _keep_masks(destination, found, drawn, number, source.where)
                    else:
                        _keep_film(destination, found, rows, done, seen, site)
                except Unusable as fault:
                    done.skipped.append(Skipped(number, fault.id, fault.reason, source.where))
                if progress is not None:
                    progress(number, len(sources))
        finally:  # an import that is interrupted keeps what it has
            _attach(destination, drawn, rows, done, columns)
            rows.write(manifest)
    except OSError as error:
        raise ManifestError(f"cannot write to {destination}: {error.strerror or error}. Repeat the import when it can be.") from None
    done.skipped.sort(key=lambda one: one.number)
    done.cases, done.patients = len(rows.rows), len(rows.by("patient_id"))
    return done


def _keep_film(destination: Path, film: Film, rows: Rows, done: Imported, seen: Counter[str], site: str) -> None:
    seen[film.case_id] += 1
    if seen[film.case_id] > 1:
        raise Unusable("is a film that came before in this import, under the same SOPInstanceUID.", film.case_id)
    if film.header is not None:
        done.personal += bool(film.header.tags)
        done.unsaid += film.header.burned_in is None
    if film.case_id in rows.rows:
        done.known += 1
        return
    image = f"images/{film.case_id}.png"
    _save(film.pixels, destination / image)
    about = {"study": film.study, "accession": film.accession, "modality": film.modality, "view": film.view}
    rows.rows[film.case_id] = {"case_id": film.case_id, "patient_id": film.patient_id, "site": site, "image": image, **about}
    done.films += 1


def _keep_masks(destination: Path, masks: Masks, drawn: dict[str, tuple[int, str]], number: int, where: str) -> None:
    """Put a film's masks aside; which film they belong to may come later."""
    if masks.case_id in drawn:
        raise Unusable("is a second segmentation of one film; the first one is used. Leave out what does not count.", masks.case_id)
    drawn[masks.case_id] = number, where
    for target, mask in masks.masks.items():
        name = target if len(masks.masks) > 1 else ""
        _save(mask * np.uint8(255), _mask_path(destination, masks.case_id, name, ".new.png"))


def _attach(destination: Path, drawn: dict[str, tuple[int, str]], rows: Rows, done: Imported, columns: Sequence[str]) -> None:
    """Give every film its masks; what belongs to no film, or does not fit it, is removed and listed."""
    targets = [column.partition(":")[2] for column in columns]
    for case_id, (number, where) in drawn.items():
        fresh = [_mask_path(destination, case_id, target, ".new.png") for target in targets]
        reason = _unfit(destination, rows.rows.get(case_id), fresh, columns)
        if reason:
            for path in fresh:
                path.unlink()
            done.skipped.append(Skipped(number, case_id, reason, where))
            continue
        for target, column, path in zip(targets, columns, fresh, strict=True):
            final = _mask_path(destination, case_id, target, ".png")
            path.replace(final)
            rows.rows[case_id][column] = final.relative_to(destination).as_posix()
        done.masks += 1


def _unfit(destination: Path, row: dict[str, str] | None, masks: Iterable[Path], columns: Sequence[str]) -> str:
    if row is None:
        return "is a segmentation of a film that is not in the table: import its film too."
    if any(row.get(column) for column in columns):
        return "is a segmentation of a film that has its masks already; they stay."
    size = _size(destination / row["image"])
    return "" if all(_size(path) == size for path in masks) else "is a segmentation of another size than its film."


def _mask_path(destination: Path, case_id: str, target: str, suffix: str) -> Path:
    return destination / "masks" / f"{case_id}{f'-{target}' if target else ''}{suffix}"


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=("PNG",)) as image:
        return image.size


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    """Whole or not at all: an import that is stopped leaves no half film behind."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), private=True)
