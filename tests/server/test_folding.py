"""Folding in a thread of its own: the same sums, one at a time, and no error lost."""

import threading
import time

import pytest
import torch

import server.folding
from server.folding import Folding
from tmca_core.algorithms.fedavg import FedAvg
from tmca_core.config import Config
from tmca_core.messages import Update


def update(value: float, weight: int, size: int = 8) -> Update:
    return Update({"w": torch.full((size,), value)}, weight, {}, 1)


@pytest.mark.parametrize("large", [1, 1_000])
def test_the_mean_is_that_of_folding_at_once(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.folding, "LARGE", large)
    weights = {"w": torch.zeros(8)}
    fold = FedAvg(weights, Config())
    folding = Folding(fold)
    for value, weight in ((1.0, 3), (5.0, 1)):
        folding.add(update(value, weight))
    folding.settle()
    fold.finish(weights)
    assert weights["w"].tolist() == [2.0] * 8


class Watching(FedAvg):
    inside = most = 0
    threads: set[int]

    def add(self, update: Update) -> None:
        type(self).inside += 1
        type(self).most = max(self.most, self.inside)
        self.threads.add(threading.get_ident())
        time.sleep(0.01)
        if update.weight == 13:
            raise ValueError("thirteen")
        type(self).inside -= 1


def test_one_at_a_time_beside_the_caller_and_what_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.folding, "LARGE", 1)
    Watching.threads = set()
    folding = Folding(Watching({"w": torch.zeros(8)}, Config()))
    for _ in range(4):
        folding.add(update(1.0, 1))
    folding.settle()
    assert Watching.most == 1
    assert threading.get_ident() not in Watching.threads
    folding.add(update(1.0, 13))
    with pytest.raises(ValueError, match="thirteen"):
        folding.settle()
    folding.settle()  # said once
