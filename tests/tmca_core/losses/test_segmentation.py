import math

import pytest
import torch

from tmca_core.losses import LOSSES
from tmca_core.losses.segmentation import cross_entropy, dice_cross_entropy, soft_dice


def test_values_computed_by_hand() -> None:
    logits = torch.zeros(1, 1, 2, 2)  # p = 0.5 everywhere
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # overlap 0.5; 1 - (2*0.5 + 1) / (2 + 1 + 1) = 0.5
    assert soft_dice(logits, mask).item() == pytest.approx(0.5)
    assert cross_entropy(logits, mask).item() == pytest.approx(math.log(2))


def test_several_targets_by_hand_each_by_itself_then_their_mean() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = -80.0  # p = 0
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 0, 0, 0] = masks[0, 1, 0, 0] = masks[0, 1, 1, 1] = 1
    # first as above: 0.5; second: 1 - (0 + 1) / (0 + 2 + 1) = 2/3. All pixels in one sum would give 1 - (2*0.5 + 1) / (2 + 3 + 1) = 2/3.
    assert soft_dice(logits, masks).item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    # first log 2 a pixel; second 80 at two of four pixels, 0 at the others
    assert cross_entropy(logits, masks).item() == pytest.approx((math.log(2) + 40) / 2)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_loss_of_several_targets_is_the_mean_of_the_loss_of_each(channels: int) -> None:
    torch.manual_seed(2)
    logits, masks = torch.randn(3, channels, 8, 8), (torch.rand(3, channels, 8, 8) > 0.6).float()
    slow = torch.stack([dice_cross_entropy(logits[:, k : k + 1], masks[:, k : k + 1]) for k in range(channels)]).mean(0)
    assert torch.allclose(dice_cross_entropy(logits, masks), slow, atol=1e-6)
    with pytest.raises(ValueError, match="one channel a target"):
        soft_dice(logits[:, :1], torch.zeros(3, channels + 1, 8, 8))


def test_a_perfect_mask_costs_next_to_nothing() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 4:12] = 1
    assert dice_cross_entropy(40 * mask - 20, mask).max().item() < 1e-5


@pytest.mark.parametrize("value", [-80.0, 0.0, 80.0])
@pytest.mark.parametrize("mask_value", [0.0, 1.0])
def test_empty_full_and_extreme_cases_stay_finite(value: float, mask_value: float) -> None:
    logits = torch.full((2, 1, 8, 8), value, requires_grad=True)
    loss = dice_cross_entropy(logits, torch.full((2, 1, 8, 8), mask_value)).sum()
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES.names())
def test_the_declaration_decomposable_is_measured(name: str) -> None:
    """Changing one case must leave the losses of all others untouched, to the bit."""
    loss = LOSSES[name]()
    torch.manual_seed(0)
    logits, masks = torch.randn(4, 1, 16, 16), (torch.rand(4, 1, 16, 16) > 0.7).float()
    before = loss.per_case(logits, masks)
    logits[2] = 9 * torch.randn(1, 16, 16)
    masks[2] = 1 - masks[2]
    after = loss.per_case(logits, masks)
    untouched = torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])
    assert untouched == loss.decomposable
    alone = torch.cat([loss.per_case(logits[i : i + 1], masks[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, after, atol=1e-6) == loss.decomposable


def test_agrees_with_monai() -> None:
    from monai.losses import DiceLoss

    torch.manual_seed(1)
    logits, masks = torch.randn(3, 1, 32, 32), (torch.rand(3, 1, 32, 32) > 0.8).float()
    theirs = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")(logits, masks).flatten()
    assert torch.allclose(soft_dice(logits, masks), theirs, atol=1e-6)
