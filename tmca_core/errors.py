"""The one error hierarchy. A message says what happened, where, and what to do."""

from __future__ import annotations

from pathlib import Path


class TmcaError(Exception):
    """Root of every error a user can cause or mend; `exit_code` is what the command ends with."""

    exit_code = 2


class ConfigError(TmcaError):
    """A setting is unknown, of the wrong type or out of its bounds."""


class ManifestError(TmcaError):
    """A manifest as a whole cannot be used (not one bad row: see `CaseError`)."""


class CaseError(TmcaError):
    """One row of a manifest cannot be used.

    Attributes:
        row: 1-based line of the table, the header being line 1.
        column: the column at fault.
        reason: why, and what to do, without row and column.
    """

    def __init__(self, row: int, column: str, reason: str) -> None:
        super().__init__(f"row {row}, column '{column}': {reason}")
        self.row, self.column, self.reason = row, column, reason


class ImageError(TmcaError):
    """An image or mask file cannot be used; readers raise it, and those who know the row make a `CaseError` of it.

    Attributes:
        reason: why, and what to do, without the folder.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class LateralityError(ManifestError):
    """The declared side convention is not the one that the masks show."""


class WeightsError(TmcaError):
    """A weight or checkpoint file is missing, damaged or not the one that was pinned."""


class UpdateRejected(TmcaError):
    """A site's reply cannot be folded: wrong names, shapes, dtypes, non-finite values or weight."""


class FederationError(TmcaError):
    """The federation cannot go on: no site answered, or a resumed run does not match."""


class PolicyRefusal(TmcaError):
    """A site's policy forbids what was asked for."""

    exit_code = 3
