"""Keys on disk, rosters, and what a key agreement or a sealed parcel refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tmca_core.errors import ConfigError, PolicyRefusal
from tmca_core.secure.keys import (
    derived,
    genuine,
    load_identity,
    load_roster,
    new_identity,
    new_secret,
    private_pem,
    public_line,
    public_of,
    seal,
    shared_key,
    sign,
    unseal,
)
from tmca_core.secure.session import Advert, Occasion, bytes_by_site, from_text


def test_a_key_of_ssh_keygen_and_a_pem_serve(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "ghent@x", "-f", str(tmp_path / "ssh")], check=True)
    (tmp_path / "pem").write_bytes(private_pem(new_identity()))
    ssh, pem = load_identity(tmp_path / "ssh"), load_identity(tmp_path / "pem")
    (tmp_path / "roster.toml").write_text(
        f'min_sites = 2\n[sites]\nghent = "{(tmp_path / "ssh.pub").read_text().strip()}"\niowa = "{public_line(pem)}"\n'
    )
    roster = load_roster(tmp_path / "roster.toml")
    assert roster.fewest == 2 and set(roster.sites) == {"ghent", "iowa"}
    for identity, name in ((ssh, "ghent"), (pem, "iowa")):
        assert genuine(roster.sites[name], b"x", sign(identity, b"x"))
        assert not genuine(roster.sites[name], b"y", sign(identity, b"x"))
        assert not genuine(roster.sites[name], b"x", b"nonsense")
    assert not genuine(roster.sites["ghent"], b"x", sign(pem, b"x"))


def test_keys_of_another_kind_and_missing_ones(tmp_path: Path) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="no elliptic-curve key"):
        load_identity(tmp_path / "key")
    for name in ("absent", "key-with-nothing"):
        (tmp_path / "key-with-nothing").write_text("nothing")
        with pytest.raises(ConfigError, match="ssh-keygen -t ecdsa"):
            load_identity(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sites = 3", r"takes \[sites\]"),
        ("min_sites = 1\n[sites]\n", "2 or more"),
        ("[sites]\n[other]\n", r"takes \[sites\]"),
        ('[sites]\nghent = "ecdsa nonsense"', "of site 'ghent' cannot be read"),
        ('[sites]\nghent = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJX5nMAMy0Hq0zBBnWcnSmNgRFxGVYgWcCZ7xdA8Fq1W"', "no elliptic-curve key"),
        ("[sites", "cannot read the roster"),
    ],
)
def test_a_wrong_roster_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "roster.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_roster(tmp_path / "roster.toml")


def test_two_share_a_key_for_one_purpose() -> None:
    one, two = new_secret(), new_secret()
    assert shared_key(one, public_of(two), b"s", "a", "b") == shared_key(two, public_of(one), b"s", "a", "b")
    keys = {shared_key(one, public_of(two), salt, *purpose) for salt in (b"s", b"t") for purpose in (("a", "b"), ("ab",), ("b", "a"))}
    assert len(keys) == 6
    assert derived(one, b"s", "a") != derived(two, b"s", "a")


def test_a_public_key_of_small_order_is_refused() -> None:
    with pytest.raises(PolicyRefusal, match="agrees with every other on the same secret"):
        shared_key(new_secret(), bytes(32), b"s", "a")


def test_a_parcel_opens_with_its_key_and_label_alone() -> None:
    sealed = seal(bytes(32), b"shares", b"to ghent")
    assert unseal(bytes(32), sealed, b"to ghent") == b"shares"
    assert unseal(bytes(32), sealed, b"to iowa") is None
    assert unseal(b"1" * 32, sealed, b"to ghent") is None
    assert seal(bytes(32), b"shares", b"to ghent") != sealed


@pytest.mark.parametrize("text", [None, 3, "", "[1]", "{"])
def test_messages_that_are_none(text: object) -> None:
    with pytest.raises(PolicyRefusal, match="cannot be read"):
        from_text(text)


@pytest.mark.parametrize("values", [None, [], {"a": 1}, {"a": "xy"}])
def test_bytes_that_are_none(values: object) -> None:
    with pytest.raises(PolicyRefusal, match="no bytes by site"):
        bytes_by_site(values)


def test_adverts_that_are_none() -> None:
    good = Advert("ghent", 3, bytes(32), bytes(32), bytes(32), b"x").as_values()
    assert Advert.from_values(good).weight == 3
    for key, value in [
        ("weight", 0),
        ("weight", True),
        ("weight", 1.5),
        ("site", 3),
        ("masking", "00"),
        ("promise", "zz"),
        ("sealing", None),
    ]:
        with pytest.raises(PolicyRefusal, match="another version"):
            Advert.from_values({**good, key: value})
    with pytest.raises(PolicyRefusal, match="session"):
        Occasion.from_values({"run": "a", "round": 1, "session": "short"})
