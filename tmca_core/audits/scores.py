"""An attacker's scores of members and non-members: what may be measured with them, and what may not."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmca_core.errors import AuditInvalid

FEWEST = 10  # scores of either kind, below which no share is worth stating
TURN = 0.01  # share of β: of calling scores turned round that are not
MOST_TIED = 0.5  # share of all scores that may have one and the same value
FEWEST_FOR_RARE = 1000  # non-members for a true-positive rate at 0.1 %
RESAMPLINGS = 1000

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of records, higher meaning "took part".

    Attributes:
        members: (n₁,).
        others: (n₀,), of records that did not take part.
        member_groups, other_groups: (n₁,) and (n₀,), equal where records belong to one patient; None: every record by itself.
    """

    members: Numbers
    others: Numbers
    member_groups: Sequence[str] | None = None
    other_groups: Sequence[str] | None = None

    def insist(self, fewest: int = FEWEST) -> Scores:
        """The same scores, if anything may be concluded from them.

        Raises:
            AuditInvalid: too few, not finite, or most of them are tied.
        """
        for kind, values in (("members", self.members), ("non-members", self.others)):
            if len(values) < fewest:
                raise AuditInvalid(f"{len(values)} scores of {kind} are too few: {fewest} of either kind are needed at least.")
            if bad := int((~np.isfinite(values)).sum()):
                raise AuditInvalid(
                    f"{bad} scores of {kind} are not finite numbers: mend the attack, or leave out those records and say so."
                )
        pooled = np.concatenate([self.members, self.others])
        tied = np.unique(pooled, return_counts=True)[1].max()
        if len(np.unique(pooled)) == 1 or tied > MOST_TIED * len(pooled):
            raise AuditInvalid(f"{tied} of {len(pooled)} scores are tied: such scores order hardly anything. Score with more digits.")
        return self

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(n₁ + n₀,) indices of members, then others, from the lowest score to the highest; ties by lot, drawn once for these scores.

        The lots are of the operating system, so they know nothing of the coins that dealt membership.
        """
        pooled = np.concatenate([self.members, self.others])
        return np.lexsort((np.random.default_rng(secrets.randbits(128)).random(len(pooled)), pooled))

    @cached_property
    def auc(self) -> float:
        """Probability that a member scores higher than a non-member, ties counting half."""
        return area(self.members, self.others)

    def auc_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval of the AUC; patients are resampled, members and non-members apart.

        The generator is fixed: one file of scores always has one interval.
        """
        rng = np.random.default_rng(0)
        ours, theirs = _grouped(self.members, self.member_groups), _grouped(self.others, self.other_groups)
        found = [area(_resampled(ours, rng), _resampled(theirs, rng)) for _ in range(RESAMPLINGS)]
        low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def rate_at(self, false_alarms: float) -> float | None:
        """Share of members found where at most that share of non-members is called one; None with too few non-members to say."""
        if len(self.others) * false_alarms < 1 or (false_alarms < 0.01 and len(self.others) < FEWEST_FOR_RARE):
            return None
        allowed = math.floor(len(self.others) * false_alarms)
        threshold = np.sort(self.others)[::-1][allowed]
        return float((self.members > threshold).mean())

    def roc(self) -> list[tuple[float, float]]:
        """(false-positive rate, true-positive rate) at every threshold, from (0, 0) to (1, 1)."""
        levels = np.unique(np.concatenate([self.members, self.others]))[::-1]
        ours, theirs = np.sort(self.members), np.sort(self.others)
        true = 1 - np.searchsorted(ours, levels) / len(ours)
        false = 1 - np.searchsorted(theirs, levels) / len(theirs)
        return [(0.0, 0.0), *zip(false.tolist(), true.tolist(), strict=True)]

    def summary(self) -> dict[str, Any]:
        """As audit.json has it."""
        return {
            "members": len(self.members),
            "non_members": len(self.others),
            "auc": self.auc,
            "auc_ci95": list(self.auc_interval()),
            "tpr_at_1_percent": self.rate_at(0.01),
            "tpr_at_0.1_percent": self.rate_at(0.001),
        }


def turned_round(scores: Scores, error: float) -> tuple[str, ...]:
    """Why nothing follows from scores that are lower for members, or that tell them apart by their distance from the middle and hardly by
    their order; empty where chance does either more often than `error` (Mann–Whitney)."""
    from scipy.stats import mannwhitneyu

    if mannwhitneyu(scores.members, scores.others, alternative="less").pvalue < error / 2:
        return (
            f"scores are lower for those that took part (AUC {scores.auc:.3g}): an attack that is turned round sees nothing. Give higher "
            "ones to those that seem to have been in",
        )
    middle = np.median(np.concatenate([scores.members, scores.others]))
    far, near = np.abs(scores.members - middle), np.abs(scores.others - middle)
    apart = abs(area(far, near) - 0.5)
    if apart > 2 * abs(scores.auc - 0.5) and mannwhitneyu(far, near).pvalue < error / 2:
        return (
            f"scores tell those that took part by their distance from the middle (AUC {0.5 + apart:.3g}) and hardly by their order "
            f"(AUC {scores.auc:.3g}), by which guesses go: an attack that looks at one end sees nothing. Give one number that is higher "
            "for those that seem to have been in",
        )
    return ()


def area(members: Numbers, others: Numbers) -> float:
    """Area under the ROC curve by ranks: O(n log n)."""
    below = np.searchsorted(np.sort(others), members, side="left")
    not_above = np.searchsorted(np.sort(others), members, side="right")
    return float((below + not_above).mean() / 2 / len(others))


def dealt_anew(scores: Scores) -> Scores:
    """The negative control of any scores: every patient's membership by a coin of its own, independent of what was trained on.

    Where all coins fall alike they are thrown again: a control needs both kinds.

    Raises:
        AuditInvalid: there is one patient only.
    """
    pooled = np.concatenate([scores.members, scores.others])
    groups = [*(scores.member_groups or ()), *(scores.other_groups or ())]
    names = groups or [str(i) for i in range(len(pooled))]
    if len(set(names)) < 2:
        raise AuditInvalid("the scores are of one patient: there is no dealing memberships anew, and so no negative control.")
    coin: dict[str, int] = {}
    while len(set(coin.values())) < 2:
        coin = {name: secrets.randbelow(2) for name in dict.fromkeys(names)}
    chosen = np.array([coin[name] for name in names], bool)
    kept = [name for name, keep in zip(names, chosen, strict=True) if keep], [n for n, keep in zip(names, chosen, strict=True) if not keep]
    return Scores(pooled[chosen], pooled[~chosen], kept[0] if groups else None, kept[1] if groups else None)


def _grouped(values: Numbers, groups: Sequence[str] | None) -> list[Numbers]:
    if groups is None:
        return [values]
    index: dict[str, list[int]] = {}
    for i, name in enumerate(groups):
        index.setdefault(name, []).append(i)
    return [values[rows] for rows in index.values()]


def _resampled(parts: list[Numbers], rng: np.random.Generator) -> Numbers:
    if len(parts) == 1:
        return rng.choice(parts[0], len(parts[0]))
    return np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))])
