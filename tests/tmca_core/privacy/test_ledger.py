"""A hospital's ledger: what it adds up, what it refuses, and what it notices."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reachable import make_reachable

from tmca_core.errors import BudgetExhausted, ConfigError, LedgerError
from tmca_core.privacy import chain
from tmca_core.privacy.accounting import NoisyFigures, NoisySteps, epsilon
from tmca_core.privacy.ledger import Budget, Charge, Ledger, summary

DELTA = 1e-5
STEPS = NoisySteps(1.0, 0.05, 10)
BUDGET = Budget(3.0, DELTA)


def charge(
    ledger: Ledger, patients: list[str], spend: NoisySteps | NoisyFigures = STEPS, budget: Budget | None = None, round: int = 1
) -> None:
    ledger.charge(Charge(spend, run="ab", round=round), patients, budget)


def small(folder: Path, charges: int = 3) -> Ledger:
    ledger = Ledger.create(folder)
    for round in range(charges):
        charge(ledger, ["a", "b"], round=round + 1)
    return ledger


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked process that does `work`; 0 done, 3 refused, 1 anything else."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except LedgerError:
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_is_spent_is_composed_over_runs_and_not_counted_afresh(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger")
    for round in range(1, 11):
        receipt = ledger.charge(Charge(STEPS, run=f"{round % 2}", round=round), ["a"], Budget(9.0, DELTA))
        assert receipt.entry == round
        assert receipt.epsilon == pytest.approx(epsilon([NoisySteps(1.0, 0.05, 10 * round)], DELTA), abs=0.01)
    spent = Ledger.open(tmp_path / "ledger").read()
    assert spent.epsilon(DELTA) == epsilon([NoisySteps(1.0, 0.05, 100)], DELTA) > 2 * epsilon([STEPS], DELTA)


def test_the_worst_off_patient_decides_and_disjoint_patients_do_not_add_up(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger")
    other = NoisySteps(2.0, 0.1, 50)
    entries = [
        (["a", "b"], STEPS),
        (["b", "c"], other),
        (["d"], NoisySteps(1.0, 0.04, 10)),
        (["d", "a"], NoisyFigures(0.1)),
        ([], NoisyFigures(0.2)),
    ]
    for patients, spend in entries:
        charge(ledger, patients, spend)
    spent = ledger.read()
    # The slow way: every patient alone. A charge without patients is about everybody.
    own = {p: epsilon([s for patients, s in entries if p in patients or not patients], DELTA) for p in "abcd"}
    assert len(set(own.values())) == 4
    for patient, value in own.items():
        assert spent.epsilon(DELTA, ledger.hashes([patient])) == value
    assert spent.epsilon(DELTA) == max(own.values())
    assert spent.epsilon(DELTA, ledger.hashes("cd")) == max(own["c"], own["d"])
    assert spent.epsilon(DELTA, ledger.hashes(["new"])) == epsilon([NoisyFigures(0.2)], DELTA)
    assert spent.epsilon(DELTA, until=1) == epsilon([STEPS], DELTA)


def test_a_budget_is_kept_by_all_runs_together_and_a_refusal_costs_nothing(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger")
    steps = NoisySteps(1.0, 0.05, 50)
    charge(ledger, ["a", "b"], steps, BUDGET)
    before = (tmp_path / "ledger" / "ledger.jsonl").read_bytes()
    with pytest.raises(BudgetExhausted, match=r"would bring ε to 3\.5021 .* budget is 3 \(spent: 2\.\d+\)") as refusal:
        charge(ledger, ["b", "z"], steps, BUDGET)
    assert refusal.value.exit_code == 3
    assert (tmp_path / "ledger" / "ledger.jsonl").read_bytes() == before
    charge(ledger, ["z"], steps, BUDGET)  # others may still spend
    with pytest.raises(BudgetExhausted):  # a charge about everybody is about those who have spent, too
        charge(ledger, [], steps, BUDGET)


def test_two_processes_cannot_both_spend_the_last_of_a_budget(tmp_path: Path) -> None:
    alone = Ledger.create(tmp_path / "alone")
    step, budget = NoisySteps(1.0, 0.05, 15), Budget(2.5, DELTA)

    def spend_all(ledger: Ledger) -> None:
        while True:
            try:
                charge(ledger, ["a", "b"], step, budget)
            except BudgetExhausted:
                return

    spend_all(alone)
    Ledger.create(tmp_path / "shared")
    children = []
    for _ in range(3):
        if not (child := os.fork()):
            try:
                spend_all(Ledger.open(tmp_path / "shared"))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    together = Ledger.open(tmp_path / "shared").read()
    assert len(together.charges) == len(alone.read().charges) >= 2
    assert together.epsilon(DELTA) <= 2.5 < together.epsilon(DELTA, more=[step])


def test_a_ledger_is_made_once_and_never_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no privacy ledger"):
        Ledger.open(tmp_path / "ledger")
    Ledger.create(tmp_path / "ledger", tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="exists or existed"):
        Ledger.create(tmp_path / "ledger")
    shutil.rmtree(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="no privacy ledger"):
        Ledger.open(tmp_path / "ledger", tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="exists or existed"):  # its witness remembers it
        Ledger.create(tmp_path / "ledger", tmp_path / "elsewhere")


@pytest.mark.parametrize("lost", ["ledger.jsonl", "head.json", "site.key", "cohorts"])
def test_a_missing_part_is_a_refusal(tmp_path: Path, lost: str) -> None:
    ledger = small(tmp_path / "ledger")
    path = tmp_path / "ledger" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(LedgerError, match=r"(nothing may be|[Nn]othing is) released"):
        charge(ledger, ["a"])
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "ledger")


def test_every_truncation_is_noticed_and_the_last_entry_is_never_forgotten(tmp_path: Path) -> None:
    ledger = small(tmp_path / "ledger", 2)
    path = tmp_path / "ledger" / "ledger.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    expected = ledger.read().epsilon(DELTA)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < last:
            with pytest.raises(LedgerError, match="damaged"):
                ledger.read()
        else:
            found = ledger.read()
            assert found.state == "interrupted" and found.epsilon(DELTA) == expected
    for torn in (last, last + 1, len(whole) - 1):
        for tail in (b"", bytes(7)):  # blocks that a power cut left unfilled
            path.write_bytes((whole[:torn] + tail)[: len(whole)])
            head = (tmp_path / "ledger" / "head.json").read_bytes()
            charge(ledger, ["c"])
            mended = ledger.read()
            assert mended.state == "intact" and path.read_bytes().startswith(whole)
            assert [entry["kind"] for entry in mended.entries[-3:]] == ["charge", "recovered", "charge"]
            (tmp_path / "ledger" / "head.json").write_bytes(head)
    path.write_bytes(whole[:last])
    ledger.read()
    path.write_bytes(whole[:last] + b'{"another')
    with pytest.raises(LedgerError, match="damaged"):
        ledger.read()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_edit_of_any_byte_of_any_file_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "edited"
    if not folder.exists():
        small(folder, 2)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.name for path in files} > {"ledger.jsonl", "head.json", "site.key"} and len(files) == 4
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    try:
        path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
        try:
            state = Ledger.open(folder).read().state
        except LedgerError:
            return
        # Zeros at the very end are what a power cut leaves: the entry is taken from the head, whole.
        assert state == "interrupted" and path.name == "ledger.jsonl" and byte == 0 and place == len(content) - 1
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("old", [("ledger.jsonl",), ("head.json",)])
def test_an_older_file_put_back_is_noticed(tmp_path: Path, old: tuple[str, ...]) -> None:
    ledger = small(tmp_path / "ledger", 1)
    copies = {name: (tmp_path / "ledger" / name).read_bytes() for name in old}
    for _ in range(3):
        charge(ledger, ["a"])
    for name, content in copies.items():
        (tmp_path / "ledger" / name).write_bytes(content)
    with pytest.raises(LedgerError, match="damaged"):
        charge(ledger, ["a"])


def test_a_whole_folder_put_back_is_noticed_by_a_witness_elsewhere(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger", tmp_path / "witness")
    charge(ledger, ["a"])
    shutil.copytree(tmp_path / "ledger", tmp_path / "backup")
    for _ in range(3):
        charge(ledger, ["a"])
    shutil.rmtree(tmp_path / "ledger")
    shutil.copytree(tmp_path / "backup", tmp_path / "ledger")
    with pytest.raises(LedgerError, match="damaged"):
        Ledger.open(tmp_path / "ledger", tmp_path / "witness")
    shutil.copy(tmp_path / "witness" / "head.json", tmp_path / "ledger" / "head.json")
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "ledger")


def test_a_head_moved_beside_its_ledger_is_refused_and_a_moved_ledger_is_not(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "a", tmp_path / "witness")
    shutil.copy(tmp_path / "witness" / "head.json", tmp_path / "a" / "head.json")
    with pytest.raises(LedgerError, match="kept elsewhere, not beside"):
        Ledger.open(tmp_path / "a")
    small(tmp_path / "b").chain.folder.rename(tmp_path / "c")
    assert len(Ledger.open(tmp_path / "c" / "ledger.jsonl").read().charges) == 3


def test_a_full_disk_refuses_and_never_understates(tmp_path: Path) -> None:
    ledger = small(tmp_path / "ledger", 4)
    path = tmp_path / "ledger" / "ledger.jsonl"
    size, before = path.stat().st_size, ledger.read().epsilon(DELTA)

    def with_little_room(room: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))
        charge(ledger, ["a"])

    assert in_child(lambda: with_little_room(100)) == 3
    assert path.stat().st_size == size + 100  # a line torn by the system itself
    torn = ledger.read()
    assert torn.state == "interrupted" and torn.epsilon(DELTA) > before
    charge(ledger, ["a"])
    assert [entry["kind"] for entry in ledger.read().entries[-3:]] == ["charge", "recovered", "charge"]
    size = 100  # not even the head finds room
    assert in_child(lambda: with_little_room(0)) == 3
    assert ledger.read().state == "intact"


def test_a_read_only_folder_refuses(tmp_path: Path) -> None:
    ledger = small(tmp_path / "ledger")
    nobody = 65534
    for path in (tmp_path / "ledger").rglob("*"):
        if os.getuid() == 0:
            os.chown(path, nobody, nobody)
    make_reachable(tmp_path)
    assert ledger.read().epsilon(DELTA) > 0  # imports what the child, who may not read everything, needs
    (tmp_path / "ledger").chmod(0o555)

    def as_somebody(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            if os.getuid() == 0:
                os.setgid(nobody)
                os.setuid(nobody)
            work()

        return run

    assert in_child(as_somebody(lambda: ledger.read().epsilon(DELTA))) == 0  # it can be looked at
    assert in_child(as_somebody(lambda: charge(ledger, ["a"]))) == 3
    assert in_child(as_somebody(lambda: ledger.note("restart", run="ab"))) == 3
    (tmp_path / "ledger" / "ledger.jsonl").chmod(0o400)
    assert in_child(as_somebody(lambda: charge(ledger, ["a"]))) == 3
    (tmp_path / "ledger").chmod(0o755)
    assert len(ledger.read().charges) == 3


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    ledger = small(tmp_path / "ledger")
    assert (tmp_path / "ledger" / "site.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "ledger" / "site.key").chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        charge(ledger, ["a"])


def test_a_clock_set_back_is_told_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = small(tmp_path / "ledger", 1)

    class Past(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(1999, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(chain, "datetime", Past)
    charge(ledger, ["a"])
    spent = ledger.read()
    assert spent.entries[-1]["clock"] == "set back" and spent.entries[-1]["time"].startswith("1999")
    assert "clock" not in spent.entries[-2]
    assert spent.epsilon(DELTA) == epsilon([STEPS, STEPS], DELTA)


def test_no_file_holds_a_patients_id_and_fingerprints_need_the_key(tmp_path: Path) -> None:
    ledgers = [Ledger.create(tmp_path / name) for name in "xy"]
    for ledger in ledgers:
        charge(ledger, ["patient-Ångström-1", "patient-2"])
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"patient-2" not in content and "Ångström".encode() not in content
    x, y = (ledger.read().charges[0]["cohort"] for ledger in ledgers)
    assert x != y  # the same patients under two keys cannot be matched
    same = ledgers[0].fingerprint(ledgers[0].hashes(["patient-2", "patient-Ångström-1", "patient-2"]))
    assert same == x and ledgers[0].fingerprint(ledgers[0].hashes(["patient-2"])) != x


def test_events_are_kept_in_order_and_a_summary_says_all(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger")
    ledger.note("agreed", run="ab", terms={"clip": 1.0})
    charge(ledger, ["a"], round=1)
    ledger.note("restart", run="ab")
    charge(ledger, ["a"], NoisyFigures(0.3, 1e-7), round=2)
    ledger.note("figures", run="ab", count=2, names=["loss", "dice_image"])
    ledger.note("evaluation", run="ab", count=5)
    for bad in ({"kind": "charge"}, {"n": 1}, {"hash": "x"}):
        with pytest.raises((ConfigError, TypeError)):
            ledger.note("tuning", **bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        ledger.note("charge", spend={})  # type: ignore[arg-type]
    found = summary(ledger.read(), DELTA)
    assert found["events"] == {"created": 1, "agreed": 1, "charge": 2, "restart": 1, "figures": 1, "evaluation": 1}
    assert (found["state"], found["entries"], found["charges"], found["runs"], found["plain_figures"]) == ("intact", 7, 2, {"ab": 2}, 2)
    assert list(found["cohorts"].values()) == [1]
    first, last = found["history"]
    assert (first["entry"], last["entry"]) == (2, 4) and 0 < first["epsilon"] < last["epsilon"]
    assert last["epsilon"] == pytest.approx(found["epsilon"]["pld"], abs=0.01)
    assert found["epsilon"]["pld"] < found["epsilon"]["rdp"]


def test_the_history_of_a_long_ledger_is_thinned_and_ends_at_the_end(tmp_path: Path) -> None:
    found = summary(small(tmp_path / "ledger", 9).read(), DELTA, points=4)
    assert [point["entry"] for point in found["history"]] == [1, 4, 7, 9]
    assert found["history"][-1]["epsilon"] == pytest.approx(found["epsilon"]["pld"], abs=0.01)
