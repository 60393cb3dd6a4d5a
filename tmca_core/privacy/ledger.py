"""A hospital's ledger: what has been released about its patients, what it costs, and whether there is budget for more.

One ledger serves all runs on one patient population. What a patient has spent is composed over every entry whose cohort holds the
patient; the ledger's ε is that of its worst-off patient. Cohorts are kept as salted hashes of patient ids, under the ledger's key.
"""

from __future__ import annotations

import hmac
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tmca_core.errors import BudgetExhausted, ConfigError, LedgerError
from tmca_core.privacy.accounting import Spend, epsilon, spend_from_json, spend_to_json
from tmca_core.privacy.chain import ENTRIES, Chain, Entry, State
from tmca_core.run import sync_folder, write_atomically

EVERYBODY = ""  # cohort of entries whose patients were not named: they count for all
HASH_BYTES = 16
PLAIN_PURPOSE = "plain update"
NOTES = ("agreed", "evaluation", "tuning", "restart", "figures")


@dataclass(frozen=True)
class Budget:
    """What a hospital is ready to spend on each of its patients, add/remove, over all runs together.

    Attributes:
        beside_plain: it holds for the noised releases alone; else there is none left where plain updates have left.
    """

    epsilon: float
    delta: float
    beside_plain: bool = False


@dataclass(frozen=True)
class Charge:
    """What is about to be released.

    Attributes:
        spend: its cost.
        run: identity of the run.
        round: of the run, from 1.
        purpose: training, tuning, evaluation or metrics; `PLAIN_PURPOSE`: an update without noise.
        clip: largest norm C of a patient's gradient.
        config, app: sha256 of the run's settings and of the app's code.
    """

    spend: Spend
    run: str
    round: int = 0
    purpose: str = "training"
    clip: float = 0.0
    config: str = ""
    app: str = ""


@dataclass(frozen=True)
class Receipt:
    """Proof that a charge is on the disk: what follows it may be released.

    Attributes:
        entry: its number.
        hash: of the entry.
        epsilon: of the worst-off patient of the cohort with this charge, at the budget's δ; None where no budget was given.
    """

    entry: int
    hash: str
    epsilon: float | None


@dataclass(frozen=True)
class Spent:
    """Entries of a ledger, and the cohorts that they are about.

    Attributes:
        state: interrupted: the last entry was not written whole; it is here all the same.
        entries: all, oldest first.
        cohorts: fingerprint → salted hashes of its patients.
    """

    state: State
    entries: Sequence[Entry]
    cohorts: Mapping[str, frozenset[bytes]]

    @property
    def noised(self) -> Spent:
        """The same without plain updates."""
        return replace(self, entries=[entry for entry in self.entries if entry.get("purpose") != PLAIN_PURPOSE])

    @property
    def plain(self) -> int:
        """How many plain updates have left."""
        return len(self.entries) - len(self.noised.entries)

    def told(self, delta: float) -> str:
        """What is spent, in words."""
        also = f", beside {self.plain} plain updates, for whose patients no ε holds" if self.plain else ""
        return f"ε = {self.noised.epsilon(delta):.4f}{also}"

    @property
    def charges(self) -> list[Entry]:
        """Entries that cost something."""
        return [entry for entry in self.entries if entry["kind"] == "charge"]

    def epsilon(
        self,
        delta: float,
        patients: frozenset[bytes] | None = None,
        more: Sequence[Spend] = (),
        *,
        until: int | None = None,
        coarse: bool = False,
    ) -> float:
        """ε of the worst-off patient.

        Args:
            delta: of the whole composition.
            patients: hashes of those who are asked about; None: of anybody.
            more: spends to come, on the patients asked about.
            until: number of the last entry that counts; None: all.
            coarse: quicker, and never smaller.
        """
        return max(epsilon(spends, delta, coarse=coarse) for spends in self.compositions(patients, more, until=until))

    def compositions(
        self, patients: frozenset[bytes] | None = None, more: Sequence[Spend] = (), *, until: int | None = None
    ) -> list[list[Spend]]:
        """The different things that were released about patients, one list for each group of them; at least one list."""
        spends: dict[str, list[Spend]] = {}
        for entry in self.charges:
            if until is None or entry["n"] <= until:
                spends.setdefault(entry["cohort"], []).append(spend_from_json(entry["spend"]))
        asked = frozenset().union(*(self.cohorts[name] for name in spends if name)) if patients is None else patients
        member: dict[bytes, frozenset[str]] = dict.fromkeys(asked, frozenset())
        for name in filter(None, spends):
            for patient in self.cohorts[name] & asked:
                member[patient] |= {name}
        groups = set(member.values()) or {frozenset()}
        largest = [group for group in groups if not any(group < other for other in groups)]
        return [[*more, *spends.get(EVERYBODY, []), *(s for name in sorted(group) for s in spends[name])] for group in largest]


@dataclass(frozen=True)
class Ledger:
    """The ledger in a folder of the hospital.

    Example:
        ledger = Ledger.open(Path("/srv/tmca/ledger"), witness=Path("/mnt/other-disk/tmca"))
        receipt = ledger.charge(Charge(NoisySteps(1.0, 0.03, 10), run="ab12", round=1), patients, Budget(8.0, 1e-5))
    """

    chain: Chain

    @classmethod
    def create(cls, folder: Path, witness: Path | None = None) -> Ledger:
        """A new ledger: once for a patient population, by the hospital, never by a run.

        Raises:
            LedgerError: there is one, there was one, or nothing can be written there.
        """
        return cls(Chain.create(folder, witness or folder))

    @classmethod
    def open(cls, folder: Path, witness: Path | None = None) -> Ledger:
        """The ledger that is there, checked.

        Raises:
            LedgerError: it is missing, damaged or older than its head.
        """
        folder = folder.parent if folder.name == ENTRIES else folder
        ledger = cls(Chain(folder.resolve(), (witness or folder).resolve()))
        ledger.read()
        return ledger

    def read(self) -> Spent:
        """All that was spent; every byte is checked.

        Raises:
            LedgerError: it is missing, damaged or older than its head.
        """
        with self.chain.locked(writing=False) as file:
            reading = self.chain.read(file)
            return Spent(reading.state, reading.entries, self._cohorts(reading.entries))

    def charge(self, charge: Charge, patients: Iterable[str], budget: Budget | None, target: Budget | None = None) -> Receipt:
        """Spend: the entry is on the disk when this returns, and only then may the release leave.

        Processes that charge at the same time wait for one another, so they cannot both spend the last of a budget.

        Args:
            charge: what is about to be released.
            patients: ids of those it is about; none: it counts for everybody.
            budget: the hospital's; None: the charge is only recorded.
            target: of the charge's run alone, all its charges taken as if they were about the same patients.

        Raises:
            BudgetExhausted: with this charge, somebody's ε would pass the budget, or the run's its target; nothing is recorded.
            LedgerError: the ledger cannot be read or written. The charge may count as spent, and nothing may be released.
        """
        members = self.hashes(patients)
        name = self.fingerprint(members)
        with self.chain.locked(writing=True) as file:
            reading = self.chain.read(file)
            cohorts = self._cohorts(reading.entries)
            projected = None
            if target is not None:
                _hold_run(target, charge, reading.entries)
            if budget is not None:
                spent, asked = Spent(reading.state, reading.entries, cohorts), members or None
                if budget.beside_plain:
                    spent = spent.noised
                elif spent.plain and math.isinf(spent.epsilon(budget.delta, asked, coarse=True)):
                    raise BudgetExhausted(
                        f"round {charge.round} of run {charge.run} is to be private, and plain updates of these patients have left before "
                        "(`tmca privacy ledger show`): no ε holds for them any more. Train on other patients, or say in site.toml why the "
                        'budget may count the noised releases alone: [privacy] beside_plain = "…".',
                        "Rule: budget of every patient; bound: none holds after plain updates of the same patients.",
                    )
                projected = spent.epsilon(budget.delta, asked, [charge.spend], coarse=True)
                if not projected <= budget.epsilon:  # the coarse bound is a little larger: near the end, look closer
                    projected = spent.epsilon(budget.delta, asked, [charge.spend])
                if not projected <= budget.epsilon:
                    raise BudgetExhausted(
                        f"round {charge.round} of run {charge.run} would bring ε to {projected:.4f} at δ = {budget.delta:g}, and this "
                        f"hospital's budget is {budget.epsilon:g} (spent: {spent.epsilon(budget.delta, asked):.4f}). Nothing was "
                        "computed or released. Ask for more noise or fewer steps; only the hospital can raise its budget.",
                        f"Rule: budget of every patient; bound: ε = {budget.epsilon:g} at δ = {budget.delta:g}.",
                    )
            if name and name not in cohorts:
                with self.chain.writing():
                    write_atomically(self._cohort_path(name), b"".join(sorted(members)))
                    sync_folder(self.chain.folder)
            bound = {} if budget is None else {"budget": {"epsilon": budget.epsilon, "delta": budget.delta}, "epsilon": projected}
            about = {key: value for key, value in vars(charge).items() if key != "spend" and value}
            whom = {"cohort": name, "patients": len(members)}
            entry = self.chain.append(file, reading, {"kind": "charge", **whom, "spend": spend_to_json(charge.spend), **about, **bound})
        return Receipt(entry["n"], entry["hash"], projected)

    def note(self, kind: Literal["agreed", "evaluation", "tuning", "restart", "figures"], **facts: Any) -> Entry:
        """Record what costs nothing by itself: terms agreed on, an evaluation, a tuning run, a restart, plain figures that leave.

        Args:
            kind: of the event. `figures`: how many plain numbers the policy let pass; no ε covers them.
            facts: JSON values.

        Raises:
            LedgerError: the ledger cannot be read or written; nothing may be released.
        """
        if kind not in NOTES or facts.keys() & {"n", "time", "previous", "hash", "kind", "clock"}:
            raise ConfigError(f"a ledger notes {', '.join(NOTES)}, and names its own fields; got {kind} with {', '.join(facts)}.")
        with self.chain.locked(writing=True) as file:
            return self.chain.append(file, self.chain.read(file), {"kind": kind, **facts})

    def hashes(self, patients: Iterable[str]) -> frozenset[bytes]:
        """Patients as the ledger knows them: HMAC-SHA256 of the id under a key that stays here, 16 bytes."""
        salt = self.chain.key("patients")
        return frozenset(hmac.digest(salt, patient.encode(), "sha256")[:HASH_BYTES] for patient in patients)

    def fingerprint(self, members: frozenset[bytes]) -> str:
        """Name of a cohort; tells nothing to who does not hold the key."""
        return hmac.digest(self.chain.key("cohort"), b"".join(sorted(members)), "sha256").hex() if members else EVERYBODY

    def _cohort_path(self, name: str) -> Path:
        return self.chain.folder / "cohorts" / name

    def _cohorts(self, entries: Sequence[Entry]) -> dict[str, frozenset[bytes]]:
        found: dict[str, frozenset[bytes]] = {}
        for name in {entry["cohort"] for entry in entries if entry["kind"] == "charge"} - {EVERYBODY}:
            path = self._cohort_path(name)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise LedgerError(f"a cohort of the ledger is missing: {path}: {error}. Restore it; nothing is released.") from None
            members = frozenset(content[i : i + HASH_BYTES] for i in range(0, len(content), HASH_BYTES))
            if self.fingerprint(members) != name or len(content) != HASH_BYTES * len(members):
                raise LedgerError(f"a cohort of the ledger was changed: {path}. Restore it; nothing is released.")
            found[name] = members
        return found


def _hold_run(target: Budget, charge: Charge, entries: Sequence[Entry]) -> None:
    """Refuse a charge by which its run would pass the run's own target."""
    before = [spend_from_json(entry["spend"]) for entry in entries if entry["kind"] == "charge" and entry.get("run") == charge.run]
    spends = [*before, charge.spend]
    # The coarse bound is a little larger: near the end, look closer.
    if not (epsilon(spends, target.delta, coarse=True) <= target.epsilon or epsilon(spends, target.delta) <= target.epsilon):
        raise BudgetExhausted(
            f"round {charge.round} would bring run {charge.run} to ε = {epsilon(spends, target.delta):.4f} at δ = {target.delta:g}, "
            f"and its target is {target.epsilon:g}. Nothing was computed or released. Ask for more noise or fewer steps.",
            f"Rule: privacy.target_epsilon of the run; bound: ε = {target.epsilon:g} at δ = {target.delta:g}.",
        )


def summary(spent: Spent, delta: float, points: int = 40) -> dict[str, Any]:
    """What a ledger says, for people, reports and `--json`.

    Args:
        spent: from `Ledger.read`.
        delta: at which ε is stated.
        points: at most so many places of ε over time.
    """
    from tmca_core.privacy.accounting import epsilons, finite

    charges, noised = spent.charges, spent.noised
    worst = max(spent.compositions(), key=lambda spends: epsilon(spends, delta))
    alone = max(noised.compositions(), key=lambda spends: epsilon(spends, delta))
    shown = [*charges[: -1 : max(1, -(-len(charges) // points))], *charges[-1:]]
    history = [(entry, noised.epsilon(delta, until=entry["n"], coarse=True)) for entry in shown]
    return {
        "state": spent.state,
        "entries": len(spent.entries),
        "charges": len(charges),
        "delta": delta,
        **epsilons(worst, delta).to_json(),
        "plain_updates": spent.plain,
        "noised_alone": epsilons(alone, delta).to_json()["epsilon"],
        "runs": dict(Counter(entry.get("run", "") for entry in charges)),
        "events": dict(Counter(entry["kind"] for entry in spent.entries)),
        "plain_figures": sum(int(entry.get("count", 0)) for entry in spent.entries if entry["kind"] == "figures"),
        "cohorts": {name[:16]: len(members) for name, members in spent.cohorts.items()},
        "history": [{"entry": e["n"], "time": e["time"], "run": e.get("run", ""), "epsilon": finite(value)} for e, value in history],
    }
