"""A site's private round: refuse what cannot be private, charge the ledger, then train."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from client.workspace import Site, code_digest
from tmca_core.errors import PolicyRefusal
from tmca_core.privacy.accounting import NoisySteps
from tmca_core.privacy.ledger import Budget, Charge, Ledger
from tmca_core.privacy.planning import mechanism_of
from tmca_core.privacy.selftest import check_site
from tmca_core.privacy.training import fit_privately
from tmca_core.training.loop import FitResult
from tmca_core.training.state import TrainState


def refuse_outside_of_simulations(simulated: bool) -> None:
    """Refuse private runs between hospitals.

    Raises:
        PolicyRefusal: always there.
    """
    if not simulated:
        raise PolicyRefusal(
            "private runs between hospitals need the hospital's policy over the figures that leave beside the weights, and this version "
            "applies it in simulations only: nothing is trained. Set privacy.enabled=false, or simulate the federation."
        )


def train_privately(site: Site, round: int, run: str, state: TrainState | None) -> FitResult:
    """One round of DP-SGD on the site's training patients. Its steps are on the site's ledger, on the disk, before the first is taken.

    A round that is done again after a crash is charged again: its noise is fresh, so it is another release.

    Raises:
        PrivacyError: the self-test before the first round failed.
        BudgetExhausted: the ledger has no room for the round; nothing was trained.
        LedgerError: the ledger is damaged or cannot be written; nothing was trained.
    """
    workspace, config = site.workspace, site.workspace.config
    patients = sorted({case.patient_id for case in site.data.train.cases})
    mechanism = mechanism_of(config, len(patients))
    ledger = _ledger(site)
    if not any(entry["kind"] == "charge" and entry["run"] == run for entry in ledger.read().entries):
        check_site(workspace.network, site.data.train, workspace.pipeline, config, mechanism, workspace.device)
    charge = Charge(
        NoisySteps(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps),
        run=run,
        round=round,
        clip=mechanism.clip,
        config=config.digest(),
        app=code_digest(),
    )
    target = config.privacy.target_epsilon
    ledger.charge(charge, patients, Budget(target, config.privacy.delta) if target else None)
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


def _ledger(site: Site) -> Ledger:
    """A simulated site's ledger, beside the run's folder of sites; made at its first use, as its hospital would have made it before."""
    folder: Path = site.state.parent / "ledger" / quote(site.name, safe="")
    return Ledger.open(folder) if folder.exists() else Ledger.create(folder)
