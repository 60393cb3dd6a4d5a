"""The rehearsal's table, its registry and how it plays rows; and some rows for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from simulations.processes import BIN, alive
from simulations.rehearsal import clock, impostor, table
from simulations.rehearsal.commands import play, rehearse
from simulations.rehearsal.garbage import spoilt
from simulations.rehearsal.interface import Row, Unexpected, expect
from simulations.rehearsal.live import short
from simulations.rehearsal.played import Played
from simulations.rehearsal.registry import ROWS, chosen
from simulations.rehearsal.stage import TOGETHER, Stage, _part_tables, describe
from tmca_core.cases.check import check_manifest
from tmca_core.cases.phantom import write
from tmca_core.errors import ConfigError, FederationError
from tmca_core.messages import ARRAYS, SETTINGS
from tmca_core.run import Run
from tmca_core.wire import RAW, tensors_of, to_bytes


def fake_stage(*, ingress: bool = True) -> Stage:
    return SimpleNamespace(ingress=ingress)  # type: ignore[return-value]


def saw(text: str) -> Any:
    return lambda stage: text


def a_row(name: str, play: Any, *, nginx: bool = False) -> Row:
    return Row(name, "fault", f"what {name} does", "nothing | bad", play, nginx)


def test_there_are_at_least_twenty_rows_of_both_kinds_each_with_its_expectation_in_words() -> None:
    kinds = [row.kind for row in ROWS.values()]
    assert len(ROWS) >= 20 and kinds.count("intrusion") >= 10 and kinds.count("fault") >= 8 and kinds.count("model") == 2
    assert all(name == row.name and row.what and row.expected for name, row in ROWS.items())
    assert len({row.what for row in ROWS.values()}) == len(ROWS)
    # The site that leaves for good and the key that is revoked come after everything that needs them.
    assert list(ROWS)[-3:] == ["joins", "leaves", "revoked-key"]


def test_chosen_rows_are_played_in_their_own_order_and_unknown_ones_refused() -> None:
    assert [row.name for row in chosen("leaves, plain-http")] == ["plain-http", "leaves"]
    assert len(chosen("")) == len(ROWS)
    with pytest.raises(ConfigError, match="unknown row 'nonsense'; known: plain-http, "):
        chosen("plain-http,nonsense")


def test_a_row_that_goes_wrong_does_not_keep_others_from_being_played() -> None:
    def unexpected(stage: Stage) -> str:
        expect(False, "something else")
        return "never said"

    def broken(stage: Stage) -> str:
        raise FederationError("it broke")

    rows = [a_row("good", saw("as it should")), a_row("other", unexpected), a_row("broken", broken), a_row("last", saw("fine"))]
    results = play(fake_stage(), rows)
    assert [result.as_expected for result in results] == [True, False, False, True]
    assert [result.seen for result in results] == ["as it should", "something else", "FederationError: it broke", "fine"]


def test_without_nginx_its_rows_count_neither_way() -> None:
    rows = [a_row("ingress", saw("never played"), nginx=True), a_row("good", saw("fine"))]
    results = play(fake_stage(ingress=False), rows)
    assert results[0].as_expected is None and results[0].seen == "not rehearsed: nginx is not installed"
    value = table.as_json(results, {"figure": 1.5}, 3, ingress=False)
    assert value["as_expected"] is True
    assert value["counts"] == {"rows": 2, "as_expected": 1, "not_as_expected": 0, "not_rehearsed": 1}
    assert json.loads(json.dumps(value))["rows"][1]["seen"] == "fine"
    text = table.table(results, {"figure": 1.5})
    assert text.startswith("2 rows: 1 as expected, 0 not, 1 not rehearsed.\n")
    assert "| what ingress does | fault | nothing / bad | not rehearsed: nginx is not installed | not rehearsed |" in text
    assert "| figure | 1.5 |" in text
    assert play(fake_stage(), rows)[0].as_expected is True


def test_one_row_that_is_not_as_expected_is_enough_for_the_whole() -> None:
    def unexpected(stage: Stage) -> str:
        raise Unexpected("a|b\nc")

    results = play(fake_stage(), [a_row("good", saw("fine")), a_row("bad", unexpected)])
    assert table.as_json(results, {}, 3, ingress=True)["as_expected"] is False
    assert "| a/b c | NO |" in table.table(results, {})


def test_rows_are_listed_without_starting_anything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rehearse(out=tmp_path / "out", rows="plain-http", listed=True, as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["name"] == "plain-http" and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        rehearse(out=tmp_path, rows="plain-http")


def test_a_run_is_seen_by_its_folder_and_what_was_before_it_was_repeated_is_passed_over(tmp_path: Path) -> None:
    played, run = Played("a", tmp_path, {"federation.rounds": 2, "simulation.out": "x", "privacy.enabled": True}), Run(tmp_path)
    assert played.flat() == 'federation.rounds=2 simulation.out="x" privacy.enabled=true'
    assert (played.round, played.asked(), played.trained("ghent"), played.done()) == (0, 0, 0, False)
    run.log("asked", round=1, phase="train", sites=["ghent"])
    run.log("site_train", round=1, site="ghent")
    run.log("round", round=1)
    run.log("asked", round=1, phase="val", sites=["ghent"])
    run.log("fault", round=2, site="ghent", reason="late", kind="late")
    run.log("stopped", round=1, reason="too few")
    assert (played.round, played.asked(), played.trained("ghent"), played.done(), played.why()) == (1, 1, 1, True, "too few")
    assert played.faults("ghent", 1) and not played.faults("ghent", 2) and not played.faults("hannover")
    played.submitted(7)
    assert not played.done() and played.why() == "" and played.round == 1 and played.starts == 1
    run.log("ended", round=2)
    assert played.done() and played.why() == ""


def test_every_hospital_has_a_table_of_its_own(tmp_path: Path) -> None:
    names = [f"phantom-{number:02d}" for number in range(3)]
    manifest = write(tmp_path / "data", sites=3, cases=4, seed=0, size=32)
    _part_tables(manifest, {names[0]: names[:1], TOGETHER: names[:2]})
    one, both = check_manifest(tmp_path / "data" / f"{names[0]}.csv"), check_manifest(tmp_path / "data" / f"{TOGETHER}.csv")
    assert (list(one.sites), one.cases, one.skipped) == (names[:1], 4, [])
    assert (sorted(both.sites), both.cases) == (names[:2], 8)


def test_a_site_that_joins_changes_no_port_of_the_others(tmp_path: Path) -> None:
    before = describe(tmp_path, ["a", "b"])
    after = describe(tmp_path, ["a", "b", "c"], before)
    assert after.coordinator == before.coordinator and after.sites[:2] == before.sites and after.sites[2].name == "c"
    assert len({site.runtime_port for site in after.sites}) == 3


def test_a_process_on_a_machine_with_a_wrong_clock_reads_another_time(tmp_path: Path) -> None:
    asked = "import time, datetime; print(time.time(), datetime.datetime.now(datetime.timezone.utc).timestamp())"
    environment = {**os.environ, "PYTHONPATH": clock.shifting(tmp_path, -3600)}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True, timeout=60)
    for told in done.stdout.split():
        assert 3000 < time.time() - float(told) < 4200


@pytest.mark.parametrize("how", ["nan", "shapes"])
def test_a_garbage_worker_spoils_updates_and_nothing_else(how: str) -> None:
    honest, sent = ClientApp(), {"a": torch.ones(2, 3), "b": torch.ones(4)}

    @honest.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({SETTINGS: ConfigRecord({"site": "ghent"})}), reply_to=message)

    @honest.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {name: Array("float32", tuple(tensor.shape), RAW, to_bytes(tensor)) for name, tensor in sent.items()}
        return Message(RecordDict({ARRAYS: ArrayRecord(arrays), SETTINGS: ConfigRecord({"round": 1})}), reply_to=message)

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    bad, context = spoilt(honest, how), Context(1, 2, {}, RecordDict(), {})
    hello = bad(message=Message(RecordDict(), dst_node_id=2, message_type="query"), context=context)
    assert hello.content[SETTINGS] == ConfigRecord({"site": "ghent"})
    reply = bad(message=Message(RecordDict(), dst_node_id=2, message_type="train"), context=context)
    found = tensors_of(reply.content[ARRAYS])  # type: ignore[arg-type]
    assert found.keys() == sent.keys() and reply.content[SETTINGS] == ConfigRecord({"round": 1})
    if how == "nan":
        assert bool(found["a"].isnan().all()) and torch.equal(found["b"], sent["b"])
    else:
        assert found["a"].shape == (7,) and found["b"].shape == (5,)


def test_the_impostor_is_a_program_that_says_what_it_hears() -> None:
    done = subprocess.run(
        [sys.executable, impostor.__file__, "0", "/nowhere.crt", "/nowhere.key"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1 and b"FileNotFoundError" in done.stderr


def test_long_reasons_are_cut() -> None:
    assert short("a" * 10, 10) == "a" * 10 and short("a" * 11, 10) == "a" * 9 + "…"


@pytest.mark.slow
def test_some_rows_for_real(tmp_path: Path) -> None:
    """A federation of processes, of which nothing is left when it is over."""
    rows = ["plain-http", "no-key", "control-on-fleet", "replayed-call", "altered-call", "stale-call", "anothers-name", "app-bomb"]
    command = [str(BIN / "tmca"), "deploy", "rehearse", "--out", str(tmp_path / "out"), "--rows", ",".join(rows), "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert {row["name"]: row["as_expected"] for row in told["rows"]} == {
        name: None if name == "control-on-fleet" and shutil.which("nginx") is None else True for name in rows
    }
    assert (tmp_path / "out" / "rehearsal.md").read_text().startswith(f"{len(rows)} rows: ")
    assert alive(tmp_path / "out" / "trial" / "processes") == {}
