"""The good replies of the round under way, on disk: what was paid for with a site's time is not asked for again after a crash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from tmca_core.run import Run, sync_folder, write_atomically
from tmca_core.wire import to_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A site's answer to `train` as it came.

    Attributes:
        tensors: on the wire (maybe compressed). `settings`, `metrics`: its records.
        bytes: of the whole answer.
        seconds: until it came.
        weight, steps: what the site announced: its weight in the mean, and the local steps that its cases ask for.
    """

    site: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    metrics: dict[str, Any]
    bytes: int
    seconds: float
    weight: int
    steps: int


@dataclass
class Received:
    """`received/round-NNN/` of a run: `cohort.json`, who was asked, and `SITE.safetensors`, whole replies in the order they came."""

    run: Run
    round: int
    _next: int = 0

    @property
    def folder(self) -> Path:
        """Of this round."""
        return self.run.folder / "received" / f"round-{self.round:03d}"

    def cohort(self, drawn: Sequence[str], start: str) -> list[str]:
        """The sites of this round: those asked before a crash, else those drawn now, which are written down.

        Args:
            drawn: now.
            start: digest of what the round begins with; replies to anything else are worth nothing, and are removed.
        """
        path = self.folder / "cohort.json"
        if path.exists():
            before = json.loads(path.read_text())
            if before["start"] == start:
                asked: list[str] = before["sites"]
                return asked
            log.warning("the replies in %s are to other weights: they are removed, and their sites asked again.", self.folder)
            self.discard()
        return self.pin(drawn, start)

    def pin(self, cohort: Sequence[str], start: str) -> list[str]:
        """Write down who is asked."""
        path = self.folder / "cohort.json"
        with self.run.writing(path):
            write_atomically(path, json.dumps({"start": start, "sites": list(cohort)}))
        return list(cohort)

    def discard(self) -> None:
        """Remove all that is kept of this round."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def drop(self, site: str) -> None:
        """Remove a site's reply."""
        self._path(site).unlink(missing_ok=True)

    def write(self, reply: Reply) -> None:
        """Put a reply on disk, whole (tmp, fsync, rename).

        Raises:
            StorageError: the disk is full or not writable.
        """
        from safetensors.torch import save_file

        values = {field.name: getattr(reply, field.name) for field in fields(reply) if field.name != "tensors"}
        values["order"], self._next = self._next, self._next + 1
        path = self._path(reply.site)
        tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self.run.writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in reply.tensors.items()}, str(tmp), {"reply": json.dumps(values)})
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            tmp.replace(path)
            sync_folder(self.folder)

    def replies(self) -> Iterator[Reply]:
        """What is there, in the order of arrival, one in memory at a time; what is written afterwards comes after it."""
        from safetensors import safe_open

        for path, values in self._listed():
            with safe_open(str(path), framework="pt") as file:
                yield Reply(tensors={name: file.get_tensor(name) for name in file.keys()}, **values)  # noqa: SIM118  (no mapping)

    def sites(self) -> list[str]:
        """Whose replies are there, in the order of arrival."""
        return [values["site"] for _, values in self._listed()]

    def _listed(self) -> list[tuple[Path, dict[str, Any]]]:
        """Files and what they say beside tensors, in order; a damaged one is removed, so that its site is asked again."""
        from safetensors import SafetensorError, safe_open

        order: list[tuple[int, Path, dict[str, Any]]] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(str(path), framework="pt") as file:
                    values = json.loads(file.metadata()["reply"])
                order.append((values.pop("order"), path, values))
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                log.warning("%s cannot be read (%s): it is removed, and its site asked again.", path, error)
                path.unlink(missing_ok=True)
        order.sort(key=lambda entry: entry[0])
        self._next = max(self._next, order[-1][0] + 1) if order else self._next
        return [(path, values) for _, path, values in order]

    def _path(self, site: str) -> Path:
        return self.folder / f"{_file_name(site)}.safetensors"


def start_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and bits of what a round sends."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(to_bytes(tensor))
    return digest.hexdigest()


def clear(run: Run, upto: int, beyond: int | None = None) -> None:
    """Remove the replies of all rounds up to `upto`, for a checkpoint holds what they were for; and of those after round `beyond`.

    These belong to rounds whose start is lost: the one before them is done again, at the sites too.
    """
    for folder in (run.folder / "received").glob("round-*"):
        number = int(folder.name.removeprefix("round-"))
        if number <= upto or (beyond is not None and number > beyond):
            shutil.rmtree(folder, ignore_errors=True)


def _file_name(site: str) -> str:
    """A file name for any name of a site, each its own: `quote` gives neither "%2E" nor "+"."""
    name = quote(site, safe="")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    return name if len(name) <= 150 else f"{name[:100]}+{hashlib.sha256(site.encode()).hexdigest()}"
