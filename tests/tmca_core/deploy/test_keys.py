"""Keys of sites: in the form that Flower's own programs read, made once, told where something is wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tmca_core.deploy.folders import make_site_secrets
from tmca_core.deploy.keys import load_public, load_site_key, make_site_key, public_line
from tmca_core.errors import ConfigError, StorageError


def test_flower_itself_reads_both_halves(tmp_path: Path) -> None:
    from argparse import Namespace

    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    public = make_site_key(tmp_path)
    read = _try_setup_client_authentication(
        Namespace(auth_supernode_private_key=str(tmp_path / "site.key"), auth_supernode_public_key=None)
    )
    assert read is not None
    assert public_key_to_bytes(read[1]) == try_load_public_key(public)
    assert isinstance(read[0].curve, ec.SECP384R1)


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    make_site_secrets(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "site.key": 0o600, "site.pub": 0o644, "superexec.secret": 0o600,
    }  # fmt: skip
    assert make_site_secrets(tmp_path).read_text().startswith("ecdsa-sha2-nistp384 ")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "site.pub").unlink()  # it follows from the private half
    make_site_key(tmp_path)
    assert (tmp_path / "site.pub").read_bytes() == before["site.pub"]


def test_a_lost_private_half_and_a_foreign_public_half_are_told(tmp_path: Path) -> None:
    make_site_key(tmp_path / "a")
    make_site_key(tmp_path / "b")
    (tmp_path / "a" / "site.pub").write_bytes((tmp_path / "b" / "site.pub").read_bytes())
    with pytest.raises(ConfigError, match="not the public half"):
        make_site_key(tmp_path / "a")
    (tmp_path / "a" / "site.key").unlink()
    with pytest.raises(ConfigError, match="private key is lost"):
        make_site_key(tmp_path / "a")


def test_a_private_key_that_was_sent_is_recognised(tmp_path: Path) -> None:
    make_site_key(tmp_path)
    with pytest.raises(ConfigError, match="PRIVATE key, which must never leave its site"):
        load_public(tmp_path / "site.key")


def test_keys_that_flower_does_not_take_are_refused(tmp_path: Path) -> None:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    (tmp_path / "site.key").write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(form[0], serialization.PrivateFormat.PKCS8, form[2])
    )
    with pytest.raises(ConfigError, match="OpenSSH's format"):
        load_site_key(tmp_path / "site.key")
    locked = serialization.BestAvailableEncryption(b"secret")
    try:
        (tmp_path / "site.key").write_bytes(ec.generate_private_key(ec.SECP384R1()).private_bytes(form[0], form[1], locked))
    except Exception:  # bcrypt, which OpenSSH's encryption needs, is not installed everywhere
        return
    with pytest.raises(ConfigError, match="without a passphrase"):
        load_site_key(tmp_path / "site.key")


@pytest.mark.parametrize(
    "content", ["", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7pD1mbZkh0L5G0m5nIhDGvhXk4VvfK4pt2mU8Fkz0S", "nonsense", "\x00\xff"]
)
def test_what_is_no_public_key_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "site.pub").write_text(content)
    with pytest.raises(ConfigError):
        load_public(tmp_path / "site.pub")


def test_a_key_of_ssh_keygen_is_as_good(tmp_path: Path) -> None:
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "site.key")], check=True)
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    (tmp_path / "site.key.pub").rename(tmp_path / "site.pub")
    make_site_key(tmp_path)
    assert public_line(load_site_key(tmp_path / "site.key").public_key()) == public_line(load_public(tmp_path / "site.pub"))


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        make_site_key(tmp_path / "file" / "below")
