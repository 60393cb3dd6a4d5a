"""Auditing what others made: a step as any callable, or scores as CSV files."""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tmca_core.audits.interface import Arm
from tmca_core.audits.scores import Numbers, Scores
from tmca_core.audits.shift import insist_alike
from tmca_core.errors import AuditInvalid, ConfigError, TmcaError

Step = Callable[[bool], Any]
"""`step(with_canary)` makes one fresh release: a number, or numbers in an array that is always as long."""

YES, NO = {"1", "1.0", "true", "yes", "member"}, {"0", "0.0", "false", "no", "non-member"}
COVARIATE = "covariate:"
NO_CONTROL = "none; membership itself as the score shows only that so many could refute the claim"
NO_POSITIVE = (
    "nothing shows that the attack behind these scores sees a leak, for there is no positive control: add rows whose arm is 'positive', "
    "scores of the same attack on the same pipeline without noise"
)


@dataclass(frozen=True)
class Table:
    """Scores of one arm by patient, in the order in which files name them: a coin dealt a patient, not a row.

    Attributes:
        score: (n,), the mean of a patient's rows; every row is a patient's where files name none.
        member: (n,) bool.
        covariates: (n, k) of `names`, means as well.
    """

    score: Numbers
    member: NDArray[np.bool_]
    covariates: Numbers
    names: tuple[str, ...]

    def scores(self) -> Scores:
        """Members and non-members apart, after the distribution check.

        Raises:
            AuditInvalid: scores or covariates that allow no conclusion.
        """
        made = Scores(self.score[self.member], self.score[~self.member]).insist()
        if self.names:
            insist_alike(self.covariates[self.member], self.covariates[~self.member], self.names)
        return made


def read_scores(path: Path) -> dict[Arm, Table]:
    """Scores by arm from one CSV file or all of a folder.

    Columns: `score`; `member` (1 or 0); where there are any, `arm` (target, positive, negative), `record` (a patient's name, the same in
    all files) and numeric covariates `covariate:NAME` of the distribution check.

    Raises:
        ConfigError: there is no such file.
        AuditInvalid: a file or a cell cannot be read, or a patient both took part and did not.
    """
    rows: dict[str, list[_Row]] = {}
    names: tuple[str, ...] | None = None
    for file in _files(path):
        columns, found = _read(file)
        if not {"score", "member"} <= set(columns):
            raise AuditInvalid(f"{file}: columns 'score' and 'member' are needed, found: {', '.join(columns) or 'none'}.")
        _insist_on_columns(file, columns)
        own = tuple(name for name in columns if name.startswith(COVARIATE))
        if names not in (None, own):
            raise AuditInvalid(f"{file}: its covariates are not those of the files before it.")
        names = own
        for line, row in found:
            arm, place = row.get("arm") or "target", f"{file}, line {line}"
            if arm not in get_args(Arm):
                raise AuditInvalid(f"{place}: arm '{arm}' is none of target, positive and negative.")
            numbers = [_number(row[name], place, name) for name in ("score", *own)]
            rows.setdefault(arm, []).append(_Row(numbers, _member(row["member"], place), (row.get("record") or "").strip(), place))
    if "target" not in rows:
        raise AuditInvalid(f"{path}: no row is of the target.")
    return {cast(Arm, arm): _table(found, names or ()) for arm, found in rows.items()}


def digest(path: Path) -> str:
    """sha256 of a file of scores; of a folder, of its files' names and digests: rows of every arm and all memberships are in it."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in _files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def distribution_check(table: Table) -> dict[str, str]:
    """Whether it was made on the scores that are judged, for the report."""
    names = [name for name, column in zip(table.names, table.covariates.T, strict=True) if np.ptp(column) > 0]
    lacking = f"the columns '{COVARIATE}NAME' are constant" if table.names else f"the files have no column '{COVARIATE}NAME'"
    missing = f"NOT MADE: {lacking}, so members and non-members may differ by more than training"
    return {"distribution check": f"passed, by {', '.join(names)}" if names else missing}


def load_step(name: str, option: str = "--step") -> Callable[..., Any]:
    """The callable `module:attribute`; modules of the working folder are found, when it is called too.

    What it and its children print goes to standard error, and what it raises is an AuditInvalid that names it, an exit of the process as
    well: a script that ends with `sys.exit(0)` or `os._exit(0)` must not end an audit as if it had passed. Ctrl-C ends it.

    Raises:
        ConfigError: there is none of that name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{option} {name}: give it as module:function, e.g. my_pipeline:one_step.")
    with _theirs(lambda fault: ConfigError(f"{option} {name}: the module cannot be imported: {fault}.")):
        found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise ConfigError(f"{option} {name}: '{module}' has no callable '{attribute}'.")

    def called(argument: Any) -> Any:
        with _theirs(lambda fault: AuditInvalid(f"{name} raised {fault}")):
            return found(argument)

    return called


@contextmanager
def _theirs(error_of: Callable[[str], TmcaError]) -> Iterator[None]:
    """Others' code runs as in the working folder, and standard output and the end of this process stay the audit's.

    Args:
        error_of: makes the error of what it raises, whose type and words it gets. Ctrl-C stays what it is.
    """
    here, own, leave = str(Path.cwd()), os.getpid(), os._exit

    def exiting(code: int) -> None:
        if os.getpid() != own:
            leave(code)
        raise SystemExit(code)

    sys.path.insert(0, here)
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        os._exit = exiting  # type: ignore[assignment]
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # those of test runners and asyncio too, which are no Exceptions
        raise error_of(f"{type(error).__name__}: {error}") from error
    finally:
        os._exit = leave
        os.dup2(kept, 1)
        os.close(kept)
        sys.path.remove(here)


def as_vector(value: Any) -> Numbers:
    """What a step released, as (d,) float64: numbers, arrays and tensors, or mappings and sequences of them.

    Raises:
        AuditInvalid: it is not real numbers.
    """
    try:
        found = _flat(value)
    except Exception as error:
        raise AuditInvalid(f"the step released something that is not numbers: {type(error).__name__}: {error}.") from None
    if not found.size:
        raise AuditInvalid("the step released nothing: there is no number to audit.")
    return found


def _flat(value: Any) -> Numbers:
    if isinstance(value, Mapping):
        return np.concatenate([_flat(value[key]) for key in sorted(value)])
    if hasattr(value, "detach"):
        value = value.detach().to(device="cpu").double().numpy()
    if isinstance(value, list | tuple) and value and not np.isscalar(value[0]):
        return np.concatenate([_flat(part) for part in value])
    found = np.asarray(value)
    if np.iscomplexobj(found):
        raise TypeError("complex numbers are two each; give their parts")
    return found.astype(np.float64).ravel()


@dataclass(frozen=True)
class _Row:
    """One row: score and covariates, and the file and line that an error names."""

    numbers: list[float]
    member: bool
    record: str
    place: str


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{path}: no CSV file of scores is there. Give a file, or a folder of *.csv.")
    return files


def _read(file: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a file, and its rows with their lines."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            return reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise AuditInvalid(f"{file} is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    except csv.Error as error:
        raise AuditInvalid(f"{file} cannot be read as CSV: {error}.") from None


def _insist_on_columns(file: Path, columns: Sequence[str]) -> None:
    """No column is read in the place of another, and none that is meant is passed over."""
    if twice := sorted({name for name in columns if list(columns).count(name) > 1}):
        raise AuditInvalid(f"{file}: the column '{twice[0]}' is there more than once: which one is meant cannot be told.")
    known = ("score", "member", "arm", "record")
    for name in columns:
        plain = name.strip().lower()
        if name not in known and (plain in known or (plain.startswith(COVARIATE[:-1]) and not name.startswith(COVARIATE))):
            raise AuditInvalid(f"{file}: the column '{name}' is none of {', '.join(known)} and {COVARIATE}NAME to the letter. Mend it.")


def _table(rows: list[_Row], names: tuple[str, ...]) -> Table:
    """Rows of one arm, averaged by patient."""
    if any(row.record for row in rows) and (bare := next((row for row in rows if not row.record), None)):
        raise AuditInvalid(f"{bare.place}: 'record' is empty and others are not. Name every row's patient, or leave the column out.")
    patients: dict[str, list[_Row]] = {}
    for number, row in enumerate(rows):
        patients.setdefault(row.record or str(number), []).append(row)
    for own in patients.values():
        if other := next((row for row in own if row.member != own[0].member), None):
            raise AuditInvalid(
                f"{other.place}: 'member' is another than in the row of the same 'record' at {own[0].place}. A patient took part or did "
                "not: mend the column, or name patients apart."
            )
    means = np.array([np.mean([row.numbers for row in own], 0) for own in patients.values()])
    return Table(means[:, 0], np.array([own[0].member for own in patients.values()]), means[:, 1:], names)


def _number(cell: str, place: str, column: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise AuditInvalid(f"{place}: '{column}' is '{cell}', which is no number.") from None


def _member(cell: str, place: str) -> bool:
    word = (cell or "").strip().lower()
    if word not in YES | NO:
        raise AuditInvalid(f"{place}: 'member' is '{cell}'; give 1 for records that took part and 0 for others.")
    return word in YES
