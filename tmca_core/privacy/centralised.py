"""`tmca train` with noise: every round is paid for from the hospital's ledger, under its policy, as a turn in a federation is."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import tmca_core
from tmca_core.cases.case import CaseTensors
from tmca_core.config import Config
from tmca_core.digests import source_digest
from tmca_core.errors import LedgerError
from tmca_core.networks.interface import Network
from tmca_core.privacy.charging import Account
from tmca_core.privacy.planning import mechanism_of
from tmca_core.privacy.policy import Policy, load_policy, open_ledger, request_of
from tmca_core.privacy.selftest import check_site
from tmca_core.privacy.statement import spent_in, statement
from tmca_core.privacy.training import fit_privately
from tmca_core.run import Run
from tmca_core.text.features import TextPipeline
from tmca_core.training.loop import FitResult
from tmca_core.training.state import TrainState


@dataclass(frozen=True)
class PrivateTraining:
    """Rounds of one private training, in the place of `tmca_core.training.loop.fit`.

    Attributes:
        run: its name on the ledger, kept in the run's folder.
        app: sha256 of the code.
    """

    policy: Policy
    account: Account
    run: str
    app: str

    @classmethod
    def under(cls, policy: Path, run: Run) -> PrivateTraining:
        """A training, or one that goes on, under the policy in a file.

        Raises:
            ConfigError: the policy cannot be read.
            LedgerError: its ledger is missing or damaged, or does not know of every round of which there is a checkpoint.
        """
        loaded = load_policy(policy)
        account = Account(open_ledger(loaded), loaded.budget)
        noted = run.read_spent("privacy.json", lambda noted: run.done if noted.get("run") else 0)
        name = str(noted.get("run") or uuid.uuid4().hex[:12])
        if missing := sorted({*range(1, run.done + 1)} - {*account.charged(name)}):
            raise LedgerError(
                f"{run.folder} holds rounds 1 to {run.done} of run {name}, and on the ledger {account.ledger.chain.folder} there is no "
                f"charge for round {', '.join(map(str, missing))}: what was spent would be understated. Give the policy with whose ledger "
                "the run began (--policy), or begin a run in another folder; nothing is released."
            )
        run.keep("privacy.json", {"run": name})
        return cls(loaded, account, name, source_digest(Path(tmca_core.__file__).parents[1]))

    def admit(self, config: Config, patients: int) -> None:
        """Hold the settings against the policy. Counts and figures do not leave the hospital here.

        Raises:
            PolicyRefusal: naming the rule.
        """
        request = request_of(config, patients, patients, self.app, self.policy.starts_of(config, alone=True))
        self.policy.agree(replace(request, case_counts=False, metrics=()), self.account.ledger, self.run)

    def fit(
        self,
        network: Network,
        data: CaseTensors,
        pipeline: TextPipeline,
        config: Config,
        *,
        round: int,
        site: str,
        state: TrainState | None,
        device: torch.device,
    ) -> FitResult:
        """One round, charged before its first step.

        Raises:
            PolicyRefusal: the policy refuses, the guarantee would not hold, or the budget has no room.
        """
        patients = sorted({case.patient_id for case in data.cases})
        self.admit(config, len(patients))
        mechanism = mechanism_of(config, len(patients))
        if not self.account.tested(self.run, config, self.app, patients):
            check_site(network, data, pipeline, config, mechanism, device)
        self.account.pay(config, mechanism, patients, run=self.run, round=round, app=self.app)
        return fit_privately(network, data, pipeline, config, mechanism, round=round, site=site, state=state, device=device)

    def evaluated(self, split: str, round: int) -> None:
        """Note that the patients were looked at; the figures stay in the hospital."""
        self.account.ledger.note("evaluation", run=self.run, round=round, split=split)

    def stated(self, config: Config, arm: str, data: CaseTensors) -> dict[str, Any]:
        """run.json's `privacy`, by the rounds on the ledger; `over_all_runs`: ε of these patients with everything else on it.

        None, and `plain_updates`, where updates without noise have left, so that there is none.
        """
        ids = sorted({case.patient_id for case in data.cases})
        found = statement(config, {arm: spent_in(self.account.charged(self.run), mechanism_of(config, len(ids)), config, len(ids))})
        ledger = self.account.ledger
        spent = ledger.read()
        overall = spent.epsilon(self.policy.privacy.delta, ledger.hashes(ids))
        plain = {} if math.isfinite(overall) else {"plain_updates": spent.plain}
        return {**found, "over_all_runs": None if plain else overall, **plain}
