import math

import torch

from tmca_core.networks.attention import Attention, TextGuidedBlock, position_features


@torch.no_grad()
def loop_attention(layer: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Slow oracle: one query, one head, one valid key at a time."""
    q, k, v = layer.query(query), layer.key(key), layer.value(value)
    size = q.shape[-1] // layer.heads
    out = torch.zeros_like(q)
    for b in range(len(q)):
        for n in range(q.shape[1]):
            for h in range(layer.heads):
                part = slice(h * size, (h + 1) * size)
                valid = [j for j in range(k.shape[1]) if mask[b, j]]
                scores = [math.exp(float(q[b, n, part] @ k[b, j, part]) / math.sqrt(size)) for j in valid]
                for j, score in zip(valid, scores, strict=True):
                    out[b, n, part] += score / sum(scores) * v[b, j, part]
    return layer.out(out)


def test_attention_equals_the_loop_and_padding_carries_nothing() -> None:
    torch.manual_seed(0)
    layer = Attention(16, 12, heads=2)
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]).bool()
    fast = layer(query, memory, memory, mask)
    assert torch.allclose(fast.detach(), loop_attention(layer, query, memory, memory, mask), atol=1e-5)
    memory[~mask] = 1e3
    assert torch.equal(layer(query, memory, memory, mask), fast)


def test_a_report_without_a_valid_token_changes_nothing_and_is_finite() -> None:
    layer = Attention(16, 12, heads=2)
    mask = torch.tensor([[False, False], [True, False]])
    out = layer(torch.randn(2, 3, 16), torch.randn(2, 2, 12), torch.randn(2, 2, 12), mask)
    out.sum().backward()
    assert torch.equal(out[0], torch.zeros(3, 16)) and torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_positions_tell_left_from_right_at_any_size() -> None:
    small, large = (position_features(n, n, 4, torch.device("cpu"), torch.float32).view(n, n, -1) for n in (8, 16))
    assert small.shape == (8, 8, 16)
    assert (small[0, 0] - small[0, -1]).abs().max() > 0.5
    pooled = large.view(8, 2, 8, 2, 16).mean((1, 3))
    assert (pooled[..., :2] - small[..., :2]).abs().max() < 0.05  # lowest octave: same place, same value


def test_block_keeps_the_shape_for_any_text_length() -> None:
    block = TextGuidedBlock(16, 12, heads=2, self_attention=True)
    for length in (1, 326):
        assert block(torch.randn(1, 16, 4, 6), torch.randn(1, length, 12), torch.ones(1, length).bool()).shape == (1, 16, 4, 6)
