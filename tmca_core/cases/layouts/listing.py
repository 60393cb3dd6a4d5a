"""What the readers of the layouts share: items and faults, file matching, tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tmca_core.cases.case import Split
from tmca_core.errors import ManifestError
from tmca_core.registry import Registry

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_PREFIX = "mask_"
SPLITS: dict[str, Split] = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Item:
    """One case as the layout lists it.

    Attributes:
        name: stem of the image's file name.
        site: name of the data set.
        place: table and row, for messages.
        extra: further columns.
    """

    name: str
    image: Path
    mask: Path
    report: str
    split: Split | Literal[""]
    site: str
    place: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """An entry that cannot become a case: where it is and why."""

    place: str
    reason: str


@dataclass
class Listing:
    """All entries of a data set."""

    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, entry: Mapping[str, str], place: str, images: Folder, masks: Folder, split: Split | Literal[""], site: str) -> None:
        """File one entry `{"name", "report", …}`: an item where image and mask are found and the report has words, else a fault."""
        name, report = stem(entry["name"]), entry["report"].strip()
        if not name:
            problems = ["the image's name is empty"]
        else:
            problems = [problem for problem in (images.problem(name, place), masks.problem(name, place)) if problem]
            problems += [] if report else ["the report is empty"]
        if problems:
            self.faults.append(Fault(place, f"'{entry['name']}': " + "; ".join(problems)))
        else:
            extra = {key: value for key, value in entry.items() if key not in ("name", "report")}
            image = images.take(name)
            self.items.append(Item(stem(image.name), image, masks.take(name), report, split, site, place, extra))

    def add_unlisted(self, table: Path, *folders: Folder) -> None:
        """A fault for every file that no entry of `table` asked for."""
        for folder in folders:
            for path in folder.untaken():
                self.faults.append(Fault(str(path), f"{folder.kind} without an entry in {table}"))


LAYOUTS: Registry[Callable[[Path], Listing]] = Registry("layout")


def stem(name: str) -> str:
    """File name without folders, `mask_` prefix and image suffix: `GTs\\mask_a.PNG` is `a`."""
    name = name.strip().replace("\\", "/").rsplit("/", 1)[-1]
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name[len(MASK_PREFIX) :] if name.lower().startswith(MASK_PREFIX) else name


class Folder:
    """Images or masks of one folder, found by stem whatever their suffix, prefix and letter case."""

    def __init__(self, path: Path, kind: Literal["image", "mask"]) -> None:
        if not path.is_dir():
            raise ManifestError(f"folder {path} is missing: it holds the {kind}s of this layout.")
        self.path, self.kind = path, kind
        self._files: dict[str, list[Path]] = {}
        self._taken: dict[str, str] = {}  # by the entry at which place
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                self._files.setdefault(stem(file.name).lower(), []).append(file)

    def problem(self, name: str, place: str) -> str | None:
        """Why the entry at `place` cannot have a file for `name`, or None."""
        files = self._files.get(name.lower(), [])
        first = self._taken.setdefault(name.lower(), place)
        if first != place:
            return f"its {self.kind} already belongs to the entry at {first}"
        if not files:
            return f"no {self.kind} of that name in {self.path}"
        if len(files) > 1:
            return f"{len(files)} {self.kind}s of that name in {self.path}: {', '.join(file.name for file in files)}"
        return None

    def take(self, name: str) -> Path:
        """The file for `name`; `problem` found none."""
        return self._files[name.lower()][0]

    def untaken(self) -> list[Path]:
        """Files that nobody asked for."""
        return [file for key, files in self._files.items() if key not in self._taken for file in files]


def child(parent: Path, *names: str) -> Path | None:
    """The entry of `parent` with one of `names`, letter case aside."""
    wanted = {name.lower() for name in names}
    found = sorted(entry for entry in parent.iterdir() if entry.name.lower() in wanted) if parent.is_dir() else []
    return found[0] if found else None


def needed(parent: Path, *names: str) -> Path:
    """As `child`.

    Raises:
        ManifestError: there is none.
    """
    found = child(parent, *names)
    if found is None:
        raise ManifestError(f"{parent / names[0]} is missing. Is {parent} the right folder, and the layout the right one?")
    return found


def data_sets(src: Path, recognise: Callable[[Path], bool], shape: str) -> list[Path]:
    """`src` itself where it is a data set, else the data sets directly inside or in its `data`/`datasets` folder.

    Raises:
        ManifestError: there is none.
    """
    if recognise(src):
        return [src]
    places = [src, *(inner for inner in (child(src, "data"), child(src, "datasets")) if inner is not None)]
    found = [entry for place in places for entry in sorted(place.iterdir()) if entry.is_dir() and recognise(entry)]
    if not found:
        raise ManifestError(f"{src} does not look like this layout: expected {shape}, in it or in a folder directly inside.")
    return found


def read_text(path: Path) -> str:
    """A UTF-8 text file, byte-order mark or not.

    Raises:
        ManifestError: it cannot be read or is of another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}.") from None


def table_rows(path: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV or XLSX table as (row number, {name: cell}); the header is row 1, empty rows are passed over.

    Args:
        path: the table.
        columns: our name to the headers it may have, letter case aside.

    Raises:
        ManifestError: the table cannot be read or has no such column.
    """
    rows = _xlsx_cells(path) if path.suffix.lower() == ".xlsx" else csv.reader(io.StringIO(read_text(path), newline=""))
    header = [cell.strip().lower() for cell in next(iter(rows), [])]
    places: dict[str, int] = {}
    for name, accepted in columns.items():
        hits = [header.index(option.lower()) for option in accepted if option.lower() in header]
        if not hits:
            raise ManifestError(f"{path} has no column '{accepted[0]}'; it has: {', '.join(header) or 'none'}.")
        places[name] = hits[0]
    for number, cells in enumerate(rows, start=2):
        if any(cell.strip() for cell in cells):
            yield number, {name: cells[place] if place < len(cells) else "" for name, place in places.items()}


def _xlsx_cells(path: Path) -> Iterator[list[str]]:
    import zipfile

    from openpyxl import load_workbook

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 500 * 2**20:
                raise ManifestError(f"{path} unpacks to more than 500 MB: not a table of captions. Save the captions alone.")
        book = load_workbook(path, read_only=True, data_only=True)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ManifestError(f"{path} is not a readable Excel workbook: {error}. Save it again as .xlsx.") from None
    try:
        for row in book.worksheets[0].iter_rows(values_only=True):
            yield ["" if cell is None else str(cell) for cell in row]
    finally:
        book.close()
