"""Alignment losses against loops over words and positions, and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tmca_core.losses.alignment import (
    background,
    contrast,
    drawn,
    likeness,
    margin,
    mean_position,
    pooled_cross_entropy,
    soft_targets,
    word_similarity,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_word_similarity(V: Tensor, weights: Tensor, T: Tensor, importance: Tensor, temperature: float) -> Tensor:
    result = torch.zeros(len(T), dtype=torch.float64)
    for a in range(T.shape[0]):
        for j in range(T.shape[1]):
            attention = [float(weights[a, p]) * math.exp(float(V[a, p] @ T[a, j]) / temperature) for p in range(V.shape[1])]
            found = sum((x * V[a, p] for p, x in enumerate(attention)), torch.zeros(V.shape[2], dtype=torch.float64))
            result[a] += importance[a, j] * (found / found.norm() @ T[a, j])
    return result


def test_words_find_their_positions_as_a_loop_does() -> None:
    V, T = unit(3, 10, 5), unit(3, 4, 5, seed=1)
    weights = torch.rand(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights[:, :4] = 0
    importance = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64).expand(3, 4)
    fast = word_similarity(V, weights, T, importance, 0.1)
    torch.testing.assert_close(fast, slow_word_similarity(V, weights, T, importance, 0.1), atol=1e-9, rtol=0)


def test_positions_are_drawn_by_weight_without_replacement() -> None:
    weights = torch.tensor([[0.0, 1, 3, 0, 0, 0], [1.0] * 6])
    first = torch.zeros(6)
    for seed in range(600):
        index, counted = drawn(weights, torch.rand(6, generator=torch.Generator().manual_seed(seed)), 4)
        assert counted.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]] and {int(i) for i in index[0, :2]} == {1, 2}
        assert len(set(index[1].tolist())) == 4
        first[index[0, 0]] += 1
    assert first[2].item() / 600 == pytest.approx(0.75, abs=0.06)


def test_positions_without_weight_do_not_count() -> None:
    V, T, importance = unit(1, 6, 4), unit(1, 3, 4, seed=1), torch.full((1, 3), 1 / 3, dtype=torch.float64)
    weights = torch.tensor([[1.0, 1, 1, 0, 0, 0]], dtype=torch.float64)
    changed = V.clone()
    changed[:, 3:] = unit(1, 3, 4, seed=9)
    a, b = (word_similarity(x, weights, T, importance, 0.1) for x in (V, changed))
    torch.testing.assert_close(a, b, atol=1e-8, rtol=0)


def test_mean_position_by_hand() -> None:
    V = torch.tensor([[[1.0, 0], [0, 1.0]], [[1.0, 0], [0, 1.0]]])
    result = mean_position(V, torch.tensor([[0.75, 0.25], [0.0, 0.0]]))
    torch.testing.assert_close(result, torch.tensor([[3 / math.sqrt(10), 1 / math.sqrt(10)], [0.0, 0.0]]))


def test_background_is_half_ring() -> None:
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 5:7, 5:7] = 1
    weights = background(mask)[0, 0]
    assert weights[5:7, 5:7].sum() == 0
    assert weights.sum().item() == pytest.approx(1.0)
    ring = weights[3:9, 3:9].sum()  # all of the ring, and 32 of the 140 background cells
    assert ring.item() == pytest.approx(0.5 + 0.5 * 32 / 140)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_features_that_tell_the_target_apart_meet_the_margin(stride: int) -> None:
    """Cells that the outline crosses are target: counted as background too, no features could keep them apart."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = F.avg_pool2d(((y - 27) ** 2 + (x - 35) ** 2 < 19**2).float()[None, None], stride)
    assert ((mask > 0) & (mask < 1)).any()
    around = background(mask)
    assert around.sum().item() == pytest.approx(1.0) and not ((around > 0) & (mask > 0)).any()
    V = F.one_hot((mask > 0).flatten(1).long(), 2).float()  # (1, P, 2)
    words, importance = torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 1)
    near, far = (
        word_similarity(V.gather(1, index[..., None].expand(-1, -1, 2)), counted, words, importance, 0.1)
        for index, counted in (drawn(where.flatten(1), torch.rand(V.shape[1]), 64) for where in (mask, around))
    )
    assert margin(near, far).item() == 0


def test_a_mask_that_fills_the_image_has_no_background() -> None:
    assert background(torch.ones(1, 1, 8, 8)).sum() == 0


def test_soft_targets_share_among_reports_that_say_the_same() -> None:
    own, same = torch.tensor([0, 1]), torch.tensor([[False, False, True], [False, True, False]])
    assert soft_targets(own, same, soft=True).tolist() == [[0.5, 0, 0.5], [0, 1, 0]]
    assert soft_targets(own, same, soft=False).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_contrast_by_hand() -> None:
    scores = torch.tensor([[0.2, 0.1]])
    # softmax(2, 1): 1/(1 + e^-1)
    assert contrast(scores, torch.tensor([[1.0, 0]]), 0.1).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert contrast(scores, torch.tensor([[0.5, 0.5]]), 0.1).item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.5, abs=1e-6)


def test_likeness_pulls_together_what_says_the_same() -> None:
    reports = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]])
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    # The first and the last are each other's only like: softmax of (1, 0) / 0.5 over the two others.
    expected = math.log(1 + math.exp(-2))
    assert likeness(reports, reports, same, 0.5, itself=True).tolist() == pytest.approx([expected, 0, expected], abs=1e-6)
    # Held against others, nothing is left out: two like it and one not.
    one = likeness(reports[:1], reports, same[:1], 0.5, itself=False).item()
    assert one == pytest.approx(math.log(2 + math.exp(-2)), abs=1e-6)


def test_what_does_not_count_is_neither_positive_nor_negative() -> None:
    scores, counted = torch.tensor([[0.2, 0.1, 0.9]]), torch.tensor([True, True, False])
    own, same = torch.tensor([0]), torch.tensor([[True, False, True]])
    targets = soft_targets(own, same & counted, soft=True)
    assert targets.tolist() == [[1, 0, 0]]
    assert torch.equal(contrast(scores, targets, 0.1, counted), contrast(scores[:, :2], targets[:, :2], 0.1))
    reports = F.normalize(torch.tensor([[1.0, 0], [0.6, 0.8], [1.0, 0]]), dim=-1)
    alike = torch.ones(3, 3, dtype=torch.bool)
    among = likeness(reports, reports, alike, 0.5, itself=True, counted_K=counted)
    assert torch.equal(among[:2], likeness(reports[:2], reports[:2], alike[:2, :2], 0.5, itself=True))
    assert among.isfinite().all()


def test_margin() -> None:
    assert margin(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0.1, 0.4, 0.7])).tolist() == pytest.approx([0, 0.1, 0.4])


def test_pooled_cross_entropy_weighs_target_and_background_alike() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, :2, :2] = 1
    half = torch.full((2, 1, 4, 4), 0.5)
    assert pooled_cross_entropy(half, mask).tolist() == pytest.approx([math.log(2), 0.5 * math.log(2)])
    exact = pooled_cross_entropy(mask, mask)
    assert exact.max() < 2e-5  # 0 and 1 are clamped, not infinite


@pytest.mark.parametrize("weights", [torch.zeros(2, 6), torch.ones(2, 6)])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_to_align_leaves_values_and_gradients_finite(weights: Tensor, scale: float) -> None:
    V = F.normalize(scale * torch.randn(2, 6, 4), dim=-1, eps=1e-6).requires_grad_()
    T = F.normalize(scale * torch.randn(2, 3, 4), dim=-1, eps=1e-6).requires_grad_()
    importance = torch.ones(2, 3) / 3
    value = word_similarity(V, weights, T, importance, 0.1).sum() + mean_position(V, weights).sum()
    value.backward()
    assert value.isfinite() and V.grad is not None and V.grad.isfinite().all() and T.grad is not None and T.grad.isfinite().all()
