"""A hospital's keys and roster, and tensors that must not leave without a mask."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from masked_sites import settings

from client.door import Door
from client.secure import answer, company, masked
from tmca_core.errors import ConfigError, PolicyRefusal
from tmca_core.messages import SETTINGS
from tmca_core.secure.keys import new_identity, private_pem, public_line


def site(folder: Path, **values: Any) -> Any:
    workspace = SimpleNamespace(config=settings(**values))
    return SimpleNamespace(name="ghent", state=folder, durable=True, workspace=workspace, door=Door(), data=SimpleNamespace())


def hospital(tmp_path: Path, known: str) -> dict[str, str]:
    (tmp_path / "roster.toml").write_text(f"[sites]\n{known}\n")
    return {"manifest": "m.csv", "signing-key": str(tmp_path / "key"), "roster": str(tmp_path / "roster.toml")}


def test_a_hospital_needs_both_files_and_the_roster_its_key(tmp_path: Path) -> None:
    own = new_identity()
    (tmp_path / "key").write_bytes(private_pem(own))
    node = hospital(tmp_path, f'ghent = "{public_line(own)}"')
    identity, roster = company(site(tmp_path), node)
    assert roster.sites["ghent"].public_numbers() == identity.public_key().public_numbers()
    for key in ("signing-key", "roster"):
        with pytest.raises(ConfigError, match=f"{key}="):
            company(site(tmp_path), {name: value for name, value in node.items() if name != key})
    with pytest.raises(ConfigError, match="another key for 'ghent'"):
        company(site(tmp_path), hospital(tmp_path, f'ghent = "{public_line(new_identity())}"'))
    with pytest.raises(ConfigError, match="no key for 'ghent'"):
        company(site(tmp_path), hospital(tmp_path, f'iowa = "{public_line(own)}"'))


def message(**fields: Any) -> RecordDict:
    base = {"round": 1, "run": "ab", "session": "0" * 32, "stage": "keys", "body": "{}"}
    return RecordDict({SETTINGS: ConfigRecord({**base, **fields})})


def test_a_server_that_says_nonsense_is_refused(tmp_path: Path) -> None:
    node = {"partition-id": 0}
    for fields, says in [
        ({"session": "0"}, "session of 32"),
        ({"stage": "coffee"}, "stage 'coffee'"),
        ({"body": "["}, "cannot be read"),
        ({"run": "../x"}, "hexadecimal"),
        ({"stage": "unmask"}, "knows nothing of"),
    ]:
        with pytest.raises(PolicyRefusal, match=says):
            answer(site(tmp_path), message(**fields), node)
    with pytest.raises(PolicyRefusal, match="the run does not set"):
        answer(site(tmp_path, federation__secure=False), message(), node)
    answer(site(tmp_path), message(), node)
    with pytest.raises(PolicyRefusal, match="'agree' after 'keys': each stage is answered once, in order"):
        answer(site(tmp_path), message(stage="agree", body='{"survivors": []}'), node)
    with pytest.raises(PolicyRefusal, match="holds no keys"):
        answer(site(tmp_path), message(stage="shares"), node)


def test_a_tensor_that_cannot_be_masked_does_not_leave(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3), "count": torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(PolicyRefusal, match=r"'count' is not float32.*nothing leaves without a mask"):
        masked(site(tmp_path), message(), tensors, {})
