"""A site's private round: charge the ledger, then train."""

from __future__ import annotations

from urllib.parse import quote

from client.workspace import Site, code_digest
from tmca_core.errors import LedgerError
from tmca_core.privacy.charging import Account
from tmca_core.privacy.ledger import Ledger
from tmca_core.privacy.selftest import check_site
from tmca_core.privacy.training import fit_privately
from tmca_core.run import write_atomically
from tmca_core.training.loop import FitResult
from tmca_core.training.state import TrainState


def train_privately(site: Site, round: int, run: str, state: TrainState | None, counted: int) -> FitResult:
    """One round of DP-SGD on the site's training patients. Its steps are on the site's ledger, on the disk, before the first is taken.

    Args:
        counted: round of the site's last turn that the server has; 0: none.

    Raises:
        PrivacyError: the self-test before the first round failed.
        BudgetExhausted: the ledger has no room for the round; nothing was trained.
        LedgerError: the ledger is damaged, gone or cannot be written; nothing was trained.
    """
    workspace, config = site.workspace, site.workspace.config
    patients = sorted({case.patient_id for case in site.data.train.cases})
    mechanism = site.door.mechanism(config, len(patients))
    account = site.door.account(lambda: Account(_simulated_ledger(site, counted), None))
    if not account.tested(run, config, code_digest(), patients):
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


def _simulated_ledger(site: Site, counted: int) -> Ledger:
    """The ledger of a simulated site without a policy, beside the run's folder of sites.

    It is made at its first use, as its hospital would have made it before, and never again: a mark among what the sites remember and
    the server's word for a turn of this site both say that there was one.

    Raises:
        LedgerError: it is damaged, or missing after it existed.
    """
    name = quote(site.name, safe="")
    folder, mark = site.state.parent / "ledger" / name, site.state / "ledgers" / name
    if not folder.exists() and (counted or mark.exists()):
        raise LedgerError(
            f"the ledger of site '{site.name}' is missing after it existed: {folder}. What its patients have spent is not known without "
            "it. Restore it, or begin a run in another folder; nothing was trained."
        )
    ledger = Ledger.open(folder) if folder.exists() else Ledger.create(folder)
    if not mark.exists():
        write_atomically(mark, "")
    return ledger
