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
    """A site's reply cannot be folded: wrong names, shapes, dtypes, non-finite values, norm or weight.

    Attributes:
        kind: one word for counting: payload, names, shape, dtype, not-finite, weight, metrics, replay or norm.
    """

    def __init__(self, message: str, kind: str = "payload") -> None:
        super().__init__(message)
        self.kind = kind


class StorageError(TmcaError):
    """A file of the run cannot be written: the disk is full, or the folder is not writable."""


class FederationError(TmcaError):
    """The federation cannot go on: no site answered, or a resumed run does not match."""


class PolicyRefusal(TmcaError):
    """A site's policy forbids what was asked for.

    Attributes:
        public: what may be told outside of the site, the rule and its bound; "" where nobody has said.
    """

    exit_code = 3

    def __init__(self, message: str, public: str = "") -> None:
        super().__init__(message)
        self.public = public


PAUSED, LEFT = "paused by the hospital", "left by the hospital"
"""How a refusal says that the site's people want it so."""


class SiteAway(PolicyRefusal):
    """The hospital has paused its part in the federation, or left the run; no rule was broken, and it may come back."""


class PrivacyError(PolicyRefusal):
    """A guarantee would not hold: what was measured does not keep the bound that the accounting rests on."""


class BudgetExhausted(PolicyRefusal):
    """What is asked for would spend more privacy than the hospital's budget has left."""


class LedgerError(PolicyRefusal):
    """The privacy ledger is missing, damaged, rolled back, busy or not writable; nothing may be released."""


class AuditInvalid(TmcaError):
    """What an audit was given allows no measurement: nothing follows from it, and no number is shown."""

    exit_code = 5


class NotApplicable(AuditInvalid):
    """A configuration leaves an audit nothing to test: by itself that is INVALID, among several audits it is told and does not decide."""
