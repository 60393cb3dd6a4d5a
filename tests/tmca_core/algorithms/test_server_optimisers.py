"""FedAvgM, FedAdam, FedYogi, FedAdagrad: by hand, and against Flower's own where it says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmca_core.algorithms import ALGORITHMS, Fold
from tmca_core.config import parse
from tmca_core.messages import Update

WEIGHTS = (10, 30, 60)
ROUNDS = 5
START = torch.tensor([1.0, -2.0, 0.5, 0.0])


def fold_of(name: str, **values: Any) -> Fold:
    config = parse({"federation.algorithm": name} | {f"federation.{key}": value for key, value in values.items()})
    return ALGORITHMS[name].fold({"w": START}, config)


def deltas(round: int) -> Tensor:
    """Three sites' updates, of the size that local training gives: (3, 4)."""
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(round)) * 0.02


def fold_rounds(fold: Fold) -> list[Tensor]:
    weights, seen = {"w": START.clone()}, []
    for round in range(1, ROUNDS + 1):
        fold.begin(sum(WEIGHTS))
        for delta, weight in zip(deltas(round), WEIGHTS, strict=True):
            fold.add(Update({"w": delta}, weight, {}, round))
        fold.finish(weights)
        seen.append(weights["w"].clone())
    return seen


def mean(round: int) -> NDArray[np.float64]:
    return np.average(deltas(round).double().numpy(), axis=0, weights=WEIGHTS)


# --- by hand ------------------------------------------------------------------------------------
def one_value(name: str, values: list[float], **settings: Any) -> list[float]:
    """A single weight from 0, a single site: the weight after every round."""
    config = parse({"federation.algorithm": name} | {f"federation.{key}": value for key, value in settings.items()})
    fold, weights, seen = ALGORITHMS[name].fold({"w": torch.zeros(1)}, config), {"w": torch.zeros(1)}, []
    for value in values:
        fold.begin(1)
        fold.add(Update({"w": torch.tensor([value])}, 1, {}, 1))
        fold.finish(weights)
        seen.append(weights["w"].item())
    return seen


def test_momentum_by_hand() -> None:
    # v: 1, 0.5·1 + 2 = 2.5, 0.5·2.5 − 1 = 0.25; w adds 0.1 v
    found = one_value("fedavgm", [1.0, 2.0, -1.0], server_momentum=0.5, server_learning_rate=0.1)
    assert found == pytest.approx([0.1, 0.35, 0.375])


def test_adaptive_steps_by_hand() -> None:
    # β₁ = 0, τ = 0.1, v starts at τ² = 0.01; Δ = 0.3, Δ² = 0.09; η = 1
    plain = {"server_momentum": 0.0, "tau": 0.1, "server_learning_rate": 1.0, "beta2": 0.75}
    assert one_value("fedadagrad", [0.3], **plain) == pytest.approx([0.3 / (0.10**0.5 + 0.1)])
    assert one_value("fedadam", [0.3], **plain) == pytest.approx([0.3 / ((0.75 * 0.01 + 0.25 * 0.09) ** 0.5 + 0.1)])
    assert one_value("fedyogi", [0.3], **plain) == pytest.approx([0.3 / ((0.01 + 0.25 * 0.09) ** 0.5 + 0.1)])
    # Yogi comes down again by Δ², not towards it: v = 0.0325, then Δ = 0.1 gives 0.0325 − 0.25·0.01
    after = one_value("fedyogi", [0.3, 0.1], **plain)
    assert after[1] - after[0] == pytest.approx(0.1 / (0.03**0.5 + 0.1))
    # β₁ = 0.5: the first step is half of the plain one
    assert one_value("fedadam", [0.3], **plain | {"server_momentum": 0.5}) == pytest.approx([0.15 / (0.03**0.5 + 0.1)])


# --- against Flower -----------------------------------------------------------------------------
def flower_rounds(strategy: Any, before: Any = lambda strategy, round: None) -> list[Tensor]:
    """The same rounds through a Flower strategy, which averages whole weights."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    weights, seen = START.double().numpy(), []
    for round in range(1, ROUNDS + 1):
        arrays = ArrayRecord({"w": Array(weights)})
        if hasattr(strategy, "current_arrays"):  # what configure_train notes, which needs a grid
            strategy.current_arrays = arrays if strategy.__class__.__name__ == "FedAvgM" else {"w": weights}
        before(strategy, round)
        replies = []
        for delta, weight in zip(deltas(round).double().numpy(), WEIGHTS, strict=True):
            content = RecordDict({"arrays": ArrayRecord({"w": Array(weights + delta)}), "metrics": MetricRecord({"num-examples": weight})})
            replies.append(Message(content, reply_to=Message(RecordDict({"c": ConfigRecord()}), dst_node_id=1, message_type="train")))
        found, _ = strategy.aggregate_train(round, replies)
        assert found is not None
        weights = found["w"].numpy()
        seen.append(torch.from_numpy(weights).float())
    return seen


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == ROUNDS
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    assert (ours[-1] - START).abs().max() > 3e-3


def test_fedavgm_is_flowers() -> None:
    from flwr.serverapp.strategy import FedAvgM

    ours = fold_rounds(fold_of("fedavgm", server_momentum=0.8, server_learning_rate=0.5))
    agree(ours, flower_rounds(FedAvgM(server_momentum=0.8, server_learning_rate=0.5)))


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_ones_are_flowers_but_for_the_start(name: str) -> None:
    from flwr.serverapp import strategy as flower

    eta, beta1, beta2, tau = 0.05, 0.8, 0.9, 1e-2
    cls = {"fedadam": flower.FedAdam, "fedyogi": flower.FedYogi, "fedadagrad": flower.FedAdagrad}[name]
    theirs = cls(eta=eta, tau=tau, **({} if name == "fedadagrad" else {"beta_1": beta1, "beta_2": beta2}))

    def as_the_paper(strategy: Any, round: int) -> None:
        """v begins at τ², and FedAdam's correction of the bias is undone."""
        if round == 1:
            strategy.v_t = {"w": np.full(4, tau**2)}
        if name == "fedadam":
            strategy.eta = eta * (1 - beta1 ** (round + 1)) / np.sqrt(1 - beta2 ** (round + 1))

    momentum = 0.0 if name == "fedadagrad" else beta1  # Flower's has none
    ours = fold_rounds(fold_of(name, server_learning_rate=eta, server_momentum=momentum, beta2=beta2, tau=tau))
    agree(ours, flower_rounds(theirs, as_the_paper))


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_ones_are_the_papers(name: str) -> None:
    """Reddi et al. 2021, algorithm 2, in float64."""
    eta, beta1, beta2, tau = 0.01, 0.9, 0.99, 1e-3
    w, m, v = START.double().numpy(), np.zeros(4), np.full(4, tau**2)
    expected = []
    for round in range(1, ROUNDS + 1):
        delta = mean(round)
        m = beta1 * m + (1 - beta1) * delta
        v = {
            "fedadagrad": v + delta**2,
            "fedyogi": v - (1 - beta2) * delta**2 * np.sign(v - delta**2),
            "fedadam": beta2 * v + (1 - beta2) * delta**2,
        }[name]
        w = w + eta * m / (np.sqrt(v) + tau)
        expected.append(torch.from_numpy(w).float())
    agree(fold_rounds(fold_of(name)), expected)
