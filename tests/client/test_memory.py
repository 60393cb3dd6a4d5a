"""What a site remembers: exactly the round before, whole files only, and nothing of another run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from client.memory import Memory
from tmca_core.errors import FederationError, PolicyRefusal, WeightsError
from tmca_core.training.state import TrainState


def state(step: int) -> TrainState:
    return TrainState(step, {"w": (torch.full((2,), float(step)), torch.full((2,), step / 2))}, {})


def test_a_round_starts_from_the_newest_before_it(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path, "a", "0f")
    assert memory.load(before=1) == (None, {})
    memory.save(1, state(5), {"personal": {"norm": torch.tensor([1.5])}})
    memory.save(4, state(9), {"personal": {"norm": torch.tensor([2.5])}})
    loaded, groups = memory.load(before=5)
    assert loaded is not None
    assert loaded.step == 9
    assert torch.equal(loaded.moments["w"][0], torch.tensor([9.0, 9.0]))
    assert groups["personal"]["norm"].item() == 2.5
    # Round 4 is repeated after a crash: its own file is there already and must not count.
    again, groups = memory.load(before=4)
    assert again is not None
    assert again.step == 5
    assert groups["personal"]["norm"].item() == 1.5


def test_three_files_stay_and_later_ones_of_an_interrupted_attempt_go(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path, "a", "0f")
    for number in (1, 2, 3, 7):
        memory.save(number, state(number), {})
    assert sorted(path.name for path in memory.folder.iterdir()) == [
        "round-002.safetensors",
        "round-003.safetensors",
        "round-007.safetensors",
    ]
    memory.save(4, state(4), {})
    assert sorted(path.name for path in memory.folder.iterdir()) == [
        "round-002.safetensors",
        "round-003.safetensors",
        "round-004.safetensors",
    ]


def test_groups_of_tensors_without_an_optimiser_state(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path, "a", "0f")
    groups = {"personal": {"norm.weight": torch.ones(1)}, "kept": {"a/b": torch.zeros(2, 3)}, "residual": {}}
    memory.save(1, None, groups)
    loaded, found = memory.load(before=2)
    assert loaded is None
    assert {group: list(members) for group, members in found.items()} == {"personal": ["norm.weight"], "kept": ["a/b"]}
    assert torch.equal(found["kept"]["a/b"], groups["kept"]["a/b"])


def test_runs_and_sites_do_not_mix(tmp_path: Path) -> None:
    Memory.of(tmp_path, "a", "0f").save(1, state(1), {})
    assert Memory.of(tmp_path, "a", "1f").load(before=9) == (None, {})
    assert Memory.of(tmp_path, "b", "0f").load(before=9) == (None, {})


@pytest.mark.parametrize("name", ["..", "../../etc", "a/b", ".hidden", "ß 1"])
def test_no_site_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder = Memory.of(tmp_path / "state", name, "0f").folder
    assert folder.resolve().parents[1] == (tmp_path / "state").resolve()


@pytest.mark.parametrize("run", ["", "..", "../x", "0F", "g", "0" * 33])
def test_the_server_cannot_choose_a_path(tmp_path: Path, run: str) -> None:
    with pytest.raises(PolicyRefusal, match="hexadecimal"):
        Memory.of(tmp_path, "a", run)


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path, "a", "0f")
    memory.save(1, state(1), {})
    path = memory.folder / "round-001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="Delete it to let this site begin anew"):
        memory.load(before=2)
    memory.save(1, state(1), {})
    memory.save(2, state(2), {})
    path = memory.folder / "round-002.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="Delete it to go on from that of round 1"):
        memory.load(before=3)
    path.unlink()
    loaded, _ = memory.load(before=3)
    assert loaded is not None and loaded.step == 1


def test_a_file_is_on_the_platter_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder synced" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file synced")
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    Memory.of(tmp_path, "a", "0f").save(1, state(1), {})
    assert done == ["file synced", "renamed", "folder synced"]


def test_a_run_holds_to_the_cases_it_began_with(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path, "a", "0f")
    cases = {"train": ["1", "2", "3"], "test": ["4"]}
    for _ in range(2):
        memory.hold_to(cases)
    with pytest.raises(FederationError, match=r"\(train, test\)\. Put its manifest back"):
        memory.hold_to({"train": ["1", "2"], "test": ["3", "4"]})
    with pytest.raises(FederationError, match=r"\(train\)"):
        memory.hold_to({"train": ["1", "2", "3, edited"], "test": ["4"]})
    memory.hold_to(cases)
    Memory.of(tmp_path, "a", "1f").hold_to({"train": ["1"], "test": []})
    assert memory.load(before=9) == (None, {})
