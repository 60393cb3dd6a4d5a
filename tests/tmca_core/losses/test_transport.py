"""Transport plans against a loop in double precision, their marginals, and what must never overflow."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tmca_core.losses import transport
from tmca_core.losses.transport import asymmetry, misplaced, semi_relaxed_plan, transport_cost


def slow_plan(cost: Tensor, a: Tensor, b: Tensor, relaxation: float, epsilon: float, iterations: int) -> Tensor:
    """One case by scalars: u, v scalings of the kernel a b exp(−C/ε) (not in the log domain)."""
    n, m = cost.shape
    kernel = [[float(a[i] * b[j]) * math.exp(-float(cost[i, j]) / epsilon) for j in range(m)] for i in range(n)]
    u, v = [1.0] * n, [1.0] * m
    for _ in range(iterations):
        u = [float(a[i]) / s if (s := sum(kernel[i][j] * v[j] for j in range(m))) else 0.0 for i in range(n)]
        arriving = [sum(kernel[i][j] * u[i] for i in range(n)) for j in range(m)]
        v = [(float(b[j]) / s) ** (relaxation / (relaxation + epsilon)) if (s := arriving[j]) else 0.0 for j in range(m)]
    u = [float(a[i]) / s if (s := sum(kernel[i][j] * v[j] for j in range(m))) else 0.0 for i in range(n)]
    return torch.tensor([[u[i] * kernel[i][j] * v[j] for j in range(m)] for i in range(n)])


def marginal(size: int, padded: int = 0) -> Tensor:
    weights = torch.cat([torch.rand(size - padded) + 0.1, torch.zeros(padded)])
    return weights / weights.sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 5), st.integers(0, 2), st.integers(0, 2), st.integers(0, 1000))
def test_equals_the_loop(n: int, m: int, relaxation: float, pad_n: int, pad_m: int, seed: int) -> None:
    torch.manual_seed(seed)
    a, b = marginal(n + pad_n, pad_n), marginal(m + pad_m, pad_m)
    cost = 2 * torch.rand(n + pad_n, m + pad_m)
    fast = semi_relaxed_plan(cost[None], a[None], b[None], relaxation, epsilon=0.2)[0]
    torch.testing.assert_close(fast, slow_plan(cost, a, b, relaxation, 0.2, transport.ITERATIONS), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(fast.sum(1), a)
    assert (fast[n:] == 0).all() and (fast[:, m:] == 0).all()


def test_relaxation_is_the_hold_on_the_target_marginal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ITERATIONS", 200)  # the nearer to balanced, the slower
    torch.manual_seed(0)
    cost, a, b = 2 * torch.rand(1, 5, 7), marginal(5)[None], marginal(7)[None]
    off = [(semi_relaxed_plan(cost, a, b, rho).sum(1) - b).abs().sum().item() for rho in (0.01, 0.1, 1.0, 100.0)]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.05 < off[0]  # nearly balanced at one end, free at the other


def test_balanced_transport_is_its_own_transpose_and_semi_relaxed_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cost, a, b = 2 * torch.rand(1, 5, 7), marginal(5)[None], marginal(7)[None]

    monkeypatch.setattr(transport, "ITERATIONS", 200)

    def both(rho: float) -> float:
        there, back = semi_relaxed_plan(cost, a, b, rho), semi_relaxed_plan(cost.transpose(1, 2), b, a, rho)
        return asymmetry(there, back.transpose(1, 2)).item()

    assert both(1000.0) < 0.02 < 0.1 < both(0.05)


def test_asymmetry_and_cost_by_hand() -> None:
    one, other = torch.tensor([[[0.5, 0], [0, 0.5]]]), torch.tensor([[[0, 1.0], [1.0, 0]]])
    assert asymmetry(one, one).item() == 0 and asymmetry(one, other).item() == 1  # the other's mass is 2: normalised
    assert transport_cost(one, torch.tensor([[[1.0, 9], [9, 3.0]]])).item() == 2


def test_misplaced_by_hand() -> None:
    arrival, inside = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 0], [0, 0]])
    assert misplaced(arrival, inside).tolist() == pytest.approx([math.log(4 / 3), math.log(4), 0])


@pytest.mark.parametrize("gap", [0.1, 0.8, 2.0])
def test_mass_that_all_arrives_elsewhere_is_drawn_back(gap: float) -> None:
    """A small target that every word thinks far off gets less than a ten-thousandth of the mass; its costs must fall all the same."""
    inside = (torch.arange(196) < 2).float()[None]
    cost = (gap * inside)[:, None].expand(1, 3, 196).clone().requires_grad_()
    plan = semi_relaxed_plan(cost, marginal(3)[None], marginal(196)[None], 0.1)
    value = misplaced(plan.sum(1), inside)
    value.sum().backward()
    assert cost.grad is not None and value.isfinite().all() and cost.grad.isfinite().all()
    assert (cost.grad * inside[:, None]).sum() > 1 > -1 > (cost.grad * (1 - inside)[:, None]).sum()


def test_the_last_iterations_give_nearly_the_whole_gradient() -> None:
    torch.manual_seed(0)
    a, b, weight = marginal(6)[None], marginal(8)[None], torch.randn(1, 6, 8)
    gradients = []
    for differentiated in (transport.DIFFERENTIATED, transport.ITERATIONS):
        cost = (2 * torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(1))).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "DIFFERENTIATED", differentiated)
            (semi_relaxed_plan(cost, a, b, 0.1) * weight).sum().backward()
        assert cost.grad is not None
        gradients.append(cost.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("words", [1, 326])
def test_half_precision_never_overflows(dtype: torch.dtype, words: int) -> None:
    torch.manual_seed(0)
    cost = (2 * torch.rand(2, 196, words)).to(dtype).requires_grad_()
    a, b = torch.full((2, 196), 1 / 196), torch.full((2, words), 1 / words)
    with torch.autocast("cpu", dtype=dtype):
        plan = semi_relaxed_plan(cost, a, b, 0.1)
        back = semi_relaxed_plan(cost.transpose(1, 2), b, a, 0.1)
    (transport_cost(plan, cost) + asymmetry(plan, back.transpose(1, 2))).sum().backward()
    assert plan.dtype == torch.float32 and plan.isfinite().all() and back.isfinite().all()
    assert cost.grad is not None and cost.grad.isfinite().all()
