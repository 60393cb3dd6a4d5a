"""Keys of sites and operators. A private key is written once, mode 0600, where it is made; only its public half is ever copied."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tmca_core.errors import ConfigError, StorageError

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

KEY, PUBLIC = "site.key", "site.pub"
"""A site's own, in its folder."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""That a SuperLink registers."""
_SECRET = 32  # bytes of a shared secret, before it is written in hex


def new_key() -> PrivateKey:
    """A key on the curve P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def make_site_key(folder: Path) -> Path:
    """Make a site's key pair, site.key and site.pub, in OpenSSH's format; where both are there they stay.

    Returns:
        The public half: what the coordinator gets.

    Raises:
        ConfigError: there is one half only that cannot be mended, or the two do not belong together.
        StorageError: it cannot be written.
    """
    secret, public = folder / KEY, folder / PUBLIC
    if not secret.exists():
        if public.exists():
            raise ConfigError(
                f"{public} is there without {secret}. If the private key is lost, move {public} away, make a new pair and send the "
                "coordinator the new public half; the old one must be unregistered."
            )
        key = new_key()
        form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        write_new(secret, key.private_bytes(*form, serialization.NoEncryption()), private=True)
    else:
        key = load_site_key(secret)
    if not public.exists():
        write_new(public, public_line(key.public_key()).encode() + b"\n")
    elif load_public(public) != key.public_key():
        raise ConfigError(f"{public} is not the public half of {secret}: move {public} away and run this again.")
    return public


def load_site_key(path: Path) -> PrivateKey:
    """A site's private key as its SuperNode reads it: OpenSSH's format, a NIST curve, no passphrase.

    Raises:
        ConfigError: it cannot be read, or is another kind of key.
    """
    remedy = "Make one with `tmca deploy key DIR`, or `ssh-keygen -t ecdsa -b 384 -N ''`."
    try:
        key = serialization.load_ssh_private_key(read_bytes(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no private key in OpenSSH's format without a passphrase: {error}. {remedy}") from None
    if not isinstance(key, PrivateKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path} is no key on a NIST curve. {remedy}")
    return key


def load_public(path: Path) -> PublicKey:
    """A site's public key: one line in OpenSSH's format.

    Raises:
        ConfigError: it cannot be read, is another kind of key, or is a private one.
    """
    content = read_bytes(path)
    if b"PRIVATE KEY" in content:
        raise ConfigError(
            f"{path} is a PRIVATE key, which must never leave its site. Delete it here; the site makes a new pair and sends {PUBLIC}."
        )
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no public key in OpenSSH's format: {error}. A site makes it with `tmca deploy key DIR`.") from None
    if not isinstance(key, PublicKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path} is no key on a NIST curve (ecdsa-sha2-nistp…). A site makes it with `tmca deploy key DIR`.")
    return key


def public_line(key: PublicKey) -> str:
    """A public key as OpenSSH writes it."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def make_secret(path: Path) -> None:
    """A shared secret of two programs on one machine, in hex; one that is there stays."""
    if not path.exists():
        write_new(path, secrets.token_hex(_SECRET).encode(), private=True)


def write_new(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file that must not exist yet, whole or not at all; a private one can be read by its owner alone from its first byte on.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}.") from None


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}.") from None
