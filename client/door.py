"""The site's door: what a server asks is held against the hospital's policy before any case is read, and what leaves passes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from client.node import simulated
from tmca_core.config import Config
from tmca_core.errors import ConfigError, PolicyRefusal
from tmca_core.privacy.accounting import PLAIN
from tmca_core.privacy.charging import Account
from tmca_core.privacy.ledger import PLAIN_PURPOSE, Charge, Ledger
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.planning import mechanism_of
from tmca_core.privacy.policy import Policy, load_policy, open_ledger, request_of
from tmca_core.training.scores import SiteSummary
from tmca_core.training.told import CASES, means

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """A hospital's policy and its ledger; without a policy everything passes.

    Attributes:
        policy: None: of a simulation's site, or of a hospital that takes part in plain runs only.
        ledger: the policy's; None without one.
    """

    policy: Policy | None = None
    ledger: Ledger | None = None

    @classmethod
    def of(cls, policy: Path | None) -> Door:
        """The door of a site with the policy in a file.

        Raises:
            ConfigError: the file cannot be read.
            LedgerError: the ledger that it names is missing or damaged.
        """
        if policy is None:
            return cls()
        loaded = load_policy(policy)
        return cls(loaded, open_ledger(loaded))

    def admit(self, config: Config, patients: int, app: str, run: str | None) -> None:
        """Let a server's request in, or refuse it.

        Args:
            config: of the run.
            patients: that would train, as far as the site can tell.
            app: sha256 of the code.
            run: that holds the server to its terms from its first message on; None: of a server that only asks who is there.

        Raises:
            PolicyRefusal: naming the rule.
            LedgerError: the terms cannot be noted.
        """
        if self.policy is None or self.ledger is None:
            return
        request = request_of(config, patients, self.count(patients), app)
        self.policy.check(request)  # before a file that the server names is looked at
        request = replace(request, starts=self.policy.starts_of(config))
        if run is None:
            self.policy.check(request)
        else:
            self.policy.agree(request, self.ledger, run)

    def count(self, number: int) -> int | None:
        """A number of cases or patients as it may leave; None: it stays here."""
        return number if self.policy is None else self.policy.count_out(number)

    def mechanism(self, config: Config, patients: int) -> Mechanism:
        """What a private step does, from numbers that are public.

        Where the number of patients stays here the run has set its rate, and sums are divided by `training.batch_size`.
        """
        public = self.count(patients)
        if public is None:
            return replace(mechanism_of(config, patients), expected=float(config.training.batch_size))
        return mechanism_of(config, max(1, public))

    def account(self, default: Callable[[], Account]) -> Account:
        """Who pays: the policy's ledger up to its budget, or else the `default`."""
        return default() if self.policy is None or self.ledger is None else Account(self.ledger, self.policy.budget)

    def note_plain(self, patients: Iterable[str], config: Config, **about: Any) -> None:
        """Put an update without noise on the ledger, which is about to leave: from then on no ε holds for its patients.

        Raises:
            LedgerError: it could not be written: nothing may leave.
        """
        if self.ledger is not None:
            self.ledger.charge(Charge(PLAIN, purpose=PLAIN_PURPOSE, config=config.digest(), **about), patients, None)

    def trained(self, metrics: Mapping[str, float], public: tuple[str, ...], cases: int) -> dict[str, float]:
        """The metrics of a turn that may leave.

        Args:
            metrics: by name; `cases` is a count, all others are over the site's training cases.
            public: of them, those that no case has a part in.
            cases: of the site's training split.
        """
        if self.policy is None:
            return dict(metrics)
        seen = self.count(int(metrics["cases"])) if "cases" in metrics else None
        plain = {name: value for name, value in metrics.items() if name not in (*public, "cases")}
        free = {name: value for name, value in metrics.items() if name in public}
        return {**free, **self.policy.let_out(plain, cases), **({} if seen is None else {"cases": seen})}

    def evaluated(self, summary: SiteSummary) -> SiteSummary:
        """The figures of an evaluation that may leave: all sums and counts, or under a policy the means that it allows."""
        if self.policy is None:
            return summary
        told: SiteSummary = {}
        for name, value in means(summary).items():
            told |= self.policy.let_out({name: value}, summary[CASES[name]])
        return told

    @property
    def mute(self) -> bool:
        """No figure of an evaluation would ever leave."""
        return self.policy is not None and not set(self.policy.metrics.allowed) & set(CASES)

    def measures(self, config: Config, run: str, round: int, split: str, weights: Callable[[], str]) -> bool:
        """Note an evaluation, or refrain from it: of a round and a split of a run one model is measured, as often as it is asked for.

        Figures of many models, made for it by a server, would tell the cases apart. Where a round was done again after a crash and its
        weights are others, this site's figures of the round are those that left before.

        Args:
            weights: gives the digest of what was received.

        Raises:
            LedgerError: it could not be noted: nothing may leave.
        """
        if self.ledger is None:
            return True
        about, model = {"run": run, "round": round, "split": split}, {"weights": weights(), "config": config.digest()}
        before = self._measured(about, model)
        if before in (None, model):
            self.ledger.note("evaluation", **about, **model)
            before = self._measured(about, model)  # of two processes that were asked at once, the first noted counts
        if before != model:
            log.warning(
                "site policy: the %s figures of round %d of run %s left for another model; those of this one stay here.", split, round, run
            )
        return before == model

    def _measured(self, about: Mapping[str, Any], model: Mapping[str, str]) -> dict[str, Any] | None:
        """The model that was measured first; None where none was."""
        entries = self.ledger.read().entries if self.ledger else ()
        found = (entry for entry in entries if entry["kind"] == "evaluation" and about.items() <= entry.items())
        return next(({key: entry.get(key) for key in model} for entry in found), None)

    def note(self, kind: Literal["evaluation", "figures"], **facts: Any) -> None:
        """Write down what happened to the patients beside training; it is on the disk when this returns.

        Raises:
            LedgerError: it could not be written: nothing may leave.
        """
        if self.ledger is not None:
            self.ledger.note(kind, **facts)

    def note_figures(self, names: list[str], **facts: Any) -> None:
        """Note plain figures that are about to leave, where there are any."""
        if names:
            self.note("figures", count=len(names), names=sorted(names), **facts)


OPEN = Door()
"""Of a site without a policy."""


def policy_of(config: Config, node: Mapping[str, Any], name: Callable[[], str]) -> Path | None:
    """File of the policy of a node's site; None where it has none.

    A hospital's is named by its node-config alone, a simulated site's by `simulation.policies`.

    Args:
        name: of the site.

    Raises:
        PolicyRefusal: a hospital without a policy is asked for a private run: nobody has said what may be spent.
        ConfigError: a simulation has policies, and none for this site.
    """
    if simulated(node):
        if not config.simulation.policies:
            return None
        path = Path(config.simulation.policies) / f"{quote(name(), safe='')}.toml"
        if not path.is_file():
            raise ConfigError(f"simulation.policies has no policy for site '{name()}': write {path}. A site without one would let all out.")
        return path
    if node.get("policy"):
        return Path(str(node["policy"]))
    if config.privacy.enabled:
        what = "this site names no policy, so nobody has said what may be spent on its patients"
        bound = 'private runs need policy="/path/of/site.toml" in the --node-config'
        raise PolicyRefusal(f"{what}: {bound}.", f"Rule: {what}; bound: {bound}.")
    log.warning(
        "this site has no policy: the run's plain updates, its counts and its figures leave as they are. Name one with "
        'policy="/path/of/site.toml" in the --node-config.'
    )
    return None
