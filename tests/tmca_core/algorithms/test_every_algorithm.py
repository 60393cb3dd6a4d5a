"""What every registered algorithm must do; a new one inherits these tests by registering itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tmca_core.algorithms import ALGORITHMS, EXTRA, Fold
from tmca_core.config import Config, parse
from tmca_core.errors import FederationError
from tmca_core.messages import Update, check_update, spec_of
from tmca_core.networks import build_network, roles, shared_state

NAMES = ALGORITHMS.names()
ADAPTIVE = {"fedadam", "fedyogi", "fedadagrad"}
"""Their step is no mean of the updates."""
METRICS = {"loss": 1.0, "steps": 1.0, "cases": 1.0, "seconds": 0.1}
LIKE = {"a": torch.zeros(3), "b/c": torch.zeros(2, 2)}

every = pytest.mark.parametrize("name", NAMES)


def config(name: str, **values: Any) -> Config:
    """Whatever the test's updates are, norm-bound shall not bind."""
    return parse(
        {"federation.algorithm": name, "federation.norm_bound": 1e6} | {f"federation.{key}": value for key, value in values.items()}
    )


def fold_of(name: str, **values: Any) -> Fold:
    return ALGORITHMS[name].fold(LIKE, config(name, **values))


def update(name: str, values: list[float], weight: int) -> Update:
    """An update of 7 shared values; extras are the values reversed."""
    tensors: dict[str, Tensor] = {}
    for tensor, (shape, _) in ALGORITHMS[name].sent(spec_of(LIKE)).items():
        flat = values[::-1] if tensor.startswith(EXTRA) else values
        tensors[tensor] = torch.tensor(flat[:3] if tensor.endswith("a") else flat[3:]).reshape(shape)
    return Update(tensors, weight, METRICS, 1)


def drawn(name: str, round: int, sites: int = 5) -> list[Update]:
    generator = torch.Generator().manual_seed(round)
    return [update(name, torch.randn(7, generator=generator).tolist(), 10 + 7 * site) for site in range(sites)]


def start() -> dict[str, Tensor]:
    return {"a": torch.tensor([0.1, -2.0, 30.0]), "b/c": torch.tensor([[0.0, 1.0], [-1.5, 0.25]])}


def fold_round(fold: Fold, weights: dict[str, Tensor], updates: list[Update], total: int = 0) -> None:
    fold.begin(total or sum(one.weight for one in updates))
    for one in updates:
        fold.add(one)
    fold.finish(weights)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the server's half --------------------------------------------------------------------------
@pytest.mark.parametrize("spill", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ADAPTIVE])
def test_one_site_gets_back_what_it_trained(name: str, spill: bool) -> None:
    values, weights = [0.5, -0.25, 1.0, 0.125, 0.0, 3.0, -1.0], start()
    fold_round(fold_of(name, server_learning_rate=1.0, spill=spill), weights, [update(name, values, 7)])
    one = update(name, values, 7).tensors
    assert same(weights, {tensor: start()[tensor] + one[tensor] for tensor in LIKE})


@every
def test_half_a_step_is_half_as_far(name: str) -> None:
    whole, half = start(), start()
    fold_round(fold_of(name, server_learning_rate=1.0), whole, drawn(name, 1))
    fold_round(fold_of(name, server_learning_rate=0.5), half, drawn(name, 1))
    for tensor, begin in start().items():
        torch.testing.assert_close(half[tensor] - begin, (whole[tensor] - begin) / 2, rtol=1e-4, atol=1e-5)
        assert (whole[tensor] - begin).abs().max() > 1e-3


sites = st.lists(
    st.tuples(st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=7, max_size=7), st.integers(1, 127)), min_size=1, max_size=7
)


@every
@settings(max_examples=25, deadline=None)
@given(given=sites, random=st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_show(name: str, given: list[tuple[list[float], int]], random: random.Random) -> None:
    # Quarters make ties and equal updates frequent, which is where an order could show.
    updates = [update(name, values, weight) for values, weight in given]
    shuffled = list(updates)
    random.shuffle(shuffled)
    first, second = start(), start()
    for weights, order in ((first, updates), (second, shuffled)):
        fold_round(fold_of(name), weights, order)
    for tensor in first:
        torch.testing.assert_close(first[tensor], second[tensor], rtol=0, atol=1e-6)
    if name == "fedavg":
        assert same(first, second)


@every
def test_state_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole, halves = fold_of(name), fold_of(name)
    weights, resumed = start(), start()
    for round in (1, 2, 3, 4):
        fold_round(whole, weights, drawn(name, round), total=500)
    for round in (1, 2):
        fold_round(halves, resumed, drawn(name, round), total=500)
    state = halves.state()
    assert all(tensor.device.type == "cpu" for tensor in state.values())
    save_file(state, str(tmp_path / "fold"))
    fresh = fold_of(name)
    fresh.restore(load_file(str(tmp_path / "fold")))
    assert same(fresh.state(), state)
    assert same(fresh.broadcast(), halves.broadcast())
    for round in (3, 4):
        fold_round(fresh, resumed, drawn(name, round), total=500)
    assert same(weights, resumed)
    assert same(whole.state(), fresh.state())


@every
def test_a_fold_starts_over(name: str) -> None:
    # A second round of zeros must not feel the first one's updates, other than through what lasts.
    fold, again = fold_of(name), fold_of(name)
    fold_round(fold, start(), drawn(name, 1))
    again.restore(fold.state())
    first, second = start(), start()
    fold_round(fold, first, drawn(name, 2, sites=3))
    fold_round(again, second, drawn(name, 2, sites=3))
    assert same(first, second)


@every
def test_what_an_abandoned_round_left_is_dropped(name: str) -> None:
    fold, weights, expected = fold_of(name), start(), start()
    fold.begin(100)
    for one in drawn(name, 9):
        fold.add(one)
    fold_round(fold, weights, drawn(name, 1))
    fold_round(fold_of(name), expected, drawn(name, 1))
    assert same(weights, expected)


@every
def test_tensors_may_change_after_they_were_added(name: str) -> None:
    fold, weights, expected = fold_of(name), start(), start()
    fold.begin(150)
    for one in drawn(name, 1):
        fold.add(one)
        for tensor in one.tensors.values():
            tensor.fill_(1e9)
    fold.finish(weights)
    fold_round(fold_of(name), expected, drawn(name, 1), total=150)
    assert same(weights, expected)


@every
def test_nothing_folded_is_an_error(name: str) -> None:
    fold, weights = fold_of(name), start()
    fold.begin(10)
    with pytest.raises(FederationError, match="no update"):
        fold.finish(weights)
    fold_round(fold, weights, drawn(name, 1))
    with pytest.raises(FederationError, match="no update"):
        fold.finish(weights)


@every
def test_zero_total_weight_is_an_error_and_changes_nothing(name: str) -> None:
    fold, weights = fold_of(name), start()
    fold.begin(0)
    fold.add(update(name, [1.0] * 7, 0))
    with pytest.raises(FederationError):
        fold.finish(weights)
    assert same(weights, start())


# --- the site's half ----------------------------------------------------------------------------
class Slope(nn.Module):
    """A loss whose gradient is (1, 2, 3) and 4·b/c; `own` is not shared."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(start()["a"].clone())
        self.register_parameter("b/c", nn.Parameter(start()["b/c"].clone()))
        self.own = nn.Parameter(torch.ones(2))

    def forward(self) -> Tensor:
        return (self.a @ torch.tensor([1.0, 2.0, 3.0])) + 2 * self.get_parameter("b/c").square().sum() + self.own.sum()


@every
def test_a_site_sends_what_the_algorithm_announces(name: str) -> None:
    algorithm = ALGORITHMS[name]
    rule, network = algorithm.local(config(name)), Slope()
    extras = {tensor.removeprefix(EXTRA): value for tensor, value in algorithm.fold(LIKE, config(name)).broadcast().items()}
    rule.start(network, start(), extras, {})
    for step in range(3):
        network.zero_grad()
        network().backward()  # type: ignore[no-untyped-call]
        rule.after_backward(step, 3)
    told = rule.end()
    tensors = start() | {f"{EXTRA}{tensor}": value for tensor, value in told.sent.items()}
    check_update(Update(tensors, 1, METRICS, 1), algorithm.sent(spec_of(LIKE)), 1)
    broadcast = algorithm.fold(LIKE, config(name)).broadcast()
    assert spec_of(start() | broadcast) == algorithm.sent(spec_of(LIKE))
    assert algorithm.memory


@every
def test_both_ends_agree_on_what_stays(name: str) -> None:
    small = parse({"network.width": 16, "network.heads": 2, "data.image_size": 32, "federation.algorithm": name})
    network = build_network(small)
    personal = {tensor for tensor, role in roles(network).items() if role == "personal"}
    assert personal == ALGORITHMS[name].personal(network, small)
    assert personal.isdisjoint(shared_state(network))
    assert bool(personal) == (name in {"fedbn", "fedper", "fedrep"})


def test_the_document_has_them_all() -> None:
    text = (Path(__file__).parents[3] / "docs" / "algorithms.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in text] == []
    fields = type(Config().federation).model_fields
    named = {field for field in fields if f"federation.{field}" in text}
    assert {"prox_mu", "server_learning_rate", "server_momentum", "beta2", "tau", "trim", "byzantine", "norm_bound"} <= named
    assert {"personal", "personal_share", "ditto_lambda", "spill"} <= named
