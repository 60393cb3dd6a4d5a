"""A site's answer to the data check: the figures of its data that its policy lets out, and the names of those that stay."""

from __future__ import annotations

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from client.site import run_of
from client.workspace import Site, code_digest
from tmca_core.cases.figures import COUNTS, Figure, figures_of, values_of
from tmca_core.messages import KEPT, METRICS, SETTINGS, WITHHELD
from tmca_core.privacy.accounting import NoisySteps
from tmca_core.privacy.figures import means_of, noised_means
from tmca_core.privacy.ledger import Charge
from tmca_core.privacy.policy import MetricRules
from tmca_core.privacy.randomness import SecureStream
from tmca_core.training.scores import FEWEST_PATIENTS


def check(site: Site, content: RecordDict) -> RecordDict:
    """Counts, and means over patients: rounded, over enough patients, of the names that the policy allows, with the noise that it wants.

    What is noised is on the ledger as a charge before it leaves, all figures together as one release; what is not, as plain figures.
    A site without a policy rounds as a default one would, and keeps figures of fewer than `FEWEST_PATIENTS` patients.

    Raises:
        BudgetExhausted: the ledger has no room for the noised figures; nothing leaves.
        LedgerError: the ledger is damaged or cannot be written; nothing leaves.
    """
    run, figures = run_of(content), figures_of(site.workspace.config.data.target_names)
    told = {**_counts(site), **_means(site, figures, run)}
    site.door.note_figures(list(told), run=run, round=0, purpose="data check")
    kept = [name for name in (*COUNTS, *figures) if name not in told]
    settings = ConfigRecord({KEPT: kept, WITHHELD: True} if kept else {})
    return RecordDict({METRICS: MetricRecord({**told}), SETTINGS: settings})


def _counts(site: Site) -> dict[str, float]:
    data = site.data
    cases = [case for part in (data.train, data.val, data.test) for case in part.cases]
    numbers = (len({case.patient_id for case in cases}), len(cases), len(data.skipped))
    public = {name: site.door.count(number) for name, number in zip(COUNTS, numbers, strict=True)}
    return {name: float(number) for name, number in public.items() if number is not None}


def _means(site: Site, figures: dict[str, Figure], run: str) -> dict[str, float]:
    """The figures that may leave, as they may leave."""
    policy, data = site.door.policy, site.data
    wanted = [name for name in figures if policy is None or policy.lets(name)]
    if not wanted:
        return {}
    patients, values = values_of((data.train, data.val, data.test), site.workspace.config.data.target_names)
    values = values[:, [list(figures).index(name) for name in wanted]]
    if policy is not None and policy.metrics.check_noise:
        means, counts = _noised(site, [figures[name] for name in wanted], patients, values, policy.metrics.check_noise, run)
    else:
        means, counts = means_of(values)
    told: dict[str, float] = {}
    for name, mean, count in zip(wanted, means.tolist(), counts.tolist(), strict=True):
        if policy is not None:
            told |= policy.let_out({name: mean}, count)
        elif count >= FEWEST_PATIENTS:
            told[name] = MetricRules().rounded(mean)
    return told


def _noised(
    site: Site, figures: list[Figure], patients: list[str], values: NDArray[np.float64], noise: float, run: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Noised means and numbers, paid for before they are drawn."""
    policy, ledger = site.door.policy, site.door.ledger
    assert policy is not None and ledger is not None  # a door has both or neither
    # Under a name of its own: whether the run's training was charged before, and what it may spend, is told by the run's.
    release = Charge(
        NoisySteps(noise, 1.0, 1), run=f"check-{run}", purpose="data check", config=site.workspace.config.digest(), app=code_digest()
    )
    ledger.charge(release, patients, policy.budget)
    return noised_means(values, [figure.group for figure in figures], noise, SecureStream())
