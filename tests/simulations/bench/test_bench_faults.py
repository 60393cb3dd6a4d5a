"""The fault matrix: its list is long enough, and single rows tell a sound end from a lost one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.bench import faults_rows
from simulations.bench.breaking import TRAPS, Ending
from simulations.bench.faults_damage import KILLS, damaged_memory, rows
from simulations.bench.faults_rows import Bench, refused_then_sound, same
from tmca_core.cli import main

TINY = {"phantom.sites": 3, "phantom.cases": 10, "training.steps": 2, "training.batch_size": 2}


def test_the_matrix_has_two_dozen_rows_and_springs_every_trap() -> None:
    bench = Bench.__new__(Bench)
    assert len(rows(bench)) >= 36
    assert len(rows(bench, "kill in")) == 5 + 2 * 3
    assert len(rows(bench, "scaffold, int8")) == len(rows(bench, "replies kept")) == 4
    assert TRAPS.keys() - KILLS.keys() == {"disk full", "all fail"}


def test_weights_are_equal_bit_for_bit_and_never_nothing() -> None:
    import torch

    a = {"a": torch.tensor([1.0])}
    assert same(a, {"a": torch.tensor([1.0])})
    assert not same(a, {"a": torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))})
    assert not same({}, {}) and not same(a, {})


@pytest.mark.slow
def test_rows_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(faults_rows, "SETTINGS", faults_rows.SETTINGS | TINY)
    played = (("nan", "recovered"), ("raise", "recovered"), ("all_fail", "refused"), ("kill in a round; scaffold, int8", "recovered"))
    for only, outcome in played:
        with pytest.raises(SystemExit) as stop:
            main(["bench", "faults", "--only", only, "--out", str(tmp_path), "--json"])
        value = json.loads(capsys.readouterr().out)
        assert stop.value.code == 0
        assert value["figures"] == {"rows": 1.0, "recovered": 0.0, "refused": 0.0, "lost": 0.0} | {outcome: 1.0}
        assert ("MemoryError: out of memory" in (tmp_path / "faults.md").read_text()) == (only in ("raise", "all_fail"))


@pytest.mark.slow
def test_damage_that_is_not_mended_counts_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_rows, "SETTINGS", faults_rows.SETTINGS | TINY)
    bench = Bench(tmp_path)

    def broken(out: Path) -> Ending:
        out.mkdir()
        (out / "not a run").touch()
        return Ending(0, "ConfigError", "it is not empty", True)

    assert refused_then_sound(bench, "x", "y", "z", broken, lambda out: None).outcome == "lost"
    crash = refused_then_sound(bench, "x", "y", "z", lambda out: Ending(1, "KeyError", "'a'", False), lambda out: None)
    assert crash.outcome == "lost"


@pytest.mark.slow
def test_a_run_that_ends_with_too_low_a_dice_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_rows, "SETTINGS", faults_rows.SETTINGS | TINY)
    monkeypatch.setattr(faults_rows, "LONGER", {})
    bench, away = Bench(tmp_path), {"scenario.dropout": 0.3}
    for allowed, outcome in ((1.0, "recovered"), (-1.0, "lost")):
        monkeypatch.setattr(faults_rows, "WORSE", allowed)
        assert faults_rows.weather(bench, "dropout", away, "sites do not answer").outcome == outcome
        assert damaged_memory(bench).outcome == outcome
