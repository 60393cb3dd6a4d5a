"""A round of private training is paid for: on the ledger, on the disk, before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmca_core.config import Config
from tmca_core.privacy.accounting import NoisySteps
from tmca_core.privacy.ledger import Budget, Charge, Ledger, Receipt
from tmca_core.privacy.mechanism import Mechanism


@dataclass(frozen=True)
class Account:
    """Whose ledger pays, and how far.

    Attributes:
        budget: of each patient over all runs together; None: there is none but the run's own target.
    """

    ledger: Ledger
    budget: Budget | None

    def tested(self, run: str, config: Config, app: str, patients: Sequence[str]) -> bool:
        """Whether this very step of a run was paid for before, which it is after its self-test: same settings, code and patients."""
        step = {"run": run, "config": config.digest(), "app": app, "cohort": self.ledger.fingerprint(self.ledger.hashes(patients))}
        return any(step.items() <= entry.items() for entry in self.ledger.read().charges)

    def charged(self, run: str) -> list[int]:
        """Rounds of a run that are on the ledger, in the order of their charges."""
        return [int(entry.get("round", 0)) for entry in self.ledger.read().charges if entry.get("run") == run]

    def pay(self, config: Config, mechanism: Mechanism, patients: Sequence[str], *, run: str, round: int, app: str) -> Receipt:
        """Charge a round. Two bounds hold: the budget over all runs, and `privacy.target_epsilon` over this run alone.

        A round that is done again after a crash is noted as a restart and charged again: its noise is fresh, so it is another release.

        Args:
            patients: ids of all that may be drawn.
            app: sha256 of the code.

        Raises:
            BudgetExhausted: a bound would be passed; nothing is charged.
            LedgerError: the ledger is damaged or cannot be written.
        """
        steps = NoisySteps(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps)
        charge = Charge(steps, run=run, round=round, clip=mechanism.clip, config=config.digest(), app=app)
        target = Budget(config.privacy.target_epsilon, config.privacy.delta) if config.privacy.target_epsilon else None
        if round in self.charged(run):
            self.ledger.note("restart", run=run, round=round)
        return self.ledger.charge(charge, patients, self.budget or target, target)
