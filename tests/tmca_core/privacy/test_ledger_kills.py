"""Kill -9 at any moment: never a release without its entry, never a broken chain that passes, never an ε that is too small."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Charge, Ledger

STEP = NoisySteps(1.0, 0.02, 10)
TRACED = ("chain.py", "ledger.py", "run.py")


def releases(path: Path) -> list[int]:
    """Entry numbers of what was released; a number that was torn off in its writing was not yet out."""
    text = path.read_text() if path.exists() else ""
    return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def one_round(folder: Path, out: Path) -> None:
    round = len(releases(out)) + 1
    receipt = Ledger.open(folder).charge(Charge(STEP, run="ab", round=round), [f"p{i}" for i in range(round % 3 + 1)], None)
    with out.open("ab", buffering=0) as file:
        file.write(f"{receipt.entry}\n".encode())


def check(folder: Path, out: Path) -> None:
    spent = Ledger.open(folder).read()  # raises where the chain is broken
    charged = [entry["n"] for entry in spent.charges]
    assert set(releases(out)) <= set(charged)
    assert len(releases(out)) == len(set(releases(out)))
    assert [entry["n"] for entry in spent.entries] == list(range(len(spent.entries)))
    if spent.state == "intact":
        assert (folder / "ledger.jsonl").read_bytes().count(b"\n") == len(spent.entries)


def kill_at_random(tmp_path: Path, kills: int) -> None:
    folder, out, rng = tmp_path / "ledger", tmp_path / "released", random.Random(5)
    Ledger.create(folder)
    for _ in range(kills):
        child = os.fork()
        if not child:
            try:
                for _ in range(10_000):  # not for ever: a parent that is stopped does not kill
                    one_round(folder, out)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL  # it did not stop by itself
        check(folder, out)
    one_round(folder, out)
    check(folder, out)
    spent, number = Ledger.open(folder).read(), len(releases(out))
    assert number > kills / 4 and spent.state == "intact"
    # An uninterrupted run has one charge a release; p0 is in all of them.
    assert spent.epsilon(1e-5) >= epsilon([NoisySteps(1.0, 0.02, 10 * number)], 1e-5)


def test_kills_at_random(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 15)


@pytest.mark.slow
def test_two_hundred_kills_at_random(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 250)


def kill_at_line(folder: Path, out: Path, line: int) -> bool:
    """Run a round in a child that is killed before its `line`-th line of the ledger's code; False: it came to its end."""
    child = os.fork()
    if not child:
        left = line

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.endswith(TRACED):
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            one_round(folder, out)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def killed_at(tmp_path: Path, stride: int) -> None:
    """A round, and one that first mends an interrupted ledger, killed before every `stride`-th line."""
    folder, out = tmp_path / "ledger", tmp_path / "released"
    Ledger.create(folder)
    one_round(folder, out)
    begun, states, killed = out.read_text(), [], 0
    for start in ("intact", "interrupted"):
        if start == "interrupted":
            one_round(folder, out)
            content = (folder / "ledger.jsonl").read_bytes()
            (folder / "ledger.jsonl").write_bytes(content[:-40])
            out.write_text(begun)
        shutil.copytree(folder, tmp_path / start)
        line = 0
        while kill_at_line(folder, out, line):
            check(folder, out)
            states.append((start, Ledger.open(folder).read().state))
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / start, folder)
            out.write_text(begun)
            line += stride
        check(folder, out)
        assert len(releases(out)) == 2
        killed += line // stride
    every = {(a, b) for a in ("intact", "interrupted") for b in ("intact", "interrupted")}
    assert set(states) <= every and (stride > 1 or set(states) == every)  # a ledger is interrupted between few lines only
    assert killed > 300 / stride


def test_kills_at_lines_of_a_write(tmp_path: Path) -> None:
    killed_at(tmp_path, 29)


@pytest.mark.slow
def test_a_kill_at_every_line_of_a_write(tmp_path: Path) -> None:
    killed_at(tmp_path, 1)
