"""Auditing what others made: a step as any callable, or scores as CSV files."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tmca_core.audits.interface import Arm
from tmca_core.audits.scores import Numbers, Scores
from tmca_core.audits.shift import insist_alike
from tmca_core.errors import AuditInvalid, ConfigError

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
    """Scores of one arm as files have them, in their order.

    Attributes:
        score: (n,).
        member: (n,) bool.
        record: n names of patients; every row its own where files name none.
        covariates: (n, k) of `names`.
    """

    score: Numbers
    member: NDArray[np.bool_]
    record: tuple[str, ...]
    covariates: Numbers
    names: tuple[str, ...]

    def scores(self) -> Scores:
        """Members and non-members apart, after the distribution check.

        Raises:
            AuditInvalid: scores or covariates that allow no conclusion.
        """
        members, others = (
            [name for name, kind in zip(self.record, self.member, strict=True) if kind == wanted] for wanted in (True, False)
        )
        made = Scores(self.score[self.member], self.score[~self.member], members, others)
        made.insist()
        if self.names:
            insist_alike(self.covariates[self.member], self.covariates[~self.member], self.names)
        return made


def read_scores(path: Path) -> dict[Arm, Table]:
    """Scores by arm from one CSV file or all of a folder.

    Columns: `score`; `member` (1 or 0); where there are any, `arm` (target, positive, negative), `record` (a patient's name) and
    numeric covariates `covariate:NAME` of the distribution check.

    Raises:
        ConfigError: there is no such file, or it has no such columns.
        AuditInvalid: a cell cannot be read.
    """
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{path}: no CSV file of scores is there. Give a file, or a folder of *.csv.")
    rows: dict[str, list[tuple[float, bool, str, list[float]]]] = {}
    names: tuple[str, ...] | None = None
    for file in files:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            columns = reader.fieldnames or []
            if not {"score", "member"} <= set(columns):
                raise ConfigError(f"{file}: columns 'score' and 'member' are needed, found: {', '.join(columns) or 'none'}.")
            own = tuple(name for name in columns if name.startswith(COVARIATE))
            if names not in (None, own):
                raise ConfigError(f"{file}: its covariates are not those of the files before it.")
            names = own
            for line, row in enumerate(reader, 2):
                arm, record = row.get("arm") or "target", row.get("record") or ""
                if arm not in get_args(Arm):
                    raise AuditInvalid(f"{file}, line {line}: arm '{arm}' is none of target, positive and negative.")
                numbers = [_number(row[name], file, line, name) for name in ("score", *own)]
                rows.setdefault(arm, []).append((numbers[0], _member(row["member"], file, line), record, numbers[1:]))
    if "target" not in rows:
        raise AuditInvalid(f"{path}: no row is of the target.")
    return {cast(Arm, arm): _table(found, names or ()) for arm, found in rows.items()}


def distribution_check(table: Table) -> dict[str, str]:
    """Whether it was made on the scores that are judged, for the report."""
    missing = f"NOT MADE: the files have no column '{COVARIATE}NAME', so members and non-members may differ by more than training"
    return {"distribution check": f"passed, by {', '.join(table.names)}" if table.names else missing}


def load_step(name: str) -> Step:
    """The callable `module:attribute`; modules of the working folder are found.

    Raises:
        ConfigError: there is none of that name.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"--step {name}: give it as module:function, e.g. my_pipeline:one_step.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(f"--step {name}: the module cannot be imported: {error}.") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"--step {name}: '{module}' has no callable '{attribute}'.")
    return cast(Step, found)


def as_vector(value: Any) -> Numbers:
    """What a step released, as (d,) float64: numbers, arrays and tensors, or mappings and sequences of them.

    Raises:
        AuditInvalid: it is not numbers.
    """
    if isinstance(value, Mapping):
        return np.concatenate([as_vector(value[key]) for key in sorted(value)])
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        if isinstance(value, list | tuple) and value and not np.isscalar(value[0]):
            return np.concatenate([as_vector(part) for part in value])
        return np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise AuditInvalid(f"the step released something that is not numbers: {error}.") from None


def _table(rows: list[tuple[float, bool, str, list[float]]], names: tuple[str, ...]) -> Table:
    scores, members, records, covariates = zip(*rows, strict=True)
    named = records if all(records) else tuple(str(i) for i in range(len(rows)))
    return Table(np.array(scores), np.array(members, bool), named, np.array(covariates, float).reshape(len(rows), len(names)), names)


def _number(cell: str, file: Path, line: int, column: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise AuditInvalid(f"{file}, line {line}: '{column}' is '{cell}', which is no number.") from None


def _member(cell: str, file: Path, line: int) -> bool:
    word = (cell or "").strip().lower()
    if word not in YES | NO:
        raise AuditInvalid(f"{file}, line {line}: 'member' is '{cell}'; give 1 for records that took part and 0 for others.")
    return word in YES
