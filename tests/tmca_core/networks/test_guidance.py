"""Where each kind of zone prior lies, by hand: zones are LU LM LL RU RM RL of the patient, whose left is on the image's right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tmca_core.networks.guidance import SPREAD, Prior, ZonePrior

ZONES = torch.eye(6)
CERTAIN = torch.ones(6)


def prior(kind: Prior, height: int = 100, width: int = 100) -> Tensor:
    """G (6, height, width) of each zone by itself."""
    return ZonePrior(kind)(ZONES, CERTAIN, height, width)[:, 0].detach()


def test_centres_are_those_fitted_to_qata_with_the_image_s_sides_named_as_the_patient_s() -> None:
    """The fit has image sides: its left upper zone, at (.33, .31), is the patient's right."""
    fitted = {"RU": (0.33, 0.31), "RM": (0.30, 0.48), "RL": (0.28, 0.58), "LU": (0.67, 0.29), "LM": (0.70, 0.48), "LL": (0.72, 0.58)}
    for one, zone in zip(prior("fixed"), ("LU", "LM", "LL", "RU", "RM", "RL"), strict=True):
        y, x = divmod(int(one.argmax()), 100)
        assert ((x + 0.5) / 100, (y + 0.5) / 100) == pytest.approx(fitted[zone], abs=0.0051), zone


def test_a_gaussian_of_the_spread_by_hand() -> None:
    one = prior("fixed")[5]  # centre (.28, .58)
    x, y = 0.605, 0.585
    assert one[58, 60].item() == pytest.approx(math.exp(-(((x - 0.28) / SPREAD) ** 2 + ((y - 0.58) / SPREAD) ** 2) / 2), rel=1e-4)


def test_learned_begins_as_fixed_and_keeps_within_its_tether() -> None:
    assert torch.equal(prior("learned"), prior("fixed"))
    learned = ZonePrior("learned")
    with torch.no_grad():
        learned.shift.fill_(100.0)  # type: ignore[union-attr]
    y, x = divmod(int(learned(ZONES, CERTAIN, 100, 100)[4, 0].argmax()), 100)  # from (.30, .48)
    assert ((x + 0.5) / 100, (y + 0.5) / 100) == pytest.approx((0.45, 0.63), abs=0.0051)


@pytest.mark.parametrize("kind", ["fixed", "mirrored", "random", "thirds"])
def test_only_the_learned_prior_learns(kind: Prior) -> None:
    assert not list(ZonePrior(kind).parameters()) and len(list(ZonePrior("learned").parameters())) == 2


def test_mirrored_is_fixed_with_the_sides_exchanged() -> None:
    torch.testing.assert_close(prior("mirrored", 32, 48), prior("fixed", 32, 48).flip(-1), atol=1e-5, rtol=1e-4)


def test_thirds_are_boxes_that_share_out_the_image() -> None:
    boxes = prior("thirds", 96, 64)
    assert torch.equal(boxes.sum(0), torch.ones(96, 64))
    expected = torch.zeros(96, 64)
    expected[32:64, 32:] = 1
    assert torch.equal(boxes[1], expected) and torch.equal(boxes[4], expected.flip(-1))  # LM, RM


def test_random_is_drawn_anew_and_kept_with_the_weights() -> None:
    torch.manual_seed(0)
    one, other = ZonePrior("random"), ZonePrior("random")
    maps = one(ZONES, CERTAIN, 64, 64)
    assert not torch.allclose(maps, other(ZONES, CERTAIN, 64, 64), atol=0.1)
    assert not torch.allclose(maps[:, 0], prior("fixed", 64, 64), atol=0.1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(maps, other(ZONES, CERTAIN, 64, 64))


def test_certainty_and_several_zones() -> None:
    fixed = ZonePrior("fixed")
    several = fixed((ZONES[0] + ZONES[5])[None], torch.ones(1), 32, 32)
    assert torch.equal(several[0, 0], torch.maximum(prior("fixed", 32, 32)[0], prior("fixed", 32, 32)[5]))
    half = fixed(ZONES[:1], torch.tensor([0.5]), 32, 32)
    torch.testing.assert_close(half[0, 0], 0.5 + 0.5 * prior("fixed", 32, 32)[0])
    assert torch.equal(fixed(ZONES[:1], torch.zeros(1), 32, 32), torch.ones(1, 1, 32, 32))
