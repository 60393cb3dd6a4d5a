"""A site's private round: charge the ledger, then train."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from client.workspace import Site, code_digest
from tmca_core.privacy.charging import Account
from tmca_core.privacy.ledger import Ledger
from tmca_core.privacy.selftest import check_site
from tmca_core.privacy.training import fit_privately
from tmca_core.training.loop import FitResult
from tmca_core.training.state import TrainState


def train_privately(site: Site, round: int, run: str, state: TrainState | None) -> FitResult:
    """One round of DP-SGD on the site's training patients. Its steps are on the site's ledger, on the disk, before the first is taken.

    Raises:
        PrivacyError: the self-test before the first round failed.
        BudgetExhausted: the ledger has no room for the round; nothing was trained.
        LedgerError: the ledger is damaged or cannot be written; nothing was trained.
    """
    workspace, config = site.workspace, site.workspace.config
    patients = sorted({case.patient_id for case in site.data.train.cases})
    mechanism = site.door.mechanism(config, len(patients))
    account = site.door.account(lambda: Account(_simulated_ledger(site), None))
    if not account.tested(run, config, code_digest()):
        check_site(workspace.network, site.data.train, workspace.pipeline, config, mechanism, workspace.device)
    account.pay(config, mechanism, patients, run=run, round=round, app=code_digest())
    return fit_privately(
        workspace.network,
        site.data.train,
        workspace.pipeline,
        config,
        mechanism,
        round=round,
        site=site.name,
        state=state,
        device=workspace.device,
    )


def _simulated_ledger(site: Site) -> Ledger:
    """The ledger of a simulated site without a policy, beside the run's folder of sites.

    It is made at its first use, as its hospital would have made it before.
    """
    folder: Path = site.state.parent / "ledger" / quote(site.name, safe="")
    return Ledger.open(folder) if folder.exists() else Ledger.create(folder)
