"""The good replies of the round under way, on disk: what was paid for with a site's time is not asked for again after a crash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from tmca_core.run import Run, sync_folder, write_atomically

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


@dataclass(frozen=True)
class Received:
    """`received/round-NNN/` of a run: `cohort.json`, who was asked, and `SITE.safetensors`, whole replies in the order they came."""

    run: Run
    round: int

    @property
    def folder(self) -> Path:
        """Of this round."""
        return self.run.folder / "received" / f"round-{self.round:03d}"

    def cohort(self, drawn: Sequence[str]) -> list[str]:
        """The sites of this round: those asked before a crash, else those drawn now, which are written down."""
        path = self.folder / "cohort.json"
        if path.exists():
            asked: list[str] = json.loads(path.read_text())
            return asked
        with self.run.writing(path):
            write_atomically(path, json.dumps(list(drawn)))
        return list(drawn)

    def write(self, reply: Reply) -> None:
        """Put a reply on disk, whole (tmp, fsync, rename).

        Raises:
            StorageError: the disk is full or not writable.
        """
        from safetensors.torch import save_file

        values = {field.name: getattr(reply, field.name) for field in fields(reply) if field.name != "tensors"}
        values["order"] = len(list(self.folder.glob("*.safetensors")))
        path = self.folder / f"{_file_name(reply.site)}.safetensors"
        tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self.run.writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in reply.tensors.items()}, str(tmp), {"reply": json.dumps(values)})
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            tmp.replace(path)
            sync_folder(self.folder)

    def replies(self) -> Iterator[Reply]:
        """What is there, in the order of arrival, one in memory at a time; a damaged file is removed, so that its site is asked again."""
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
        for _, path, values in sorted(order, key=lambda entry: entry[0]):
            with safe_open(str(path), framework="pt") as file:
                yield Reply(tensors={name: file.get_tensor(name) for name in file.keys()}, **values)  # noqa: SIM118  (no mapping)


def clear(run: Run, upto: int) -> None:
    """Remove the replies of all rounds up to `upto`: a checkpoint holds what they were for."""
    for folder in (run.folder / "received").glob("round-*"):
        if int(folder.name.removeprefix("round-")) <= upto:
            shutil.rmtree(folder, ignore_errors=True)


def _file_name(site: str) -> str:
    """A file name for any name of a site."""
    name = quote(site, safe="")
    name = name if len(name) <= 150 else f"{name[:100]}-{hashlib.sha256(site.encode()).hexdigest()[:16]}"
    return f"_{name}" if name.startswith(".") else name
