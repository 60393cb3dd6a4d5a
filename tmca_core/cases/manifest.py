"""The manifest: one table a site, one row a case. Every bad row is named with row, column and reason; none is dropped silently."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from tmca_core.cases.case import Case, Laterality, Split
from tmca_core.cases.table import Row, read_table
from tmca_core.errors import CaseError, ManifestError
from tmca_core.text.sides import swap_sides

REQUIRED = ("case_id", "patient_id", "image", "report")
OWN = (*REQUIRED, "site", "laterality", "split")  # and masks; all other columns are metadata
MASK = "mask"  # of one target; each of several has a column "mask:NAME"
SPLITS = ("train", "val", "test")
CONVENTIONS = ("patient", "image")
DEFAULT_SITE = "all"
SIDECAR = "manifest.toml"
OnBadCase = Literal["skip", "fail"]
MissingReports = Literal["skip", "use"]


@dataclass(frozen=True, slots=True)
class Skip:
    """A row that is not used, and why. Row and column as in `CaseError`."""

    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, column '{self.column}': {self.reason}"


@dataclass(frozen=True)
class Manifest:
    """A checked table; files are known to exist and are not yet read.

    Attributes:
        rows: records in the table, good and bad.
        skipped: one entry a bad row, in the table's order.
        mask_columns: the column of each target's masks, in the order of the targets; the table may lack them all.
        declared: site → side convention that the table or its sidecar states for its reports, None where neither does.
        modality, licence, source: from the sidecar `manifest.toml`, "" where absent.
        warnings: what is allowed but worth a look.
    """

    path: Path
    cases: Sequence[Case]
    skipped: Sequence[Skip]
    declared: Mapping[str, Laterality | None]
    modality: str = ""
    licence: str = ""
    source: str = ""
    rows: int = 0
    warnings: Sequence[str] = field(default_factory=tuple)
    mask_columns: Sequence[str] = (MASK,)

    @property
    def without_report(self) -> list[int]:
        """Rows of the cases that have no report."""
        return [case.row for case in self.cases if not case.report]


def in_patient_sides(report: str, laterality: Laterality) -> str:
    """The report with "left" meaning the patient's left."""
    return report if laterality == "patient" else swap_sides(report)


def read_manifest(
    path: Path,
    *,
    laterality: Literal["auto"] | Laterality = "auto",
    on_bad_case: OnBadCase = "skip",
    targets: Sequence[str] = (),
    missing_reports: MissingReports = "skip",
    own_sides: bool = False,
) -> Manifest:
    """Read and check a manifest (CSV or Parquet) and the sidecar `manifest.toml` beside it.

    Paths are relative to the manifest's folder and may not leave it, not even through symbolic links. Windows'
    backslashes are read as slashes.

    Args:
        path: the table.
        laterality: side convention of reports where neither table nor sidecar states one; "auto" takes "patient" until
            `check.resolve_laterality` has measured it.
        on_bad_case: "skip" lists bad rows in `Manifest.skipped`, "fail" raises the first.
        targets: names of what is segmented. Several have a column `mask:NAME` each, and a case has a file for all of them or for
            none: a target that nobody drew must not be taught as absent; where it is absent its mask is all 0. One target has the
            column `mask:NAME` where the table has it, else `mask`.
        missing_reports: a case with an empty cell in `report` is a bad row ("skip"), or a case with report "" ("use"). The column
            itself is needed either way.
        own_sides: a cell in `laterality` speaks for its own row alone, as private training needs it, and not for its whole site; a row
            for which nothing speaks is a bad row.

    Raises:
        ManifestError: the table as a whole cannot be used, or no row of it.
        CaseError: a row is bad and `on_bad_case` is "fail".
    """
    manifest = scan_manifest(path, laterality=laterality, targets=targets, missing_reports=missing_reports, own_sides=own_sides)
    if on_bad_case == "fail" and manifest.skipped:
        first = manifest.skipped[0]
        raise CaseError(first.row, first.column, first.reason)
    if not manifest.cases:
        shown = "; ".join(str(skip) for skip in manifest.skipped[:3])
        raise ManifestError(f"{path}: none of the {manifest.rows} rows can be used. The first: {shown}")
    return manifest


def scan_manifest(
    path: Path,
    *,
    laterality: Literal["auto"] | Laterality = "auto",
    targets: Sequence[str] = (),
    missing_reports: MissingReports = "skip",
    own_sides: bool = False,
) -> Manifest:
    """`read_manifest` that always goes on to the end, also when no row is good."""
    table = read_table(path)
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        hint = (
            " A table without any report has the column too, empty: a misspelt one would be taken for it." if missing == ["report"] else ""
        )
        raise ManifestError(
            f"{path}, row 1: column {names} is missing. Required: {', '.join(REQUIRED)}; found: {', '.join(table.columns)}.{hint}"
        )
    if not table.rows:
        raise ManifestError(f"{path} has a header and no rows.")
    sidecar, warnings = _read_sidecar(path.parent / SIDECAR)
    mask_columns, about_masks = _mask_columns(path, table.columns, targets)
    reader = _Reader(path.parent, _convention(sidecar.get("laterality", "")), laterality, mask_columns, missing_reports, own_sides)
    cases, skipped = [], []
    for row in table.rows:
        try:
            cases.append(reader.case(row))
        except CaseError as error:
            skipped.append(Skip(error.row, error.column, error.reason))
    cases = [reader.with_site_convention(case) for case in cases]
    for patient, sites in reader.sites_of.items():
        if len(sites) > 1:
            warnings.append(
                f"patient '{patient}' occurs at sites {', '.join(sorted(sites))}: right for one person; else prefix ids with the site."
            )
    warnings += about_masks
    about = {name: sidecar.get(name, "") for name in ("modality", "licence", "source")}
    declared = {site: reader.declared.get(site, reader.sidecar) for site in dict.fromkeys(case.site for case in cases)}
    return Manifest(path, cases, skipped, declared, **about, rows=len(table.rows), warnings=tuple(warnings), mask_columns=mask_columns)


def _mask_columns(path: Path, columns: Sequence[str], targets: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The column of each target, and a warning where the table has none of them."""
    wanted = tuple(f"{MASK}:{name}" for name in targets)
    if len(wanted) < 2 and not set(wanted) & set(columns):
        wanted = (MASK,)
    lacking = [name for name in wanted if name not in columns]
    named = [name.removeprefix(f"{MASK}:") for name in columns if name.startswith(f"{MASK}:")]
    if lacking and len(lacking) < len(wanted):
        raise ManifestError(
            f"{path}, row 1: column '{lacking[0]}' is missing. Every target of data.targets has a column '{MASK}:NAME'; the table has "
            f"masks of {', '.join(named)}."
        )
    if not lacking:
        return wanted, []
    hint = f" It has masks of {', '.join(named)}: choose with data.targets / --targets." if named else ""
    return wanted, [f"there is no '{lacking[0]}' column: the cases serve prediction only.{hint}"]


def _read_sidecar(path: Path) -> tuple[dict[str, str], list[str]]:
    if not path.exists():
        return {}, []
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ManifestError(f"cannot read {path}: {error}.") from None
    known = ("laterality", "modality", "licence", "source")
    for name in known:
        if not isinstance(values.get(name, ""), str):
            raise ManifestError(f"{path}: '{name}' must be text, got {values[name]!r}.")
    if values.get("laterality", "patient") not in CONVENTIONS:
        raise ManifestError(f"{path}: laterality '{values['laterality']}' is unknown; it is 'patient' or 'image'.")
    unknown = sorted(set(values) - set(known))
    warnings = [f"{path.name}: key '{name}' is not used; known: {', '.join(known)}." for name in unknown]
    return {name: values[name] for name in known if name in values}, warnings


def _convention(text: str) -> Laterality | None:
    return cast(Laterality, text) if text in CONVENTIONS else None


class _Reader:
    """Row by row, with what earlier rows said of ids, splits and conventions."""

    def __init__(
        self,
        folder: Path,
        sidecar: Laterality | None,
        fallback: Literal["auto"] | Laterality,
        mask_columns: Sequence[str],
        missing_reports: MissingReports,
        own_sides: bool,
    ) -> None:
        self.own_sides, self.stated = own_sides, dict[int, Laterality]()
        self.mask_columns, self.missing_reports = mask_columns, missing_reports
        self.folder, self.root, self.sidecar = folder, folder.resolve(), sidecar
        self.fallback: Laterality = "patient" if fallback == "auto" else fallback
        self.mute = own_sides and sidecar is None and fallback == "auto"
        self.declared: dict[str, Laterality] = {}
        self.declared_in: dict[str, int] = {}
        self.sites_of: dict[str, set[str]] = {}
        self.row_of: dict[str, int] = {}
        self.split_of: dict[str, tuple[str, int]] = {}
        self.listings: dict[Path, dict[str, str] | None] = {}

    def case(self, row: Row) -> Case:
        """The case of a row, still in the fallback convention where the row states none.

        Raises:
            CaseError: the first thing wrong with it.
        """
        if row.fault:
            raise CaseError(row.number, "*", row.fault)
        value = {name: row.values.get(name, "").strip() for name in OWN}
        for name in REQUIRED:
            if not value[name] and (name != "report" or self.missing_reports == "skip"):
                also = ", or use cases without reports: data.missing_reports=use / --missing-reports use" if name == "report" else ""
                raise CaseError(row.number, name, f"is empty. Every case needs one; take the row out if there is none{also}.")
        case_id, patient_id, site = value["case_id"], value["patient_id"], value["site"] or DEFAULT_SITE
        if case_id in self.row_of:
            raise CaseError(row.number, "case_id", f"'{case_id}' is already the case of row {self.row_of[case_id]}. Case ids are unique.")
        if re.search(r'[\\/\x00-\x1f<>:"|?*]', site) or site.startswith("."):
            raise CaseError(row.number, "site", f"'{site}' cannot name a folder, and a site's results get one of its name.")
        split, laterality = value["split"].lower(), value["laterality"].lower()
        if split not in ("", *SPLITS):
            raise CaseError(row.number, "split", f"'{value['split']}' is unknown; it is train, val, test, or empty.")
        if laterality not in ("", *CONVENTIONS):
            raise CaseError(row.number, "laterality", f"'{value['laterality']}' is unknown; it is patient, image, or empty.")
        if self.mute and not laterality:
            raise CaseError(
                row.number,
                "laterality",
                "is empty, and neither manifest.toml nor data.laterality says whose left reports mean. In private training it is not "
                "measured, since one patient could decide about all others' reports: measure it with `tmca data check` and declare it.",
            )
        self._check_split(row.number, patient_id, split)
        self._check_convention(row.number, site, laterality)
        image = self._file(row.number, "image", value["image"])
        masks = self._masks(row)
        # Only a row that is used may speak for its patient and site.
        self.row_of[case_id] = row.number
        self.split_of.setdefault(patient_id, (split, row.number))
        self.sites_of.setdefault(patient_id, set()).add(site)
        if (stated := _convention(laterality)) and self.own_sides:
            self.stated[row.number] = stated
        elif stated:
            self.declared.setdefault(site, stated)
            self.declared_in.setdefault(site, row.number)
        metadata = {name: text for name, text in row.values.items() if name not in OWN and name.partition(":")[0] != MASK}
        report = value["report"]
        return Case(case_id, patient_id, site, image, masks, report, report, self.fallback, cast(Split, split), row.number, metadata)

    def with_site_convention(self, case: Case) -> Case:
        """The case in the convention its site states anywhere in the table, else the sidecar's, else the fallback; see `own_sides`."""
        laterality = self.stated.get(case.row) or self.declared.get(case.site) or self.sidecar or self.fallback
        return replace(case, laterality=laterality, text=in_patient_sides(case.report, laterality))

    def _check_split(self, row: int, patient: str, split: str) -> None:
        known, where = self.split_of.get(patient, (split, row))
        if known != split:
            this, that = (f"'{name}'" if name else "no split" for name in (split, known))
            raise CaseError(row, "split", f"patient '{patient}' has {this} here and {that} in row {where}. A patient belongs to one split.")

    def _check_convention(self, row: int, site: str, laterality: str) -> None:
        known = self.declared.get(site)
        if laterality and known and known != laterality:
            raise CaseError(
                row,
                "laterality",
                f"site '{site}' states '{laterality}' here and '{known}' in row {self.declared_in[site]}. "
                "One site has one convention; give the two sources different site names.",
            )

    def _masks(self, row: Row) -> tuple[Path, ...]:
        """A file a target, or () where no cell has one."""
        cells = {column: row.values.get(column, "").strip() for column in self.mask_columns}
        if not any(cells.values()):
            return ()
        if empty := [column for column, text in cells.items() if not text]:
            raise CaseError(
                row.number,
                empty[0],
                "is empty, while another target of the case has a mask. Where it is absent give an all-zero mask; where nobody drew it "
                "take the row out, or it would be learnt as absent.",
            )
        return tuple(self._file(row.number, column, text) for column, text in cells.items())

    def _file(self, row: int, column: str, text: str) -> Path:
        if re.match(r"[A-Za-z]:|[\\/]|~[\\/]", text):
            raise CaseError(row, column, f"'{text}' is an absolute path. Paths are relative to the manifest's folder.")
        relative = text.replace("\\", "/")
        try:
            place = (self.folder / relative).resolve()
            if not place.is_relative_to(self.root):
                raise CaseError(
                    row, column, f"'{text}' leads out of the manifest's folder. Copy the file into it; links out of it are refused too."
                )
            if place.is_dir():
                raise CaseError(row, column, f"'{text}' is a folder, not a file.")
            if not place.is_file():
                raise CaseError(row, column, f"there is no file '{text}'{self._near(self.folder / relative)}.")
        except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL byte, loop of links
            raise CaseError(row, column, f"'{text[:80]}' is not a usable path ({error.__class__.__name__}: {str(error)[:80]}).") from None
        return self.folder / place.relative_to(self.root)  # as resolved: "a.png/../b.png" opens nowhere as it is written

    def _near(self, path: Path) -> str:
        """Hint where only upper and lower case differ, as between Windows and Linux."""
        if path.parent not in self.listings:
            exists = path.parent.is_dir()
            self.listings[path.parent] = {other.name.lower(): other.name for other in path.parent.iterdir()} if exists else None
        names = self.listings[path.parent]
        if names is None:
            return f" (nor a folder '{path.parent.name}')"
        name = names.get(path.name.lower())
        return f" (there is '{name}': upper and lower case differ)" if name else ""
