"""Pseudonyms: the same for the same key, unrelated for another, and a key that only its owner reads."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmca_core.cases.hospital.pseudonyms import Pseudonyms
from tmca_core.errors import ConfigError, ManifestError

ONE, OTHER = Pseudonyms(bytes(32)), Pseudonyms(bytes(31) + b"\x01")


@given(st.text(max_size=40))
def test_an_id_is_a_plain_name_of_its_own(value: str) -> None:
    id = ONE.of("patient", value)
    assert re.fullmatch(r"p-[a-z2-7]{20}", id)
    assert id == ONE.of("patient", f"  {value.strip()} ") != OTHER.of("patient", value)
    assert ONE.of("study", value)[2:] != id[2:]  # who has two ids cannot tell that they are of one text


def test_a_key_is_made_once_and_read_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "site.key"
    made = Pseudonyms.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(made.key) == 32
    assert Pseudonyms.load(path) == made != Pseudonyms.create(tmp_path / "other.key")
    with pytest.raises(ConfigError, match="every patient would become another one"):
        Pseudonyms.create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Pseudonyms.load(path)
    path.chmod(0o600)
    path.write_bytes(bytes(31))
    with pytest.raises(ConfigError, match="does not hold 32 bytes"):
        Pseudonyms.load(path)
    with pytest.raises(ConfigError, match=r"tmca data key .*missing\.key"):
        Pseudonyms.load(tmp_path / "missing.key")


def test_a_folder_belongs_to_one_key(tmp_path: Path) -> None:
    ONE.hold(tmp_path)
    ONE.hold(tmp_path)
    with pytest.raises(ManifestError, match="made with another key"):
        OTHER.hold(tmp_path)
    assert ONE.key.hex()[:8] not in (tmp_path / "pseudonyms.txt").read_text() or not any(ONE.key)
