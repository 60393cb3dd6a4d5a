"""The fold of FedAvg: by hand, in any order, and what it must refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tmca_core.algorithms import ALGORITHMS
from tmca_core.algorithms.fedavg import PIECE, FedAvg
from tmca_core.config import Config
from tmca_core.errors import ConfigError, FederationError
from tmca_core.messages import Update

METRICS = {"loss": 1.0, "steps": 1.0, "cases": 1.0, "seconds": 0.1}


def update(values: list[float], weight: int) -> Update:
    return Update({"w": torch.tensor(values)}, weight, METRICS, 1)


def folded(start: Tensor, updates: list[Update]) -> Tensor:
    weights = {"w": start.clone()}
    fold = ALGORITHMS["fedavg"].fold(weights, Config())
    for one in updates:
        fold.add(one)
    fold.finish(weights)
    return weights["w"]


def test_three_sites_by_hand() -> None:
    # (120·[1, −2] + 30·[0, 4] + 50·[−1, 0]) / 200 = [0.35, −0.6]
    after = folded(torch.tensor([10.0, 20.0]), [update([1, -2], 120), update([0, 4], 30), update([-1, 0], 50)])
    torch.testing.assert_close(after, torch.tensor([10.35, 19.4]))


def test_one_site_gets_back_what_it_trained() -> None:
    start, trained = torch.tensor([0.25, -3.0]), torch.tensor([0.5, -2.5])
    assert torch.equal(folded(start, [Update({"w": trained - start}, 7, METRICS, 1)]), trained)


def test_a_fold_starts_over() -> None:
    weights = {"w": torch.zeros(1)}
    fold = ALGORITHMS["fedavg"].fold(weights, Config())
    for _ in range(2):
        fold.add(update([1.0], 3))
        fold.finish(weights)
    assert weights["w"].item() == 2.0


def test_nothing_folded_is_an_error() -> None:
    with pytest.raises(FederationError, match="no update"):
        folded(torch.zeros(1), [])


def test_unknown_algorithm_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="fedavg"):
        ALGORITHMS["fedfoo"]


# Bits of n·Δ here span at most 2⁻⁴⁰ … 2¹¹, so the float64 sum is exact and the order cannot show.
deltas = st.one_of(st.just(0.0), st.floats(2**-16, 2.0, width=32), st.floats(-2.0, -(2**-16), width=32, allow_subnormal=False))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.lists(deltas, min_size=3, max_size=3), st.integers(1, 127)), min_size=1, max_size=8), st.randoms())
def test_order_of_arrival_does_not_show(sites: list[tuple[list[float], int]], random: object) -> None:
    start = torch.tensor([0.1, -0.2, 3.0])
    updates = [update(values, weight) for values, weight in sites]
    shuffled = list(updates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    after = folded(start, updates)
    assert torch.equal(after, folded(start, shuffled))
    # The slow oracle: exact rational sums of Python, rounded once.
    total = sum(weight for _, weight in sites)
    for i in range(3):
        mean = math.fsum(values[i] * weight for values, weight in sites) / total
        assert after[i].item() == torch.tensor(start[i].item() + mean, dtype=torch.float64).float().item()


def test_realistic_updates_in_every_order() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [Update({"w": torch.randn(20_000, generator=generator) * 1e-3}, n, METRICS, 1) for n in (7, 120, 33, 64)]
    start = torch.randn(20_000, generator=generator) * 0.05
    results = [folded(start, list(order)) for order in itertools.permutations(updates)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_adding_in_pieces_gives_the_bits_of_adding_whole_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (3, PIECE // 2 + 5), "small": (7,), "scalar": (), "empty": (0, 2), "just one": (PIECE,)}
    fold = FedAvg({name: torch.zeros(shape) for name, shape in shapes.items()}, Config())
    expected = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for weight in (7, 123, 3001):
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        tensors["large"] = torch.randn(shapes["large"][::-1], generator=generator).T  # not contiguous
        fold.add(Update(tensors, weight, {}, 1))
        for name, total in expected.items():
            total.add_(tensors[name], alpha=weight)
    for name, mean in fold.means().items():
        assert torch.equal(mean, expected[name] / (7 + 123 + 3001))
