"""Robust folds: a slow oracle each, Flower's own where it has one, and one hostile update among five."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmca_core.algorithms import ALGORITHMS, Fold, replies
from tmca_core.config import parse
from tmca_core.errors import FederationError
from tmca_core.messages import Update

Rows = NDArray[np.float64]
ROBUST = ["median", "trimmed-mean", "krum", "multi-krum", "geometric-median"]
SHAPES = {"a": (40,), "b": (3, 4, 5), "c": (), "empty": (0, 3)}
LIKE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SIZE = sum(tensor.numel() for tensor in LIKE.values())


def fold_of(name: str, **values: Any) -> Fold:
    config = parse({"federation.algorithm": name} | {f"federation.{key}": value for key, value in values.items()})
    return ALGORITHMS[name].fold(LIKE, config)


def rows(sites: int, seed: int = 0, scale: float = 0.01) -> Rows:
    """Updates as one row each, with something in common."""
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=SIZE) + 0.5 * rng.normal(size=(sites, SIZE))) * scale).astype(np.float32).astype(np.float64)


def update(row: Rows, weight: int = 1) -> Update:
    tensors, start = {}, 0
    for name, tensor in LIKE.items():
        tensors[name] = torch.from_numpy(row[start : start + tensor.numel()]).float().reshape(tensor.shape)
        start += tensor.numel()
    return Update(tensors, weight, {}, 1)


def folded(name: str, updates: Rows, weights: list[int] | None = None, **values: Any) -> Rows:
    fold, result = fold_of(name, **values), {key: torch.zeros_like(tensor) for key, tensor in LIKE.items()}
    fold.begin(100)
    for index, row in enumerate(updates):
        fold.add(update(row, weights[index] if weights else 1))
    fold.finish(result)
    return torch.cat([tensor.reshape(-1) for tensor in result.values()]).double().numpy()


# --- slow oracles -------------------------------------------------------------------------------
def oracle_median(updates: Rows) -> Rows:
    return np.median(updates, 0)


def oracle_trimmed(updates: Rows) -> Rows:
    cut = int(0.2 * len(updates) + 1e-9)
    return np.array([np.mean(sorted(column)[cut : len(column) - cut]) for column in updates.T])


def krum_scores(updates: Rows, hostile: int = 1) -> list[float]:
    scores = []
    for i, one in enumerate(updates):
        away = sorted(float(((one - other) ** 2).sum()) for j, other in enumerate(updates) if j != i)
        scores.append(sum(away[: len(updates) - hostile - 2]))
    return scores


def oracle_krum(updates: Rows) -> Rows:
    return updates[int(np.argmin(krum_scores(updates)))]


def oracle_multi_krum(updates: Rows) -> Rows:
    return updates[np.argsort(krum_scores(updates))[: len(updates) - 1]].mean(0)


def oracle_geometric(updates: Rows) -> Rows:
    from scipy.optimize import minimize

    def distances(v: Rows) -> tuple[float, Rows]:
        away = v - updates
        norms = np.sqrt((away**2).sum(1))
        return float(norms.sum()), (away / norms[:, None]).sum(0)

    return minimize(distances, updates.mean(0), jac=True, method="L-BFGS-B", options={"gtol": 1e-12, "ftol": 1e-15, "maxiter": 5000}).x


ORACLES: dict[str, Callable[[Rows], Rows]] = {
    "median": oracle_median,
    "trimmed-mean": oracle_trimmed,
    "krum": oracle_krum,
    "multi-krum": oracle_multi_krum,
    "geometric-median": oracle_geometric,
}


@pytest.mark.parametrize("sites", [5, 6, 11])
@pytest.mark.parametrize("name", ROBUST)
def test_the_slow_oracle_says_the_same(name: str, sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = rows(sites, seed=sites)
    expected = ORACLES[name](updates)
    tolerance = {"rtol": 0, "atol": 2e-7 if name == "geometric-median" else 1e-9}
    np.testing.assert_allclose(folded(name, updates), expected, **tolerance)
    monkeypatch.setattr(replies, "CHUNK", 3 * sites)  # three coordinates at a time
    np.testing.assert_allclose(folded(name, updates), expected, **tolerance)
    np.testing.assert_allclose(folded(name, updates, spill=True), expected, **tolerance)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_sites_count_the_same(name: str) -> None:
    updates = rows(6)
    assert np.array_equal(folded(name, updates), folded(name, updates, weights=[1, 500, 2, 80, 7, 30]))


def test_the_geometric_median_is_weighted() -> None:
    # Three on a line with weights 1, 1, 3: the weighted median of the line is the third.
    line = np.outer([0.0, 1.0, 5.0], rows(1)[0])
    np.testing.assert_allclose(folded("geometric-median", line, weights=[1, 1, 3]), line[2], atol=1e-6)
    np.testing.assert_allclose(folded("geometric-median", line, weights=[1, 1, 1]), line[1], atol=1e-6)


# --- Flower -------------------------------------------------------------------------------------
def flower(strategy: Any, updates: Rows) -> Rows:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    messages = []
    for row in updates:
        content = RecordDict({"arrays": ArrayRecord({"w": Array(row)}), "metrics": MetricRecord({"num-examples": 1})})
        messages.append(Message(content, reply_to=Message(RecordDict({"c": ConfigRecord()}), dst_node_id=1, message_type="train")))
    found, _ = strategy.aggregate_train(1, messages)
    result: Rows = found["w"].numpy()
    return result


@pytest.mark.parametrize("sites", [5, 8])
@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_flower_says_the_same(name: str, sites: int) -> None:
    from flwr.serverapp import strategy

    made = {
        "median": lambda: strategy.FedMedian(),
        "trimmed-mean": lambda: strategy.FedTrimmedAvg(beta=0.2),
        "krum": lambda: strategy.Krum(num_malicious_nodes=1),
        "multi-krum": lambda: strategy.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=sites - 1),  # weighted there, here not
    }
    updates = rows(sites, seed=sites)
    np.testing.assert_allclose(folded(name, updates), flower(made[name](), updates), rtol=0, atol=1e-9)


# --- one hostile update -------------------------------------------------------------------------
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("name", ROBUST)
def test_one_of_five_moves_it_no_further_than_the_others_lie_apart(name: str, place: int) -> None:
    clean = rows(5, seed=3)
    apart = max(float(np.linalg.norm(first - second)) for first, second in itertools.combinations(clean, 2))
    hostile = clean.copy()
    hostile[place] = 1e6 * np.random.default_rng(9).normal(size=SIZE)
    good = np.delete(clean, place, 0)
    assert np.linalg.norm(folded(name, hostile) - good.mean(0)) < 1.5 * apart
    assert np.linalg.norm(folded(name, hostile) - folded(name, clean)) < 1.5 * apart
    assert np.linalg.norm(folded("fedavg", hostile)) > 1e5  # which the plain mean does not bear


@pytest.mark.parametrize("name", ["krum", "multi-krum"])
def test_krum_takes_nothing_of_the_hostile_one(name: str) -> None:
    hostile = rows(6, seed=3)
    hostile[4] *= -1e6
    assert np.abs(folded(name, hostile)).max() < np.abs(np.delete(hostile, 4, 0)).max() + 1e-9


def test_a_norm_bound_by_hand() -> None:
    fold, weights = fold_of("norm-bound", norm_bound=5.0), {name: torch.zeros_like(tensor) for name, tensor in LIKE.items()}
    long, short = np.zeros(SIZE), np.zeros(SIZE)
    long[0], long[50] = 30.0, 40.0  # norm 50, ten times too long; over two tensors
    short[0] = 4.0
    fold.begin(4)
    fold.add(update(long, 1))
    fold.add(update(short, 3))
    fold.finish(weights)
    assert weights["a"][0].item() == pytest.approx((3.0 + 3 * 4.0) / 4)
    assert weights["b"].reshape(-1)[10].item() == pytest.approx(4.0 / 4)


@pytest.mark.parametrize("scale", [1e6, 1e30])
def test_a_norm_bound_holds_whatever_is_sent(scale: float) -> None:
    clean = rows(5, seed=3)
    hostile = clean.copy()
    hostile[2] = scale * np.random.default_rng(9).normal(size=SIZE)
    moved = folded("norm-bound", hostile, norm_bound=1.0) - folded("norm-bound", clean, norm_bound=1.0)
    assert 0.19 < np.linalg.norm(moved) < 0.4 + 1e-6  # twice the bound, by a fifth of the weight


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- memory and files ---------------------------------------------------------------------------
def test_too_few_for_its_promise_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folded("krum", rows(4))
        folded("trimmed-mean", rows(4))
    assert "needs 5 updates; of 4 it promises nothing" in caplog.text
    assert "federation.trim = 0.2 of 4 updates is none" in caplog.text


def test_a_spill_leaves_no_file_and_no_reply_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies.tempfile, "tempdir", str(tmp_path))
    held = replies.Replies(LIKE, spill=True)
    before = open_files()
    for row in rows(3):
        held.add(update(row))
    assert held._rows == []
    assert open_files() == before + 1
    assert list(tmp_path.iterdir()) == []  # it has no name: nothing to clean up after a kill
    names = [(name, where, values.clone()) for name in LIKE for where, values in held.columns(name)]
    assert torch.equal(names[0][2], torch.from_numpy(rows(3)[:, :40]))
    held.clear()
    assert open_files() == before
    assert len(held) == 0


def test_a_spill_without_room_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies.tempfile, "TemporaryFile", lambda prefix: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    fold = fold_of("median", spill=True)
    fold.begin(3)
    with pytest.raises(FederationError, match=r"No space left.*TMPDIR.*federation.spill=false"):
        fold.add(update(rows(1)[0]))


def test_other_dtypes_are_kept_as_they_are() -> None:
    like = {"half": torch.zeros(3, dtype=torch.bfloat16), "double": torch.zeros(2, dtype=torch.float64)}
    updates = [
        {"half": torch.tensor([1.0, 2.0, i]).bfloat16(), "double": torch.tensor([1e-12 * i, 1.0], dtype=torch.float64)} for i in (1, 2, 9)
    ]
    for spill in (False, True):
        weights: dict[str, Tensor] = {name: tensor.clone() for name, tensor in like.items()}
        fold = ALGORITHMS["median"].fold(like, parse({"federation.algorithm": "median", "federation.spill": spill}))
        fold.begin(3)
        for tensors in updates:
            fold.add(Update(tensors, 1, {}, 1))
        fold.finish(weights)
        assert weights["half"].tolist() == [1.0, 2.0, 2.0]
        assert weights["double"].tolist() == [2e-12, 1.0]
