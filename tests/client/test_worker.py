"""The site's worker runs installed code only, for approved apps only, and records what leaves before it leaves."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.fab import Fab
from flwr.supercore.task_identity import TaskIdentity

from client.approvals import installed_app
from client.commands import approve, record, revoke
from client.standing import pause
from client.worker import answer, app_digest, vet
from client.workspace import code_digest
from simulations.processes import Processes
from tmca_core.config import parse
from tmca_core.errors import ConfigError
from tmca_core.messages import ARRAYS, REFUSED, SETTINGS
from tmca_core.privacy.ledger import Ledger
from tmca_core.record import Record

ROOT = Path(__file__).parents[2]


def own_code() -> dict[str, bytes]:
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for package in ("client", "tmca_core")
        for kind in ("*.py", "*.json")
        for path in (ROOT / package).rglob(kind)
    }


def packed(files: Mapping[str, bytes]) -> Fab:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    content = buffer.getvalue()
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


@pytest.fixture(scope="module")
def honest() -> Fab:
    return packed({**own_code(), "server/app.py": b"anything: it does not run here"})


@pytest.fixture
def asked() -> tuple[Message, Context]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    content = RecordDict({SETTINGS: ConfigRecord({"run": "a1", "round": 3})})
    return Message(content, dst_node_id=2, message_type="train"), Context(1, 2, {}, RecordDict(), {})


def echo(calls: list[str]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        calls.append("train")
        return Message(RecordDict({SETTINGS: ConfigRecord({"round": 3, "share": b"12345"})}), reply_to=message)

    return app


def a_record(folder: Path, *approved: Fab) -> Record:
    found = Record.open(folder / "record", make=True)
    for fab in approved:
        found.note("approved", app=fab.hash_str, code="c", by="somebody", note="")
    return found


def test_an_approved_app_is_answered_and_recorded_first(tmp_path: Path, honest: Fab, asked: tuple[Message, Context]) -> None:
    calls: list[str] = []
    reply = answer(echo(calls), *asked, honest, a_record(tmp_path, honest))
    assert calls == ["train"] and not reply.has_error()
    last = Record.open(tmp_path / "record").entries()[-1]
    assert (last["kind"], last["asked"], last["run"], last["round"], last["code"]) == ("answered", "train", "a1", 3, code_digest())
    assert last["values"] == {SETTINGS: {"round": 3, "share": "5 bytes"}}
    assert last["config"] == parse({}).digest() and "ledger" not in last


def test_an_answer_names_the_newest_entry_of_the_ledger(tmp_path: Path, honest: Fab, asked: tuple[Message, Context]) -> None:
    (tmp_path / "site.toml").write_text('[ledger]\nfolder = "ledger"\n')
    Ledger.create(tmp_path / "ledger").note("figures", purpose="hello", metrics=[])
    message, context = asked
    context.node_config = {"policy": str(tmp_path / "site.toml")}
    answer(echo([]), message, context, honest, a_record(tmp_path, honest))
    last = Record.open(tmp_path / "record").entries()[-1]
    assert last["ledger"] == Ledger.open(tmp_path / "ledger").read().entries[-1]["hash"]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"run": "a1", "round": math.nan}, ("a1", 0)),
        ({"run": "a1", "round": b"x"}, ("a1", 0)),
        ({"run": "a1", "round": -1}, ("a1", 0)),
        ({"run": "a1", "round": True}, ("a1", 0)),
        ({"run": "x" * 3_000_000, "round": 2}, ("", 2)),
        ({"run": 5, "round": 2}, ("", 2)),
    ],
)
def test_the_record_takes_only_a_round_and_a_run_of_ours(
    tmp_path: Path, honest: Fab, asked: tuple[Message, Context], settings: dict[str, Any], kept: tuple[str, int]
) -> None:
    message = Message(RecordDict({SETTINGS: ConfigRecord(settings)}), dst_node_id=2, message_type="train")
    reply = answer(echo([]), message, asked[1], honest, a_record(tmp_path))
    last = Record.open(tmp_path / "record").entries()[-1]
    assert reply.error.code == REFUSED and (last["kind"], last["run"], last["round"]) == ("refused", *kept)
    assert (tmp_path / "record" / "record.jsonl").stat().st_size < 10_000


@pytest.mark.parametrize("approved", [True, False])
def test_a_message_that_cannot_be_read_is_noted_and_told(
    tmp_path: Path, honest: Fab, asked: tuple[Message, Context], approved: bool
) -> None:
    calls: list[str] = []
    content = RecordDict({SETTINGS: ConfigRecord({"round": 3}), ARRAYS: ArrayRecord({"x": Array("float32", (9,), "pickle", b"123")})})
    message = Message(content, dst_node_id=2, message_type="train")
    reply = answer(echo(calls), message, asked[1], honest, a_record(tmp_path, *[honest] * approved))
    last = Record.open(tmp_path / "record").entries()[-1]
    assert calls == [] and reply.has_error() and "UpdateRejected" in (reply.error.reason or "")
    assert last["kind"] == "refused" and last["app"] == honest.hash_str and "UpdateRejected" in last["reason"]


def test_the_record_takes_no_hash_from_the_one_who_announces_it(tmp_path: Path, honest: Fab, asked: tuple[Message, Context]) -> None:
    answer(echo([]), *asked, Fab("f" * 3_000_000, honest.content, {}), a_record(tmp_path))
    last = Record.open(tmp_path / "record").entries()[-1]
    assert last["app"] == honest.hash_str and (tmp_path / "record" / "record.jsonl").stat().st_size < 10_000


def test_an_app_that_nobody_approved_does_not_run(tmp_path: Path, honest: Fab, asked: tuple[Message, Context]) -> None:
    calls: list[str] = []
    reply = answer(echo(calls), *asked, honest, a_record(tmp_path))
    assert calls == [] and reply.error.code == REFUSED and "is not approved here" in (reply.error.reason or "")
    last = Record.open(tmp_path / "record").entries()[-1]
    assert last["kind"] == "refused" and last["app"] == honest.hash_str


def test_revoking_holds_from_the_next_message_on(tmp_path: Path, honest: Fab, asked: tuple[Message, Context]) -> None:
    calls: list[str] = []
    kept = a_record(tmp_path, honest)
    answer(echo(calls), *asked, honest, kept)
    revoke(honest.hash_str[:10], tmp_path)
    assert answer(echo(calls), *asked, honest, kept).error.code == REFUSED
    assert calls == ["train"]


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_other_code_than_is_installed_is_refused_even_where_its_hash_was_approved(tmp_path: Path, change: str) -> None:
    files = own_code()
    if change == "edited":
        files["client/door.py"] += b"\nprint('let everything out')\n"
    elif change == "added":
        files["client/backdoor.py"] = b""
    else:
        del files["client/door.py"]
    foreign = packed(files)
    assert "is not the code installed here" in vet(foreign, a_record(tmp_path, foreign))


def test_a_hash_that_is_not_the_contents_is_refused(tmp_path: Path, honest: Fab) -> None:
    disguised = Fab(honest.hash_str, packed({"client/app.py": b"x"}).content, {})
    assert "is announced as" in vet(disguised, a_record(tmp_path, honest))


def test_a_zip_bomb_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("client/app.py", "w") as file:
        for _ in range(51):
            file.write(b"\0" * 1_000_000)
    assert len(buffer.getvalue()) < 100_000
    assert app_digest(buffer.getvalue()) == ""


def test_a_path_that_is_written_oddly_makes_other_code(honest: Fab) -> None:
    odd = packed({**own_code(), "client//app.py": b""})
    assert app_digest(odd.content) not in ("", code_digest())


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 torn"])
def test_what_is_no_app_has_no_code(content: bytes) -> None:
    assert app_digest(content) == ""


def test_an_app_whose_code_is_damaged_has_no_code(honest: Fab) -> None:
    with zipfile.ZipFile(io.BytesIO(honest.content)) as archive:
        first = archive.getinfo("client/app.py")
    start = first.header_offset + 30 + len(first.filename)
    for place in range(start, start + 60, 3):
        damaged = honest.content[:place] + bytes([honest.content[place] ^ 0xFF]) + honest.content[place + 1 :]
        assert app_digest(damaged) != code_digest()


def test_nothing_leaves_where_the_record_cannot_be_written(tmp_path: Path, honest: Fab, asked: tuple[Message, Context]) -> None:
    kept = a_record(tmp_path, honest)
    path = tmp_path / "record" / "record.jsonl"
    path.write_text(path.read_text().replace("somebody", "someb0dy"))
    reply = answer(echo([]), *asked, honest, kept)
    assert reply.has_error() and "details are in the site's own log" in (reply.error.reason or "")


def test_a_folder_is_approved_as_it_would_be_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes = Processes(tmp_path)
    approve(str(processes.app()), tmp_path / "home", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["approved"] == [told["app"]] and told["code"] == code_digest()
    record(tmp_path / "home")
    assert told["app"][:12] in capsys.readouterr().out


def test_a_folder_with_other_code_is_not_approved(tmp_path: Path) -> None:
    app = Processes(tmp_path).app()
    (app / "client" / "door.py").write_text("")
    with pytest.raises(ConfigError, match="is not the code installed here"):
        installed_app(str(app))


def test_nobody_writes_what_the_site_s_own_user_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root does after the folder was given to the worker's user."""
    approve("0" * 64, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    for command in (lambda: approve("1" * 64, tmp_path), lambda: revoke("0", tmp_path), lambda: pause(tmp_path)):
        with pytest.raises(ConfigError, match="run this as that user, sudo -u"):
            command()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("app", "message"), [("abc", "no folder, no file"), ("a" * 63, "no folder, no file")])
def test_what_cannot_be_approved_is_explained(app: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        installed_app(app)


def test_a_bare_hash_stands_for_the_installed_code() -> None:
    assert installed_app("0" * 64) == ("0" * 64, code_digest())


def test_revoking_needs_one_app(tmp_path: Path) -> None:
    kept = a_record(tmp_path)
    for app in ("aa" + "0" * 62, "ab" + "0" * 62):
        kept.note("approved", app=app)
    for beginning in ("a", "b"):
        with pytest.raises(ConfigError, match="approved apps begin with"):
            revoke(beginning, tmp_path)
