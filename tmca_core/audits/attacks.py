"""Membership attacks on one model with the help of others whose members are known: thresholds, LiRA and RMIA.

Legend: M models, O observations of each (the released weights, or rounds), N cases, S signals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmca_core.audits.scores import Numbers

SHRINKAGE = 2.0  # reference models that a case's own difference counts as much as the mean of all cases

Coins = NDArray[np.bool_]


def threshold(target: Numbers) -> Numbers:
    """(N,) from (O, N): the signal itself, averaged over observations. Needs no other model (Yeom et al. 2018)."""
    mean: Numbers = target.mean(0)
    return mean


def lira(target: Numbers, others: Numbers, members: Coins) -> Numbers:
    """(N,) log-likelihood ratio of "took part", summed over observations. Source: Carlini et al. 2022 (arXiv 2112.03570).

    With few models the online attack's means are shrunk: a case has a mean of its own, its difference between taking part and not is
    drawn to that of all cases, and variances are shared by all cases, as their section VI-D advises.

    Args:
        target: (O, N) signal under the model attacked.
        others: (M, O, N) under reference models.
        members: (M, N), who took part in these.
    """
    found = np.zeros(target.shape[1])
    inside = members.astype(float)
    n_in, n_out = inside.sum(0), (1 - inside).sum(0)
    for seen, x in zip(others.swapaxes(0, 1), target, strict=True):
        with_it, without = (seen * inside).sum(0) / np.maximum(n_in, 1), (seen * (1 - inside)).sum(0) / np.maximum(n_out, 1)
        fewer = np.minimum(n_in, n_out)
        both = fewer > 0
        general = float(np.average((with_it - without)[both], weights=fewer[both])) if both.any() else 0.0
        own = np.where(both, (fewer * (with_it - without) + SHRINKAGE * general) / (fewer + SHRINKAGE), general)
        low = (seen - own * inside).mean(0)
        centre = low + own * inside
        spread_in, spread_out = (_spread((seen - centre)[chosen]) for chosen in (members, ~members))
        found += _log_normal(x, low + own, spread_in) - _log_normal(x, low, spread_out)
    return found


def rmia(target: Numbers, others: Numbers) -> Numbers:
    """(N,) log of p(x | model) over the mean of p(x | reference), averaged over observations.

    Source: Zarifzadeh, Liu and Shokri 2024 (arXiv 2312.03262), online. Their score is the share of a population whose own ratio is
    smaller by a factor γ: a function of this ratio that never falls, so the order of cases is the same, without its ties.

    Args:
        target: (O, N) log-likelihoods, here −loss.
        others: (M, O, N).
    """
    highest = others.max(0)
    mean = highest + np.log(np.exp(others - highest).mean(0))
    ratio: Numbers = (target - mean).mean(0)
    return ratio


def by_attack(signals: Numbers, coins: Coins, target: int, others: list[int], names: tuple[str, ...]) -> dict[str, Numbers]:
    """Scores (N,) of every attack on one model.

    Args:
        signals: (M, O, N, S).
        coins: (M, N), True where a case was trained on.
        others: models whose coins the attacker knows.
        names: of the S signals; the first is −log loss.
    """
    found, ratios = {}, []
    for s, name in enumerate(names):
        mine, theirs = signals[target, ..., s], signals[others, ..., s]
        found[f"{name}, threshold"] = threshold(mine)
        ratios.append(lira(mine, theirs, coins[others]))
        found[f"{name}, LiRA"] = ratios[-1]
    found["loss, RMIA"] = rmia(-np.exp(-signals[target, ..., 0]), -np.exp(-signals[others, ..., 0]))
    found["all signals, LiRA"] = np.sum(ratios, 0)
    return found


def _spread(values: Numbers) -> float:
    return float(np.sqrt((values**2).mean()) + 1e-6) if values.size else 1.0


def _log_normal(x: Numbers, mean: Numbers, spread: float) -> Numbers:
    value: Numbers = -0.5 * ((x - mean) / spread) ** 2 - np.log(spread)
    return value
