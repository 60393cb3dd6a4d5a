"""A run's folder: config, metrics, checkpoints, summary. Every file is written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmca_core import config as configuration
from tmca_core.config import Config
from tmca_core.errors import ConfigError, LedgerError, StorageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor  # the ledger writes through this module, and needs no torch


def write_atomically(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Write `path` so that a reader or a crash sees the old file or the new one (tmp, fsync, rename).

    Args:
        private: nobody but the owner can read it, from its first byte on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Checkpoint:
    """Weights after a round and the state needed to go on from it.

    Attributes:
        round: rounds completed (0: initial weights).
        weights: name → tensor, CPU.
        state: JSON values.
        training: optimiser state by name, where the run itself trains (not in a federation: it stays at the sites).
    """

    round: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    training: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Example:
        run = Run.create(Path("runs/a"), config); run.log("round", round=1, dice_image=0.7)
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: Config) -> Run:
        """Make the folder, or go on in it where it holds the same configuration.

        Raises:
            ConfigError: the folder holds a run of another configuration, or files that are not a run.
        """
        run = cls(folder)
        if run.config_path.exists():
            if run.config().digest() != config.digest():
                raise ConfigError(
                    f"{folder} holds a run of another configuration: {_difference(run.config(), config)}. "
                    "Choose another --out, or repeat the command as it was."
                )
        elif folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no run (no config.toml). Choose another --out.")
        else:
            with run.writing(run.config_path):
                write_atomically(run.config_path, config.to_toml())
        return run

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Around whatever writes below the folder: a full or unwritable disk becomes one clear error.

        Raises:
            StorageError: saying what is kept and how to go on.
        """
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:
            kept = self.checkpoints()
            raise StorageError(
                f"cannot write {path}: {error}. "
                + (f"{kept[-1].name} is kept whole in {kept[-1].parent}" if kept else "No round is kept yet")
                + "; make room, or make the folder writable, and repeat the command to go on from there."
            ) from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from working in this folder meanwhile; a process that dies lets go of it.

        Raises:
            ConfigError: another process is at work here.
        """
        with self.writing(self.folder / ".lock"):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"another process is at work in {self.folder}. Wait for it, or choose another --out.") from None
            yield

    @property
    def config_path(self) -> Path:
        """The resolved configuration's file."""
        return self.folder / "config.toml"

    def config(self) -> Config:
        """The resolved configuration."""
        return configuration.load(self.config_path)

    # --- metrics.jsonl: one line an event -------------------------------------------------------
    def log(self, event: str, **fields: Any) -> None:
        """Append one event. A torn last line of an interrupted run is ended first, and later ignored."""
        path = self.folder / "metrics.jsonl"
        with self.writing(path), path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps({"event": event, **fields}, allow_nan=False).encode() + b"\n")

    def events(self, event: str | None = None) -> Iterator[dict[str, Any]]:
        """Events in order, of one kind or all; torn lines are passed over."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        for line in path.read_bytes().splitlines():
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if event is None or fields.get("event") == event:
                yield fields

    # --- JSON documents -------------------------------------------------------------------------
    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Write a JSON document atomically; NaN is refused (use None)."""
        path = self.folder / name
        with self.writing(path):
            write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON document; an absent one is an empty dict."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def read_spent(self, name: str, rounds: Callable[[dict[str, Any]], int]) -> dict[str, Any]:
        """A document to which every round adds, before its checkpoint is written, what it releases.

        Args:
            rounds: how many rounds a document knows of.

        Raises:
            LedgerError: it is damaged, missing or older than the last checkpoint: what was spent is not known any more.
        """
        path, done = self.folder / name, self.done
        restore = "Restore it, or begin a run in another folder; nothing is released."
        try:
            value = self.read_json(name)
            known = rounds(value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise LedgerError(f"{path}, which says what this run has released, is damaged ({error}). {restore}") from None
        if known < done:
            raise LedgerError(
                f"{path} says that {known} rounds have released something, and there are checkpoints of {done}: it is missing or older "
                f"than they are, and what was spent would be understated. {restore}"
            )
        return value

    def keep(self, name: str, value: Mapping[str, Any]) -> None:
        """Store what a run stands on (splits, digests of the data and of the start) once; a resumed run must find the same.

        Raises:
            ConfigError: the folder holds a run over other cases, or from other weights.
        """
        before = self.read_json(name)
        changed = sorted(key for key in {*before, *value} if before.get(key) != value.get(key))
        if before and changed:
            raise ConfigError(
                f"{self.folder} holds a run over other cases or from another start ({name}: {', '.join(changed)} differ). "
                "Choose another --out."
            )
        if not before:
            self.write_json(name, value)

    # --- checkpoints ----------------------------------------------------------------------------
    def save_checkpoint(self, checkpoint: Checkpoint, arm: str = "", keep: int = 0, spare: int | None = None) -> Path:
        """Write `checkpoints/[arm/]round-NNN/{model.safetensors,state.json}`: the folder appears whole.

        With `keep` above 0 only that many of the newest rounds stay, and round `spare`.

        Raises:
            StorageError: the disk is full or not writable; the checkpoints that were there are still there.
        """
        root = self.folder / "checkpoints" / arm
        final = root / f"round-{checkpoint.round:03d}"
        tmp = root / f".round-{checkpoint.round:03d}.{os.getpid()}.tmp"
        with self.writing(final):
            try:
                _write_checkpoint(checkpoint, tmp)
            except Exception:
                shutil.rmtree(tmp, ignore_errors=True)
                raise
            shutil.rmtree(final, ignore_errors=True)
            tmp.replace(final)
            sync_folder(root)
        for torn in root.glob(".round-*.tmp"):  # of attempts that were killed
            shutil.rmtree(torn, ignore_errors=True)
        for old in self.checkpoints(arm)[:-keep] if keep else []:
            if spare is None or old.name != f"round-{spare:03d}":
                shutil.rmtree(old)
        return final

    def checkpoints(self, arm: str = "") -> list[Path]:
        """Complete checkpoint folders, oldest first."""
        root = self.folder / "checkpoints" / arm
        rounds = [(int(m[1]), p) for p in root.glob("round-*") if (m := re.fullmatch(r"round-(\d+)", p.name))]
        return [path for _, path in sorted(rounds)]

    @property
    def done(self) -> int:
        """The newest round of which there is a complete checkpoint; 0: none."""
        saved = self.checkpoints()
        return int(saved[-1].name.removeprefix("round-")) if saved else 0

    def checkpoint(self, round: int) -> Checkpoint:
        """The checkpoint of a round.

        Raises:
            WeightsError: it is missing or damaged.
        """
        return load_checkpoint(self.folder / "checkpoints" / f"round-{round:03d}")

    def last_checkpoint(self, arm: str = "") -> Checkpoint | None:
        """The newest complete checkpoint, or None."""
        folders = self.checkpoints(arm)
        return load_checkpoint(folders[-1]) if folders else None


def _write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in checkpoint.weights.items()}, str(folder / "model.safetensors"))
    if checkpoint.training:
        save_file(checkpoint.training, str(folder / "training.safetensors"))
    (folder / "state.json").write_text(json.dumps({"round": checkpoint.round, **checkpoint.state}, allow_nan=False))
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(str(folder / "model.safetensors"))
        state = json.loads((folder / "state.json").read_text())
        extra = folder / "training.safetensors"
        training = load_file(str(extra)) if extra.exists() else {}
        return Checkpoint(int(state.pop("round")), weights, state, training)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise WeightsError(f"cannot read the checkpoint {folder}: {error}. Delete it to go on from the one before.") from None


def _difference(old: Config, new: Config) -> str:
    before, after = old.flat(), new.flat()
    return ", ".join(f"{k} was {before[k]!r}, is {after[k]!r}" for k in before if before[k] != after[k])
