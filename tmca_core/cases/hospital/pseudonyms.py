"""Ids that say nothing: a keyed hash of the hospital's own ones, the same at every import as long as the key is the same."""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tmca_core.errors import ConfigError, ManifestError
from tmca_core.run import sync_folder, write_atomically

KEY_BYTES = 32
LETTERS = 20  # of base 32: 100 bits, so that no two of a hospital's ids ever meet
FINGERPRINT = "pseudonyms.txt"

Kind = Literal["patient", "study", "accession", "film", "report"]


@dataclass(frozen=True)
class Pseudonyms:
    """Makes ids under a site's key; whoever does not hold the key can neither make nor undo one.

    Example:
        >>> Pseudonyms(bytes(32)).of("patient", "12345")
        'p-bh5zbl3g7hh45iszzzpo'
    """

    key: bytes

    @classmethod
    def create(cls, path: Path) -> Pseudonyms:
        """Make the key of a site, once; the file is readable by its owner only.

        Raises:
            ConfigError: there is a file, or it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except FileExistsError:
            raise ConfigError(f"{path} is there: with a new key every patient would become another one. Use it as it is.") from None
        except OSError as error:
            raise ConfigError(f"cannot write the key {path}: {error.strerror or error}.") from None
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Pseudonyms:
        """The key in a file.

        Raises:
            ConfigError: it is missing, damaged, or can be read by others.
        """
        try:
            with path.open("rb") as file:
                mode, key = os.fstat(file.fileno()).st_mode, file.read(KEY_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"cannot read the key {path}: {error.strerror or error}. A site makes its key once, with: tmca data key {path}; if it was "
                "lost, restore it: with another one every patient would become another patient."
            ) from None
        if mode & 0o077:
            raise ConfigError(f"the key {path} can be read by others, who could tell whose film is whose: chmod 600 {path}.")
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{path} is no key of pseudonyms: it does not hold {KEY_BYTES} bytes.")
        return cls(key)

    def of(self, kind: Kind, value: str) -> str:
        """The id that stands for a hospital's own one: letters and the digits 2 to 7.

        Args:
            kind: of the id; the same text under two kinds gives two unrelated ids.
            value: as a system of the hospital has it; blanks around it do not count.
        """
        digest = hmac.digest(self.key, f"{kind}\x1f{value.strip()}".encode(), "sha256")
        return f"{kind[0]}-{base64.b32encode(digest).decode().lower()[:LETTERS]}"

    def hold(self, folder: Path) -> None:
        """Tie a folder to this key at its first import, and refuse another one ever after.

        Raises:
            ManifestError: its ids were made with another key.
        """
        own, path = hmac.digest(self.key, b"fingerprint", "sha256").hex()[:16], folder / FINGERPRINT
        if not path.exists():
            write_atomically(path, f"{own}\n")
        elif path.read_text(encoding="ascii", errors="replace").strip() != own:
            raise ManifestError(
                f"the ids in {folder} were made with another key: a patient would be two patients in one table. Give the key of its first "
                "import, or another folder."
            )
