"""An append-only file of hash-chained JSON lines that notices every loss, change and torn write: a ledger, or a record.

Three files of a ledger's folder: `ledger.jsonl` with the entries (of a record `record.jsonl`), each holding the sha256 of its predecessor;
`site.key`, 32 secret bytes; and the head, `head.json`, sealed with that key, which may lie in another folder (the witness), best on
another disk.

The head is a write-ahead log of one line. It says how many entries there are, the hash of the last, and the whole next line,
and it is on the disk before that line is begun. Whatever stops a write, the line is known and counts: a torn or missing last line is
`interrupted`, is read as if it were there, and is completed by the next write. Everything else that differs is damage, and refused.

Who can write the ledger but neither key nor head cannot change it unnoticed. Who can put back an old copy of BOTH the folder and
the head can: no file can tell. A witness in a place with other owners and other backups is the defence.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from tmca_core.errors import LedgerError
from tmca_core.run import sync_folder, write_atomically

State = Literal["intact", "interrupted"]
Entry = dict[str, Any]

ENTRIES, KEY, HEAD = "ledger.jsonl", "site.key", "head.json"
LEDGER, RECORD = "privacy ledger", "record"
FILES = {LEDGER: ENTRIES, RECORD: "record.jsonl"}
BEGIN = {
    LEDGER: "For patients that nothing was ever released about: tmca privacy ledger init",
    RECORD: "Where nothing was ever done, the first `tmca deploy approve` makes one in",
}
NOTHING = "0" * 64
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Reading:
    """What a chain holds.

    Attributes:
        state: `interrupted`: the last entry is in the head, but not (whole) in the file.
        entries: all of them, the first being the one of the creation.
        length: bytes of the file up to its last whole entry.
    """

    state: State
    entries: Sequence[Entry]
    length: int


@dataclass(frozen=True)
class Chain:
    """The files of one ledger or record.

    Attributes:
        folder: holds entries and key.
        witness: holds the head; `folder` itself where none is kept elsewhere.
        what: `LEDGER` or `RECORD`.
    """

    folder: Path
    witness: Path
    what: str = LEDGER

    @property
    def path(self) -> Path:
        """The file of the entries."""
        return self.folder / FILES[self.what]

    @classmethod
    def create(cls, folder: Path, witness: Path, what: str = LEDGER) -> Chain:
        """Make a new chain, once in the life of a ledger.

        Raises:
            LedgerError: there is one, there was one, or nothing can be written there.
        """
        chain = cls(folder.resolve(), witness.resolve(), what)
        for path in (chain.path, chain.folder / KEY, chain.witness / HEAD):
            if path.exists():
                raise LedgerError(
                    f"{path} is there: a {what} exists or existed here. Use it as it is; if its other files are lost, restore them. "
                    + ("A new ledger would forget what has been spent on these patients." if what == LEDGER else "")
                )
        with chain.writing():
            chain.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            chain.witness.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(chain.folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            os.close(os.open(chain.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            sync_folder(chain.folder)
            sync_folder(chain.folder.parent)
            sync_folder(chain.witness.parent)
        with chain.locked(writing=True) as file:
            chain._append(file, Reading("intact", [], 0), {"kind": "created", "witness": chain._place()})
        return chain

    @contextmanager
    def locked(self, *, writing: bool) -> Iterator[FileIO]:
        """The entries' file, held against other processes and threads; a process that dies lets go of it.

        Raises:
            LedgerError: it is missing, may not be written, or stays held for a minute.
        """
        path = self.path
        try:
            file = path.open("r+b" if writing else "rb", buffering=0)  # what could not be written must not be tried again at closing
        except FileNotFoundError:
            raise LedgerError(
                f"there is no {self.what} at {path}. If one existed, restore it: without it nothing may be released. "
                f"{BEGIN[self.what]} {self.folder}"
            ) from None
        except OSError as error:
            raise LedgerError(f"the {self.what} {path} cannot be opened: {error}. Nothing is released.") from None
        with file:
            until = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise LedgerError(f"another process has held {path} for {LOCK_SECONDS:.0f} s. Nothing is released.") from None
                    time.sleep(0.005)
                except OSError as error:
                    raise LedgerError(f"{path} cannot be locked: {error}. Keep it on a local disk. Nothing is released.") from None
            yield file

    def read(self, file: FileIO) -> Reading:
        """All entries, every byte of them checked.

        Raises:
            LedgerError: anything is missing or is not as it was written.
        """
        head = self._head()
        pending = head["pending"].encode() + b"\n"
        try:
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be read: {error}. Nothing is released.") from None
        whole, count = lines[: head["count"] + 1], head["count"]
        interrupted = len(lines) <= count or whole[count] != pending
        if interrupted:
            # What a crash leaves: nothing, a part of the line, or blocks that were allotted and never filled.
            rest = b"".join(lines[count:])
            if len(lines) < count or len(rest) > len(pending) or not pending.startswith(rest.rstrip(b"\0")):
                raise self._damaged(f"entry {count}" if len(lines) > count else f"entry {len(lines)} and later", "changed or missing")
            whole = whole[:count]
        elif len(lines) > count + 1:
            raise self._damaged(f"entry {count + 1}", "not one that the head knows: an older head was put back, or a line was added")
        entries: list[Entry] = []
        before = NOTHING
        for number, line in enumerate([*whole, pending] if interrupted else whole):
            entry = _parsed(line)
            if entry is None or entry.get("n") != number or entry.get("previous") != before:
                raise self._damaged(f"entry {number}", "changed or torn out of the chain")
            if number == count and before != head["last"]:
                raise self._damaged(f"entry {number - 1}", "not the one that the head knows")
            before = entry["hash"]
            entries.append(entry)
        if entries[0].get("witness") != self._place():  # else a folder restored with a head of its own age would pass
            raise LedgerError(
                f"the head of the {self.what} {self.folder} is kept {entries[0].get('witness')}, not {self._place()}: name its folder as "
                "the witness, as when it was made. Nothing is released."
            )
        return Reading("interrupted" if interrupted else "intact", entries, sum(map(len, whole)))

    def append(self, file: FileIO, reading: Reading, entry: Mapping[str, Any]) -> Entry:
        """Add an entry; it is on the disk when this returns. A line that was interrupted is completed first.

        Args:
            file: from `locked(writing=True)`.
            reading: from `read`, under the same lock.
            entry: JSON values; number, time and hashes are added.

        Raises:
            LedgerError: the disk is full or not writable. What was to be added may count as spent, and nothing may be released.
        """
        if reading.state == "interrupted":
            with self.writing():
                file.truncate(reading.length)
                _write_through(file, _line(reading.entries[-1]))
            done = Reading("intact", reading.entries, 0)
            again = self._append(file, done, {"kind": "recovered", "entry": len(reading.entries) - 1})
            reading = Reading("intact", [*reading.entries, again], 0)
        return self._append(file, reading, entry)

    def _append(self, file: FileIO, reading: Reading, entry: Mapping[str, Any]) -> Entry:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        last = reading.entries[-1] if reading.entries else {"hash": NOTHING, "time": now}
        back = {"clock": "set back"} if now < last["time"] else {}  # told, and of no consequence: the order is the chain's
        full = {"n": len(reading.entries), "time": now, "previous": last["hash"], **back, **entry}
        full["hash"] = _digest(full)
        line = _line(full)
        head = {"count": full["n"], "last": last["hash"], "pending": line[:-1].decode()}
        with self.writing():
            write_atomically(self.witness / HEAD, _line({**head, "seal": self._seal(head)}))
            _write_through(file, line)
        return full

    def key(self, purpose: str) -> bytes:
        """A secret of this ledger for one purpose, 32 bytes."""
        path = self.folder / KEY
        try:
            key, mode = path.read_bytes(), path.stat().st_mode
        except OSError as error:
            raise LedgerError(f"the {self.what}'s key {path} cannot be read: {error}. Restore it; nothing is released.") from None
        if mode & 0o077:
            raise LedgerError(f"the {self.what}'s key {path} can be read by others: chmod 600 {path}. Nothing is released.")
        if len(key) != 32:
            raise LedgerError(f"the {self.what}'s key {path} is damaged. Restore it; nothing is released.")
        return hmac.digest(key, purpose.encode(), "sha256")

    def _place(self) -> str:
        return "beside" if self.witness == self.folder else "elsewhere"

    def _seal(self, head: Mapping[str, Any]) -> str:
        return hmac.digest(self.key("head"), _canonical(head), "sha256").hex()

    def _head(self) -> dict[str, Any]:
        path = self.witness / HEAD
        try:
            text = path.read_bytes()
            head = json.loads(text)
            seal = head.pop("seal")
            sound = hmac.compare_digest(str(seal), self._seal(head)) and text == _line({**head, "seal": seal})
        except FileNotFoundError:
            raise LedgerError(f"the {self.what}'s head {path} is missing. Restore it, or name its folder; nothing is released.") from None
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"the {self.what}'s head {path} cannot be read: {error}. Nothing is released.") from None
        if not sound:
            raise LedgerError(f"the {self.what}'s head {path} was changed, or is of another {self.what}. Restore it; nothing is released.")
        return dict(head)

    def _damaged(self, what: str, how: str) -> LedgerError:
        return LedgerError(f"the {self.what} {self.path} is damaged: {what} is {how}. Restore it; nothing is released.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around whatever writes below the folder: a full or unwritable disk is a refusal."""
        try:
            yield
        except OSError as error:
            raise LedgerError(f"the {self.what} {self.folder} cannot be written: {error}. Nothing is released.") from None


def _write_through(file: FileIO, content: bytes) -> None:
    file.seek(0, os.SEEK_END)
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({key: value for key, value in entry.items() if key != "hash"})).hexdigest()


def _line(entry: Mapping[str, Any]) -> bytes:
    return _canonical(entry) + b"\n"


def _parsed(line: bytes) -> Entry | None:
    """The entry of a line, or None where a single byte is not as it would be written."""
    try:
        entry = json.loads(line)
        sound = isinstance(entry, dict) and isinstance(entry.get("hash"), str) and _line(entry) == line and entry["hash"] == _digest(entry)
    except (ValueError, RecursionError):  # no JSON, a NaN, or brackets without end
        return None
    return entry if sound else None
