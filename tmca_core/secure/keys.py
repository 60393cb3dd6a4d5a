"""Keys: X25519 for what two sites share, HKDF to tell purposes apart, AES-GCM for what passes through the server, ECDSA for who speaks."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tmca_core.errors import ConfigError, PolicyRefusal

Identity = ec.EllipticCurvePrivateKey
Known = ec.EllipticCurvePublicKey

SIZE = 32
"""Bytes of a seed, a key and a digest."""
FEWEST = 3
"""Sites in a sum: of two, each knows the other's part."""
_NONCE = 12


@dataclass(frozen=True)
class Roster:
    """Whom a hospital knows.

    Attributes:
        sites: name → public key of the sites that it aggregates with, its own among them.
        fewest: sites whose updates are in a sum, at the least.
    """

    sites: Mapping[str, Known]
    fewest: int = FEWEST


# --- who speaks -------------------------------------------------------------------------------------
def new_identity() -> Identity:
    """A signing key on the curve P-256; simulations make theirs on the spot."""
    return ec.generate_private_key(ec.SECP256R1())


def sign(identity: Identity, statement: bytes) -> bytes:
    """ECDSA over SHA-384."""
    return identity.sign(statement, ec.ECDSA(hashes.SHA384()))


def genuine(known: Known, statement: bytes, signature: bytes) -> bool:
    """Whether the signature is of this statement, by who is known."""
    try:
        known.verify(signature, statement, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def load_identity(path: Path) -> Identity:
    """A hospital's signing key: OpenSSH (`ssh-keygen -t ecdsa -b 384`) or PEM, without a passphrase.

    Raises:
        ConfigError: it cannot be read, or is no elliptic-curve key.
    """
    try:
        content = path.read_bytes()
        load = serialization.load_ssh_private_key if b"OPENSSH" in content else serialization.load_pem_private_key
        key = load(content, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"cannot read the signing key {path}: {error}. Make one with `ssh-keygen -t ecdsa -b 384 -N ''`.") from None
    if not isinstance(key, Identity):
        raise ConfigError(f"the signing key {path} is no elliptic-curve key. Make one with `ssh-keygen -t ecdsa -b 384 -N ''`.")
    return key


def private_pem(identity: Identity) -> bytes:
    """The key as a file has it; not encrypted."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return identity.private_bytes(*form, serialization.NoEncryption())


def public_line(identity: Identity) -> str:
    """The public half as a roster has it."""
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return identity.public_key().public_bytes(*form).decode()


def load_roster(path: Path) -> Roster:
    """A hospital's roster: TOML with a table `sites` of names and OpenSSH public keys, and optionally `min_sites`.

    Raises:
        ConfigError: it cannot be read, holds anything else, or a sum of fewer than two sites is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the roster {path}: {error}.") from None
    lines, fewest = values.get("sites"), values.get("min_sites", FEWEST)
    if values.keys() - {"sites", "min_sites"} or not isinstance(lines, dict) or not isinstance(fewest, int) or fewest < 2:
        raise ConfigError(f'the roster {path} takes [sites] with NAME = "ecdsa-sha2-nistp384 …" and, above it, min_sites of 2 or more.')
    return Roster({name: parse_public(name, str(line)) for name, line in lines.items()}, fewest)


def parse_public(name: str, line: str) -> Known:
    """A roster's public key.

    Raises:
        ConfigError: it is no elliptic-curve key.
    """
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the public key of site '{name}' cannot be read: {error}.") from None
    if not isinstance(key, Known):
        raise ConfigError(f"the public key of site '{name}' is no elliptic-curve key (ecdsa-sha2-…).")
    return key


# --- what two share ---------------------------------------------------------------------------------
def new_secret() -> bytes:
    """A private X25519 key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(secret: bytes) -> bytes:
    """The public half of a private X25519 key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def shared_key(secret: bytes, public: bytes, salt: bytes, *purpose: str) -> bytes:
    """Key of two sites for one purpose: HKDF-SHA256 of their X25519 agreement.

    Raises:
        PolicyRefusal: the public half is one that makes every agreement the same.
    """
    try:
        agreed = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PolicyRefusal("a site's public key agrees with every other on the same secret: nothing is masked with it.") from None
    return derived(agreed, salt, *purpose)


def derived(secret: bytes, salt: bytes, *purpose: str) -> bytes:
    """`SIZE` bytes for one purpose, by HKDF-SHA256."""
    return HKDF(hashes.SHA256(), SIZE, salt, json.dumps(purpose).encode()).derive(secret)


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """AES-256-GCM with a random nonce before it; `about` is authenticated too."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes | None:
    """What was sealed; None where it is not from who has the key, or about something else."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], about)
    except (InvalidTag, ValueError):
        return None
