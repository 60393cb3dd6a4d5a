"""SCAFFOLD against its paper: option II of the variates, and the optimum that FedAvg with many local steps misses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tmca_core.algorithms import ALGORITHMS, EXTRA, Fold
from tmca_core.config import parse
from tmca_core.messages import Update


class Quadratic(nn.Module):
    """½ ‖A w − b‖²."""

    def __init__(self, matrix: Tensor, target: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(matrix.shape[1], dtype=matrix.dtype))
        self.matrix, self.target = matrix, target

    def forward(self) -> Tensor:
        return 0.5 * (self.matrix @ self.w - self.target).square().sum()


def quadratic(seed: int) -> Quadratic:
    generator = torch.Generator().manual_seed(seed)
    return Quadratic(torch.randn(6, 3, generator=generator).double() / 2, torch.randn(6, generator=generator).double())


def optimum(sites: list[Quadratic], weights: list[int]) -> Tensor:
    """Normal equations of Σ n_k ½ ‖A_k w − b_k‖²."""
    left = sum(n * site.matrix.T @ site.matrix for site, n in zip(sites, weights, strict=True))
    right = sum(n * site.matrix.T @ site.target for site, n in zip(sites, weights, strict=True))
    return torch.linalg.solve(left, right)


def local_round(
    name: str, site: Quadratic, received: Tensor, extras: dict[str, Tensor], kept: dict[str, Tensor], steps: int, rate: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Plain SGD from `received`: (tensors of the update, what the site keeps)."""
    rule = ALGORITHMS[name].local(parse({"federation.algorithm": name}))
    with torch.no_grad():
        site.w.copy_(received)
    optimizer = torch.optim.SGD(site.parameters(), lr=rate)
    rule.start(site, {"w": received}, extras, kept)
    for step in range(steps):
        optimizer.zero_grad()
        site().backward()  # type: ignore[no-untyped-call]
        rule.after_backward(step, steps)
        optimizer.step()
    told = rule.end()
    return {"w": site.w.detach() - received} | {f"{EXTRA}{key}": value for key, value in told.sent.items()}, told.kept


def test_the_variate_is_that_of_option_two() -> None:
    site, steps, rate = quadratic(0), 7, 0.05
    received = torch.tensor([0.3, -1.0, 2.0]).double()
    c, own = torch.tensor([0.5, 0.1, -0.2]).double(), torch.tensor([-0.3, 0.2, 0.4]).double()
    tensors, kept = local_round("scaffold", site, received, {"w": c}, {"w": own}, steps, rate)
    expected = own - c - tensors["w"] / (steps * rate)
    torch.testing.assert_close(kept["w"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tensors[f"{EXTRA}w"], expected - own, rtol=1e-12, atol=1e-12)
    # Its first step, by hand.
    moved, _ = local_round("scaffold", site, received, {"w": c}, {"w": own}, 1, rate)
    gradient = site.matrix.T @ (site.matrix @ received - site.target)
    torch.testing.assert_close(moved["w"], -rate * (gradient - own + c), rtol=1e-12, atol=1e-12)


def test_a_parameter_without_a_gradient_is_corrected_too() -> None:
    network = nn.ParameterDict({"used": nn.Parameter(torch.ones(2)), "idle": nn.Parameter(torch.ones(2))})
    received = {name: parameter.detach().clone() for name, parameter in network.items()}
    rule = ALGORITHMS["scaffold"].local(parse({}))
    variates = {"used": torch.tensor([1.0, 2.0]), "idle": torch.tensor([3.0, 4.0])}
    rule.start(network, received, variates, {"used": torch.ones(2), "idle": torch.ones(2)})
    network["used"].sum().backward()
    rule.after_backward(0, 1)
    assert torch.equal(network["used"].grad, torch.tensor([1.0, 2.0]))  # 1 − 1 + c
    assert torch.equal(network["idle"].grad, torch.tensor([2.0, 3.0]))  # 0 − 1 + c
    assert torch.equal(rule.end().kept["idle"], torch.zeros(2))


def federation(name: str, sites: list[Quadratic], weights: list[int], rounds: int, absent: bool = False) -> Tensor:
    like = {"w": torch.zeros(3, dtype=torch.float64)}
    fold: Fold = ALGORITHMS[name].fold(like, parse({"federation.algorithm": name}))
    kept: list[dict[str, Tensor]] = [{} for _ in sites]
    for round in range(rounds):
        fold.begin(sum(weights))
        extras = {key.removeprefix(EXTRA): value.clone() for key, value in fold.broadcast().items()}
        for index, site in enumerate(sites):
            if absent and (index + round) % 3 == 0:
                continue
            tensors, kept[index] = local_round(name, site, like["w"].clone(), extras, kept[index], 20, 0.05)
            fold.add(Update(tensors, weights[index], {}, 1))
        fold.finish(like)
    if name == "scaffold":
        mean = sum(n * own["w"] for n, own in zip(weights, kept, strict=True)) / sum(weights)
        torch.testing.assert_close(fold.broadcast()[f"{EXTRA}w"], mean, rtol=0, atol=1e-9)
    return like["w"]


@pytest.mark.parametrize("absent", [False, True])
def test_it_finds_the_optimum_that_fedavg_misses(absent: bool) -> None:
    sites, weights = [quadratic(seed) for seed in range(3)], [50, 10, 25]
    best = optimum(sites, weights)
    assert (federation("fedavg", sites, weights, 200) - best).norm() > 0.03
    found = federation("scaffold", sites, weights, 600 if absent else 200, absent)
    assert (found - best).norm() < 1e-5


def test_the_variate_stays_the_weighted_mean_when_sites_come_and_go() -> None:
    like = {"w": torch.zeros(1, dtype=torch.float64)}
    fold = ALGORITHMS["scaffold"].fold(like, parse({}))

    def round(total: int, *changes: tuple[int, float]) -> float:
        """A round among sites that weigh `total`, in which some of (weight, Δc_k) answer; gives c."""
        fold.begin(total)
        for weight, change in changes:
            fold.add(Update({"w": torch.zeros(1).double(), f"{EXTRA}w": torch.tensor([change]).double()}, weight, {}, 1))
        fold.finish(like)
        return float(fold.broadcast()[f"{EXTRA}w"])

    assert round(40, (30, 2.0), (10, 4.0)) == pytest.approx((30 * 2 + 10 * 4) / 40)
    # A third comes, of weight 60, with c_k = 0 so far; then with 1.
    assert round(100, (30, 0.0)) == pytest.approx((30 * 2 + 10 * 4) / 100)
    assert round(100, (60, 1.0)) == pytest.approx((30 * 2 + 10 * 4 + 60) / 100)
    # It is away: its variate still counts, and so does its weight.
    again = ALGORITHMS["scaffold"].fold(like, parse({}))
    again.restore(fold.state())
    fold = again
    assert round(40, (10, 1.0)) == pytest.approx((30 * 2 + 10 * 5 + 60) / 100)
