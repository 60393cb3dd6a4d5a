"""Image-text alignment as pure functions: target-sensitive distance, multi-level contrast. Our design after the abstract of TMCA.

Legend: A images, K reports, L tokens, P positions, D channels. Vectors are L2-normalised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = -1e4
"""In the place of a score that is not to count; finite, so that 0 times it is 0."""


def drawn(weights_AP: Tensor, noise_P: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` positions an image, drawn without replacement in proportion to their weights: indices and weights (A, count').

    Gumbel-top-k (Kool et al. 2019, arXiv 1903.06059). The same noise serves all images, so that one case's draw does not depend
    on the others. Weights are 1 at drawn positions, and 0 where fewer positions than `count` have any.

    Args:
        weights_AP: ≥ 0.
        noise_P: uniform in (0, 1).
    """
    gumbel = -(-noise_P.clamp(1e-6, 1 - 1e-6).log()).log()
    index = (weights_AP.clamp_min(1e-12).log() + gumbel).topk(min(count, weights_AP.shape[1]), dim=1).indices
    return index, (weights_AP.gather(1, index) > 0).float()


def word_similarity(positions_APD: Tensor, weights_AP: Tensor, tokens_ALD: Tensor, importance_AL: Tensor, temperature: float) -> Tensor:
    """s(a) = Σ_j w_aj ⟨T_aj, c_aj⟩ with c_aj = norm(Σ_p α_ajp V_ap): (A,) in [-1, 1].

    Every word j looks for its like among the weighted positions of the image: α is a softmax over positions of ⟨T, V⟩ / temperature,
    each position counted `weights` times (0: not at all). Of positions in the target this is similarity to the target, of others to
    the background.

    Args:
        weights_AP: ≥ 0; a row of zeros counts all positions alike (whoever calls drops such a row).
        importance_AL: of words, summing to 1 a report; 0 at padding.
    """
    empty = weights_AP.sum(1, keepdim=True) <= 0
    log_weights = torch.where(empty, torch.ones_like(weights_AP), weights_AP).clamp_min(1e-12).log()
    scores_ALP = tokens_ALD @ positions_APD.transpose(1, 2) / temperature + log_weights[:, None]
    found_ALD = F.normalize(scores_ALP.softmax(-1) @ positions_APD, dim=-1, eps=1e-6)
    return ((found_ALD * tokens_ALD).sum(-1) * importance_AL).sum(-1)


def mean_position(positions_APD: Tensor, weights_AP: Tensor) -> Tensor:
    """The weighted mean of positions as a unit vector: (A, D); 0 for a row of zeros."""
    return F.normalize((weights_AP[..., None] * positions_APD).sum(1), dim=-1, eps=1e-6)


def background(mask_A1hw: Tensor) -> Tensor:
    """Weights of background positions (A, 1, h, w), half of them in a ring of two cells around the target; each half sums to ½.

    Cells that the target's outline crosses are none: as target and background at once, no features could keep them apart.

    Args:
        mask_A1hw: share of each cell that is target, [0, 1].
    """
    outside = (mask_A1hw == 0).to(mask_A1hw.dtype)
    ring = F.max_pool2d(mask_A1hw, 5, stride=1, padding=2) * outside

    def half(weights: Tensor) -> Tensor:
        return 0.5 * weights / weights.sum((1, 2, 3), keepdim=True).clamp_min(1e-6)

    return half(outside) + half(ring)


def soft_targets(own_A: Tensor, same_AK: Tensor, soft: bool) -> Tensor:
    """Y (A, K), rows summing to 1: the own report, and with `soft` every report that says the same, in equal parts.

    Args:
        own_A: (A,) int64, index of each image's own report.
        same_AK: (A, K) bool, reports that say the same.
    """
    own_AK = F.one_hot(own_A, same_AK.shape[1]).to(torch.float32)
    positives = torch.maximum(own_AK, same_AK.float()) if soft else own_AK
    return positives / positives.sum(1, keepdim=True)


def contrast(similarity_AK: Tensor, targets_AK: Tensor, temperature: float, counted_K: Tensor | None = None) -> Tensor:
    """Cross-entropy of softmax(s / temperature) against soft targets (rows sum to 1): (A,), natural logarithm.

    Args:
        counted_K: (K,) bool, what each is held against; all by default. Targets are 0 elsewhere.
    """
    scores = similarity_AK / temperature
    if counted_K is not None:
        scores = scores.masked_fill(~counted_K, NOTHING)
    return -(targets_AK * scores.log_softmax(1)).sum(1)


def likeness(
    texts_AD: Tensor, others_KD: Tensor, same_AK: Tensor, temperature: float, itself: bool, counted_K: Tensor | None = None
) -> Tensor:
    """Contrast of whole reports: those that say the same lie together, the others apart. (A,) ≥ 0; 0 where no other says the same.

    Supervised contrast (Khosla et al. 2020, arXiv 2004.11362, L_out) with unit vectors.

    Args:
        same_AK: (A, K) bool.
        itself: A and K are the same reports; a report is not held against itself.
        counted_K: (K,) bool, what each is held against; all by default.
    """
    scores = texts_AD @ others_KD.T / temperature
    left_out = torch.eye(len(texts_AD), dtype=torch.bool, device=scores.device) if itself else torch.zeros_like(same_AK)
    if counted_K is not None:
        left_out = left_out | ~counted_K
    scores, same_AK = scores.masked_fill(left_out, NOTHING), same_AK & ~left_out
    share = same_AK.float() / same_AK.sum(1, keepdim=True).clamp_min(1)
    return -(share * scores.log_softmax(1)).sum(1)


def margin(target_A: Tensor, background_A: Tensor, gap: float = 0.2) -> Tensor:
    """relu(gap − s⁺ + s⁻): the own target must be nearer to the report than the own background by `gap`: (A,)."""
    return (gap - target_A + background_A).clamp_min(0)


def pooled_cross_entropy(probability_A1hw: Tensor, mask_A1hw: Tensor) -> Tensor:
    """Mean binary cross-entropy of a map in [0, 1] against a mask pooled to its size: (A,).

    Every case's target and background weigh the same, or a map of so few target cells would learn to be empty; a case without
    target has its background alone.
    """
    p = probability_A1hw.float().clamp(1e-5, 1 - 1e-5)
    inside, outside = mask_A1hw * p.log(), (1 - mask_A1hw) * (1 - p).log()
    target, rest = mask_A1hw.sum((1, 2, 3)), (1 - mask_A1hw).sum((1, 2, 3))
    return -0.5 * (inside.sum((1, 2, 3)) / target.clamp_min(1) + outside.sum((1, 2, 3)) / rest.clamp_min(1))
