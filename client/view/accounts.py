"""A privacy ledger as its hospital's people read it: spent, left, and every entry in words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmca_core.errors import TmcaError
from tmca_core.privacy.accounting import NoisySteps, Spend, spend_from_json
from tmca_core.privacy.ledger import PLAIN_PURPOSE, Budget, Spent
from tmca_core.privacy.policy import load_policy, open_ledger

MOST_ENTRIES = 200
MOST_ROUNDS = 1024
Entry = Mapping[str, Any]
_SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Account:
    """One policy and its ledger.

    Attributes:
        place: the ledger's folder, or the policy's file where that cannot be read.
        budget: for each patient, over all runs together.
        spent: ε of the worst-off patient at the budget's δ, of what left with noise.
        plain: how many updates without noise have left, for whose patients no ε holds.
        rounds: so many more rounds like the last one fit into the budget (at most `MOST_ROUNDS`); None: there was none.
        entries: newest first, the last `MOST_ENTRIES`; `count`: of all.
        fault: why nothing can be told, and nothing is released; "".
    """

    place: str
    budget: Budget | None = None
    spent: float = 0.0
    rounds: int | None = None
    entries: Sequence[Entry] = ()
    count: int = 0
    fault: str = ""
    plain: int = 0

    @property
    def left(self) -> float:
        """ε between what is spent and the budget."""
        return max(0.0, self.budget.epsilon - self.spent) if self.budget else 0.0


@dataclass
class Books:
    """Accounts of a hospital's policies; what takes seconds is worked out again only where a ledger has grown."""

    policies: Sequence[Path]
    _known: dict[Path, tuple[object, Account]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> list[Account]:
        """As they are now."""
        with self._lock:
            return [self._look(path) for path in self.policies]

    def _look(self, path: Path) -> Account:
        try:
            policy = load_policy(path)
            read = open_ledger(policy).read()
            key = read.entries[-1]["hash"], policy.budget
            known = self._known.get(path)
            if known is None or known[0] != key:
                known = key, _account(policy.ledger.folder, policy.budget, read)
                self._known[path] = known
        except TmcaError as error:
            return Account(str(path), fault=str(error))
        return known[1]


def _account(place: str, budget: Budget, read: Spent) -> Account:
    training = [entry for entry in read.charges if entry.get("purpose") == "training"]
    last = spend_from_json(training[-1]["spend"]) if training else None
    counted = read.noised if budget.beside_plain else read
    rounds = None if last is None else more_rounds(last, budget.epsilon, lambda more: counted.epsilon(budget.delta, more=more, coarse=True))
    entries = list(read.entries)[: -MOST_ENTRIES - 1 : -1]
    return Account(place, budget, read.noised.epsilon(budget.delta), rounds, entries, len(read.entries), plain=read.plain)


def more_rounds(last: Spend, budget: float, after: Callable[[list[Spend]], float]) -> int | None:
    """How many rounds like the last fit into a budget.

    Args:
        last: what it cost.
        budget: ε.
        after: ε after further spends.
    """
    if not isinstance(last, NoisySteps):
        return None

    def fits(rounds: int) -> bool:
        steps = NoisySteps(last.noise_multiplier, last.sample_rate, last.steps * rounds)
        return after([steps]) <= budget

    low, high = 0, 1
    while high <= MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def in_words(entry: Entry) -> tuple[str, str]:
    """What an entry is, and its details."""
    kind, round = str(entry["kind"]), entry.get("round")
    at = f" of round {round}" if round else ""
    if kind == "charge" and entry.get("purpose") == PLAIN_PURPOSE:
        return f"Update without noise{at} left", f"no ε holds for its {entry.get('patients') or 'all'} patients from here on"
    if kind == "charge":
        spend = entry.get("spend", {})
        noise = f"noise σ {spend.get('noise_multiplier')}, sampling rate {spend.get('sample_rate')}, {spend.get('steps')} steps"
        count = entry.get("patients") or "all"
        about = f"{count} {'patient' if count == 1 else 'patients'}"
        after = f"; the worst-off patient's ε is {entry['epsilon']:.3f} afterwards" if isinstance(entry.get("epsilon"), float) else ""
        return f"{str(entry.get('purpose', 'release')).capitalize()}{at}, paid for", f"{noise}, {about}{after}"
    if kind == "agreed":
        return "Terms of a run agreed on", _terms(entry.get("terms", {}))
    if kind == "evaluation":
        return (
            f"Model of round {round or 0} measured on our {_SPLITS.get(entry.get('split', ''), '')} cases",
            "here; what of it left stands above",
        )
    if kind == "figures":
        count, purpose = entry.get("count", 0), str(entry.get("purpose", ""))
        names = ", ".join(str(name) for name in entry.get("names", ()))
        return f"{count} plain {'figure' if count == 1 else 'figures'} left: {_SPLITS.get(purpose, purpose)}{at}", names
    words = {"created": "Ledger made", "restart": f"Repeat{at}", "recovered": "An interrupted entry completed", "tuning": "Tuning run"}
    return words.get(kind, kind), ""


def _terms(terms: Mapping[str, Any]) -> str:
    if not terms.get("private"):
        return f"without noise, {terms.get('steps')} steps in all"
    told = f"noise σ {terms.get('noise_multiplier')}, sampling rate {terms.get('sample_rate')}, {terms.get('steps')} steps in all"
    target = terms.get("target_epsilon")
    return told + (f", up to ε {target:g}" if target else "")
