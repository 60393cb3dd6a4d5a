"""Entropic optimal transport in the log domain, semi-relaxed, and the loss of two plans. Our design after the abstract of SSA.

Legend: B cases, N sources, M targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 0.05
ITERATIONS = 6
"""With ρ = 2 ε each iteration shrinks the error of the potentials to two thirds at most, and the hard marginal holds exactly after any."""
DIFFERENTIATED = 3
"""The last iterations carry gradients; the earlier ones only find the place. The difference is below the regularisation's own bias."""


def semi_relaxed_plan(cost_BNM: Tensor, source_BN: Tensor, target_BM: Tensor, relaxation: float, epsilon: float = EPSILON) -> Tensor:
    """Plan π (B, N, M) that keeps the source marginal exactly and the target marginal by a penalty `relaxation` · KL.

    Minimises ⟨π, C⟩ + ε KL(π | a ⊗ b) + ρ KL(πᵀ1 | b) subject to π1 = a by Sinkhorn iterations on potentials
    (Chizat et al. 2018, "Scaling algorithms for unbalanced optimal transport problems"), in float32 whatever the input.

    Args:
        cost_BNM: finite, of any float type.
        source_BN: marginal a ≥ 0, summing to 1; where it is 0 (padding) nothing is sent.
        target_BM: reference marginal b ≥ 0, summing to 1; where it is 0 nothing arrives.
        relaxation: ρ > 0; large values tie the target marginal to b.

    Returns:
        float32; each row sums to its source mass.
    """
    with torch.autocast(cost_BNM.device.type, enabled=False):
        cost = cost_BNM.float() / epsilon
        log_a, log_b = source_BN.float().log(), target_BM.float().log()  # -inf where there is no mass
        share = relaxation / (relaxation + epsilon)
        g = torch.zeros_like(log_b)
        for iteration in range(ITERATIONS):
            C = cost if iteration >= ITERATIONS - DIFFERENTIATED else cost.detach()
            f = -torch.logsumexp(log_b[:, None] + g[:, None] - C, 2)
            g = -share * torch.logsumexp(log_a[:, :, None] + f[:, :, None] - C, 1)
        # Each row normalised by itself: the source marginal holds to the last bit, and a row without mass is 0, not NaN.
        return source_BN.float()[..., None] * (log_b[:, None] + g[:, None] - cost).softmax(2)


def transport_cost(plan_BNM: Tensor, cost_BNM: Tensor) -> Tensor:
    """⟨π, C⟩: (B,)."""
    return (plan_BNM * cost_BNM.float()).sum((1, 2))


def asymmetry(one_BNM: Tensor, other_BNM: Tensor) -> Tensor:
    """½ Σ |π/|π| − π'/|π'|| in [0, 1]: (B,), the total variation between two plans of the same shape, masses normalised."""

    def normalised(plan: Tensor) -> Tensor:
        return plan / plan.sum((1, 2), keepdim=True).clamp_min(1e-12)

    return 0.5 * (normalised(one_BNM) - normalised(other_BNM)).abs().sum((1, 2))


def misplaced(arrival_BP: Tensor, inside_BP: Tensor) -> Tensor:
    """−log of the share of mass that arrives inside the target: (B,) ≥ 0; 0 for a case without target.

    Args:
        arrival_BP: mass at each patch, ≥ 0.
        inside_BP: 1 at patches that touch the target, else 0.
    """
    share = (arrival_BP * inside_BP).sum(1) / arrival_BP.sum(1).clamp_min(1e-12)
    # The bound is below any share that costs in [0, 2] leave: where it holds there is no gradient.
    return -(share.clamp_min(1e-30)).log() * (inside_BP.sum(1) > 0)
