"""A tamper-evident record of one end of the federation: what was asked, which code answered, what left or came, which model resulted.

A site's record holds `approved`, `revoked`, `answered` and `refused` entries, a coordinator's `began`, `asked`, `received` and `model`.
What crossed from one end to the other is in both under the same digest, so that two records can be held against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tmca_core.messages import QUERY
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
    runs, codes = {entry["run"] for entry in began}, {entry["code"] for entry in began}
    answered = {
        (entry["run"], entry["asked"], entry["round"], entry["digest"]): entry
        for entry in site
        if entry["kind"] == "answered" and entry["run"] in runs and entry["asked"] != QUERY and "error" not in entry
    }
    asked, received = _crossed(coordinator, "asked", name), _crossed(coordinator, "received", name)
    wrong = [
        f"round {round}, {what}: the coordinator has an answer {digest[:12]}… of run {run} that the site's record has not."
        for run, what, round, digest in sorted(received - answered.keys())
    ]
    for (run, what, round, _), entry in sorted(answered.items()):
        if (run, what, round, entry["request"]) not in asked:
            wrong.append(f"round {round}, {what}: the site was asked {entry['request'][:12]}…, which the coordinator's record has not.")
        if entry["code"] not in codes:
            wrong.append(f"round {round}, {what}: the site ran code {entry['code'][:12]}…, which the coordinator's record has not.")
    return Comparison(len(received & answered.keys()), len(answered.keys() - received), wrong)


def _crossed(coordinator: Sequence[Entry], kind: Kind, name: str) -> set[tuple[str, str, int, str]]:
    """(run, what, round, digest) of what went to the site `name`, or came from it, by a coordinator's record."""
    return {
        (entry["run"], entry["asked"], entry["round"], entry["sites"][name])
        for entry in coordinator
        if entry["kind"] == kind and name in entry["sites"]
    }


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of a message as a record keeps them: bytes by their length."""
    return {key: f"{len(value)} bytes" if isinstance(value, bytes) else value for key, value in values.items()}
