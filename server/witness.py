"""The coordinator's record of a deployed run: what was asked of whom, what came back, which weights resulted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flwr.app import Message
from torch import Tensor

from server.exchange import Answer
from tmca_core.digests import message_digest, shared_digest, tensors_digest, weights_digest
from tmca_core.record import Record
from tmca_core.run import Run


class Witness:
    """Writes `record` in a run's folder; each entry is on the disk before the run goes on.

    Args:
        run: whose record it is.
        name: the run's name for its sites.
        config, code: digests of what the run stands on.
        round: that it begins after.

    Raises:
        LedgerError: the record is damaged or cannot be written, here and in every method.
    """

    def __init__(self, run: Run, name: str, config: str, code: str, round: int) -> None:
        self._record, self._name = Record.open(run.folder / "record", make=True), name
        self._record.note("began", run=name, round=round, config=config, code=code)

    def watch(self, requests: Mapping[str, Message], round: int, answers: Iterator[Answer]) -> Iterator[Answer]:
        """The answers of an exchange; its requests, which all carry the same weights, are noted before the first, the answers after it."""
        if not requests:
            yield from answers
            return
        first = next(iter(requests.values()))
        tensors, received = tensors_digest(first.content), dict[str, str]()
        about = {"run": self._name, "round": round, "asked": first.metadata.message_type}
        sites = {site: message_digest(message.content, tensors) for site, message in requests.items()}
        self._record.note("asked", sites=sites, weights=shared_digest(first.content, tensors), **about)
        try:
            for answer in answers:
                if answer.content is not None:
                    received[answer.site] = message_digest(answer.content)
                yield answer
        finally:
            if received:
                self._record.note("received", sites=received, **about)

    def model(self, round: int, weights: Mapping[str, Tensor]) -> None:
        """The shared tensors at a round's end."""
        self._record.note("model", run=self._name, round=round, weights=weights_digest(weights))
