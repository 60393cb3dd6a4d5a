"""A tamper-evident record of one end of the federation: what was asked, which code answered, what left or came, which model resulted.

A site's record holds `approved`, `revoked`, `answered` and `refused` entries, a coordinator's `began`, `asked`, `received` and `model`.
What crossed from one end to the other is in both under the same digest, so that two records can be held against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tmca_core.messages import QUERY, TRAIN
from tmca_core.privacy.chain import RECORD, Chain, Entry

Kind = Literal["approved", "revoked", "answered", "refused", "began", "asked", "received", "model"]


@dataclass(frozen=True)
class Record:
    """One end's record.

    Example:
        Record.open(folder).note("answered", asked="train", round=3, digest="…")
    """

    chain: Chain

    @classmethod
    def open(cls, folder: Path, witness: Path | None = None, *, make: bool = False) -> Record:
        """The record in a folder; with `make` a new one where there is none.

        Raises:
            LedgerError: it is missing, damaged or cannot be written.
        """
        place = folder.resolve(), (witness or folder).resolve()
        if make and not (place[0] / "record.jsonl").exists():
            return cls(Chain.create(*place, RECORD))
        record = cls(Chain(*place, RECORD))
        record.entries()
        return record

    def entries(self) -> Sequence[Entry]:
        """All entries, every byte checked.

        Raises:
            LedgerError: anything is missing or was changed.
        """
        with self.chain.locked(writing=False) as file:
            return self.chain.read(file).entries

    def note(self, kind: Kind, **facts: Any) -> Entry:
        """Add an entry; it is on the disk when this returns.

        Raises:
            LedgerError: it could not be written: what it is about must not happen.
        """
        with self.chain.locked(writing=True) as file:
            return self.chain.append(file, self.chain.read(file), {"kind": kind, **facts})

    def approved(self) -> dict[str, Entry]:
        """Approvals in force, by the app's hash."""
        found: dict[str, Entry] = {}
        for entry in self.entries():
            if entry["kind"] == "approved":
                found[entry["app"]] = entry
            elif entry["kind"] == "revoked":
                found.pop(entry["app"], None)
        return found


@dataclass(frozen=True)
class Comparison:
    """What two records say about the same run.

    Attributes:
        agreed: messages that both ends have, with the same digest.
        lost: answers that left the site and that the coordinator does not have; a lost or late reply is no fault.
        wrong: everything else, one line each.
    """

    agreed: int
    lost: int
    wrong: list[str]


def compare(coordinator: Sequence[Entry], site: Sequence[Entry], name: str) -> Comparison:
    """Hold a coordinator's record of a run against a site's; of hellos, which ask for nothing, only the site keeps a record.

    Args:
        coordinator: entries of a run's record.
        site: entries of the record of the site `name`, of any number of runs.
    """
    began = [entry for entry in coordinator if entry["kind"] == "began"]
    runs, codes, configs = ({entry[key] for entry in began} for key in ("run", "code", "config"))
    answered = {
        (entry["run"], entry["asked"], entry["round"], entry["digest"]): entry
        for entry in site
        if entry["kind"] == "answered" and entry["run"] in runs and entry["asked"] != QUERY and "error" not in entry
    }
    asked, received = _crossed(coordinator, "asked", name), _crossed(coordinator, "received", name).keys()
    wrong = [
        f"round {round}, {what}: the coordinator has an answer {digest[:12]}… of run {run} that the site's record has not."
        for run, what, round, digest in sorted(received - answered.keys())
    ]
    for (run, what, round, _), entry in sorted(answered.items()):
        weights = asked.get((run, what, round, entry["request"]))
        if weights is None:
            wrong.append(f"round {round}, {what}: the site was asked {entry['request'][:12]}…, which the coordinator's record has not.")
        elif weights != entry["weights"]:
            wrong.append(f"round {round}, {what}: the site got weights {entry['weights'][:12]}…, the coordinator says {weights[:12]}….")
        if entry["code"] not in codes:
            wrong.append(f"round {round}, {what}: the site ran code {entry['code'][:12]}…, which the coordinator's record has not.")
        if entry["config"] not in configs:
            wrong.append(f"round {round}, {what}: the site was set {entry['config'][:12]}…, which the coordinator's record has not.")
    return Comparison(len(received & answered.keys()), len(answered.keys() - received), wrong)


def astray(coordinator: Sequence[Entry]) -> list[str]:
    """Where a coordinator's own record says that a round's sites did not all begin from the model of the round before, a line each.

    A run that is started again goes on from the round that its `began` says: what came after that is forgotten.
    """
    start: dict[tuple[str, int], str] = {}
    wrong = []
    for entry in coordinator:
        if entry["kind"] == "began":
            start = {at: weights for at, weights in start.items() if at[0] != entry["run"] or at[1] <= entry["round"] + 1}
        elif entry["kind"] == "model" or (entry["kind"] == "asked" and entry["asked"] == TRAIN):
            round, weights = entry["round"] + (entry["kind"] == "model"), entry["weights"]
            if (known := start.setdefault((entry["run"], round), weights)) != weights:
                named = ", ".join(entry["sites"]) if entry["kind"] == "asked" else "the model before it"
                wrong.append(f"round {round} begins from weights {known[:12]}… and, for {named}, from {weights[:12]}….")
    return wrong


def _crossed(coordinator: Sequence[Entry], kind: Kind, name: str) -> dict[tuple[str, str, int, str], str]:
    """(run, what, round, digest) of what went to the site `name`, or came from it, by a coordinator's record; with the weights asked."""
    return {
        (entry["run"], entry["asked"], entry["round"], entry["sites"][name]): entry.get("weights", "")
        for entry in coordinator
        if entry["kind"] == kind and name in entry["sites"]
    }


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of a message as a record keeps them: bytes by their length."""
    return {key: f"{len(value)} bytes" if isinstance(value, bytes) else value for key, value in values.items()}
