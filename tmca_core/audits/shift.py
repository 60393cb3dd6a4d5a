"""Do members and non-members come from one distribution? If not, an attack that tells them apart says nothing about training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmca_core.errors import AuditInvalid

ERROR = 0.01  # probability that two samples of one distribution are said to differ
RIDGE = 1e-3
PERMUTATIONS = 400


def insist_alike(members: NDArray[np.float64], others: NDArray[np.float64], names: tuple[str, ...], error: float = ERROR) -> None:
    """Refuse records that can be told apart by what the model never touched.

    Every covariate by itself (Kolmogorov-Smirnov, Bonferroni), then all together: a linear discriminant that is fitted on one half
    and scored on the other, against permuted memberships.

    Args:
        members: (n₁, k) covariates that were there before training: age, mean intensity, length of the report …
        others: (n₀, k).
        names: k of them.

    Raises:
        AuditInvalid: naming what differs.
    """
    from scipy.stats import ks_2samp

    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise AuditInvalid("a covariate of the distribution check is not finite: leave out the column, or mend it.")
    for k, name in enumerate(names):
        found = ks_2samp(members[:, k], others[:, k])
        if found.pvalue < error / (2 * len(names)):
            raise AuditInvalid(
                f"members and non-members come from different distributions: '{name}' alone tells them apart (Kolmogorov-Smirnov "
                f"{found.statistic:.2f}, p = {found.pvalue:.1g}) before any training, so what an attack finds is no leak. "
                "Deal membership by independent coins."
            )
    area, chance = _blind_attack(members, others)
    if chance < error / 2:
        raise AuditInvalid(
            f"members and non-members come from different distributions: covariates together tell them apart (AUC {area:.2f}, "
            f"p = {chance:.1g}) before any training, so what an attack finds is no leak. Deal membership by independent coins."
        )


def _blind_attack(members: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """AUC of a cross-fitted linear discriminant, and the share of permuted memberships with one as high (with the one seen)."""
    x = np.concatenate([members, others])
    x = (x - x.mean(0)) / (x.std(0) + 1e-12)
    y = np.r_[np.ones(len(members), bool), np.zeros(len(others), bool)]
    rng = np.random.default_rng(0)  # the same file of scores always gets the same answer
    seen = _cross_fitted(x, y, rng)
    others_seen = [_cross_fitted(x, y[rng.permutation(len(y))], rng) for _ in range(PERMUTATIONS)]
    return seen, (1 + sum(value >= seen for value in others_seen)) / (1 + PERMUTATIONS)


def _cross_fitted(x: NDArray[np.float64], y: NDArray[np.bool_], rng: np.random.Generator) -> float:
    from tmca_core.audits.scores import area

    half = np.zeros(len(y), bool)
    for kind in (True, False):
        rows = np.flatnonzero(y == kind)
        half[rng.permutation(rows)[: len(rows) // 2]] = True
    areas = []
    for fit in (half, ~half):
        centred = x[fit] - np.where(y[fit, None], x[fit & y].mean(0), x[fit & ~y].mean(0))
        spread = centred.T @ centred / fit.sum() + RIDGE * np.eye(x.shape[1])
        direction = np.linalg.solve(spread, x[fit & y].mean(0) - x[fit & ~y].mean(0))
        score = x[~fit] @ direction
        areas.append(area(score[y[~fit]], score[~y[~fit]]))
    return float(np.mean(areas))
