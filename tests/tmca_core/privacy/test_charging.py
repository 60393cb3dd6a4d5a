"""Rounds that are paid for at the same time, and files of what was released that are damaged or gone."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from server.central import charge
from server.private import asked_for
from tests.support.tiny_runs import tiny
from tmca_core.cli import main
from tmca_core.config import parse
from tmca_core.errors import BudgetExhausted, LedgerError
from tmca_core.privacy.accounting import NoisySteps, epsilon, spend_from_json
from tmca_core.privacy.central import Draw
from tmca_core.privacy.charging import Account
from tmca_core.privacy.ledger import Budget, Ledger, Receipt
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.run import Checkpoint, Run

STEP = Mechanism(noise_multiplier=1.0, clip=1.0, sample_rate=1.0, expected=10.0, steps=1)  # ε = 4.377


class Slow(Ledger):
    """A ledger at which two payers arrive at the same moment, each having looked at what is spent."""

    together: Barrier

    def charge(self, *given: object, **more: object) -> Receipt:
        Slow.together.wait(30)
        return super().charge(*given, **more)  # type: ignore[arg-type]


def pay(folder: Path, together: Barrier, round: int, budget: Budget | None) -> None:
    Slow.together = together
    config = parse({"privacy.enabled": True, "privacy.target_epsilon": 4.5, "privacy.noise_multiplier": 1.0})
    ledger = Ledger.open(folder)
    try:
        Account(Slow(ledger.chain), budget).pay(config, STEP, ["p0", "p1"], run="ab", round=round, app="x")
    except BudgetExhausted:
        raise SystemExit(3) from None


@pytest.mark.parametrize("budget", (None, Budget(50.0, 1e-5)))
def test_two_processes_cannot_both_spend_the_last_of_a_runs_target(tmp_path: Path, budget: Budget | None) -> None:
    Ledger.create(tmp_path / "ledger")
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(2)
    payers = [fork.Process(target=pay, args=(tmp_path / "ledger", together, round, budget)) for round in (1, 2)]
    for payer in payers:
        payer.start()
    for payer in payers:
        payer.join(60)
    assert sorted(payer.exitcode or 0 for payer in payers) == [0, 3]
    spent = [spend_from_json(entry["spend"]) for entry in Ledger.open(tmp_path / "ledger").read().charges]
    assert epsilon(spent, 1e-5) == pytest.approx(epsilon([NoisySteps(1.0, 1.0, 1)], 1e-5))


def test_every_site_of_one_ledger_is_tested_on_its_own_patients(tmp_path: Path) -> None:
    account = Account(Ledger.create(tmp_path), None)
    config = parse({"privacy.enabled": True, "privacy.noise_multiplier": 1.0})
    account.pay(config, STEP, ["p0", "p1"], run="ab", round=1, app="x")
    assert account.tested("ab", config, "x", ["p1", "p0"]) and not account.tested("ab", config, "x", ["p2", "p3"])


@pytest.mark.parametrize("line", (b'{"n":NaN}', b"[" * 200_000, b'{"hash":"' + b"a" * 64 + b'","n":Infinity}'))
def test_a_ledger_line_that_is_no_json_of_ours_is_damage(tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.create(tmp_path)
    for round in (1, 2):
        Account(ledger, None).pay(
            parse({"privacy.enabled": True, "privacy.noise_multiplier": 1.0}), STEP, ["p"], run="ab", round=round, app="x"
        )
    whole = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join([*whole[:1], line + b"\n", *whole[2:]]))
    with pytest.raises(LedgerError, match="entry 1 is changed"):
        ledger.read()
    with pytest.raises(SystemExit) as stop:
        main(["privacy", "ledger", "verify", str(tmp_path)])
    assert stop.value.code == 2 and "damaged" in capsys.readouterr().out
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(whole))
    (tmp_path / "head.json").write_bytes(line + b"\n")
    with pytest.raises(LedgerError, match=r"head .* cannot be read|was changed"):
        ledger.read()


def test_a_run_that_forgot_what_it_released_goes_no_further(tmp_path: Path) -> None:
    config = tiny(tmp_path, central__enabled=True, central__max_epsilon=100.0, privacy__enabled=True, privacy__noise_multiplier=1.0)
    run = Run.create(tmp_path / "run", config)
    for round in (1, 2):
        charge(run, config, Draw(3, 3))
        asked = asked_for(run, config)
        run.write_json("asked.json", {"a": [*asked.get("a", []), round]})
        run.save_checkpoint(Checkpoint(round, {}, {}))
    charge(run, config, Draw(3, 3))  # of a round that was interrupted: more releases than checkpoints are right
    for name, read in (("central.json", lambda: charge(run, config, Draw(3, 3))), ("asked.json", lambda: asked_for(run, config))):
        whole = (run.folder / name).read_bytes()
        for torn in (None, whole[: len(whole) // 2], b"[1]", b'{"draws": [[3, 3]], "a": [1]}'):
            (run.folder / name).unlink()
            if torn is not None:
                (run.folder / name).write_bytes(torn)
            with pytest.raises(LedgerError, match="nothing is released"):
                read()
            (run.folder / name).write_bytes(whole)
        read()
