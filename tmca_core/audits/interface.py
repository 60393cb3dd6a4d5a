"""What an audit is, what it hands back, and how a verdict comes of it: the same for every audit, controls included.

A new audit is one file with one registered factory. The factory reads options and a run, and gives an `Audit`: the claim, what is fixed
beforehand, and `measure`, which is called three times: for the target, for a positive control without privacy (it must be flagged) and
for a negative control whose membership is independent of the data (it must not be).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tmca_core.privacy.accounting import finite
from tmca_core.registry import Registry

if TYPE_CHECKING:
    from markupsafe import Markup

    from tmca_core.audits.scores import Scores

Arm = Literal["target", "positive", "negative"]
Verdict = Literal["PASS", "FAIL", "NO POWER", "INVALID"]

Fixed = int | float | str | bool | None
"""What may be fixed beforehand: JSON scalars."""

EXIT_CODES: Mapping[Verdict, int] = {"PASS": 0, "FAIL": 4, "NO POWER": 5, "INVALID": 5}


@dataclass(frozen=True)
class Claim:
    """What is promised, and what an audit is held against.

    Attributes:
        epsilon: ε; ∞ where nothing is promised.
        delta: δ.
        unit: whose data one neighbour lacks.
        relation: of neighbours: add/remove or replace-one.
        accountant: that gave ε.
        source: where the claim was found, for people.
        ledger: excerpt of the ledger's charges behind it, as `tmca privacy ledger show` has them.
        exact_mu: μ of the mechanism where it is known exactly (one step of noise multiplier σ: 1/σ); None: it need not be
            Gaussian, and what others state as (ε, δ) is held against ε alone.
        reservation: what the claim lacks to be believed, a clause for the verdict; empty: nothing.
    """

    epsilon: float
    delta: float
    unit: str = "patient"
    relation: str = "add/remove"
    accountant: str = "PLD"
    source: str = ""
    ledger: tuple[Mapping[str, Any], ...] = ()
    exact_mu: float | None = None
    reservation: str = ""

    @cached_property
    def mu(self) -> float:
        """μ of the Gaussian mechanism with this ε at this δ: what a claim on Gaussian noise comes to, and nothing that another promises."""
        from tmca_core.audits.bounds import mu_of_epsilon

        return mu_of_epsilon(self.epsilon, self.delta) if self.exact_mu is None else self.exact_mu

    def to_json(self) -> dict[str, Any]:
        """As audit.json has it; ∞ is null."""
        return {
            "epsilon": finite(self.epsilon),
            "delta": self.delta,
            "mu": finite(self.mu),
            "unit": self.unit,
            "relation": self.relation,
            "accountant": self.accountant,
            "source": self.source,
            "ledger": [dict(entry) for entry in self.ledger],
            "reservation": self.reservation,
        }


@dataclass(frozen=True)
class Bound:
    """A lower bound on what leaks, in the measure of its claim.

    Attributes:
        name: how it was found, e.g. "one-run (Steinke et al. 2023)".
        measure: what it bounds: "ε", "μ", "clips", "dB".
        value: the bound.
        claim: the most that the claim allows, in the same measure; ∞ where nothing is claimed.
        attainable: the largest value that this audit could have found, whatever the system did; ∞ where there is no end.
        confidence: with which the true value is at least `value`, if no other test had been made; (0, 1].
    """

    name: str
    measure: str
    value: float
    claim: float
    attainable: float = math.inf
    confidence: float = 1.0

    @property
    def exceeds(self) -> bool:
        """The claim is refuted."""
        return self.value > self.claim

    @property
    def powerful(self) -> bool:
        """The claim could have been refuted."""
        return self.attainable > self.claim

    def to_json(self) -> dict[str, Any]:
        """As audit.json has it; ∞ is null."""
        numbers = {"value": self.value, "claim": self.claim, "attainable": self.attainable, "confidence": self.confidence}
        return {
            "name": self.name,
            "measure": self.measure,
            **{key: finite(number) for key, number in numbers.items()},
            "exceeds": self.exceeds,
            "powerful": self.powerful,
        }


@dataclass(frozen=True)
class Evidence:
    """What an audit measured in one arm.

    Attributes:
        bounds: held against the claim.
        alarms: proofs other than a bound that the claim does not hold, a sentence each. In the negative arm: signs that the audit finds
            what is not there.
        invalid: reasons for which nothing follows from this measurement, a sentence each.
        scores: of members and non-members, where there are any: the report draws their ROC and states AUC and TPR.
        figures: further numbers for audit.json (JSON values).
        pictures: (caption, markup) pairs for audit.html; nothing in them may be fetched from elsewhere.
        scope: what a PASS is about, in the place of the audit's own, where only measuring tells.
        first_look: what flagged a negative control that was therefore measured once more, which this is.
    """

    bounds: tuple[Bound, ...] = ()
    alarms: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    scores: Scores | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[tuple[str, Markup], ...] = ()
    scope: str = ""
    first_look: str = ""

    @property
    def flagged(self) -> bool:
        """Something exceeds the claim."""
        return bool(self.alarms) or any(bound.exceeds for bound in self.bounds)


@dataclass(frozen=True)
class Audit:
    """One audit, ready to be conducted.

    Attributes:
        name: as registered.
        question: what is asked, one plain sentence.
        threat_model: what the attacker sees and may do.
        claim: what it is held against.
        beta: error probability of the whole audit, shared among all tests made at once: an honest system is flagged at most this often.
        registered: what was fixed before any measurement (r, threshold, number of runs …), JSON scalars.
        measure: evidence of one arm. Raises `AuditInvalid` where the material does not allow any.
        blind: why nobody knows whether this attack would see a leak of this system, and what to add; such an audit may FAIL and never
            PASS. Empty: the positive control is the system itself without privacy.
        informs_only: it holds nothing against a promise, so among several audits it is told and does not decide.
        scope: what a PASS is about where that is not the thing itself, a clause for the verdict.
    """

    name: str
    question: str
    threat_model: str
    claim: Claim
    beta: float
    registered: Mapping[str, Fixed]
    measure: Callable[[Arm], Evidence]
    blind: str = ""
    informs_only: bool = False
    scope: str = ""


AUDITS: Registry[Callable[..., Audit]] = Registry("audit")
"""Factories of audits, with keyword options that have defaults and are annotated as typer reads them: they become `tmca audit NAME
--option`. One that can audit a run's folder takes it as `run: Path | None`; `tmca audit all RUN` calls those."""
