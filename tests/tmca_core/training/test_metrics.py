import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.training.metrics import (
    areas,
    counterfactual_texts,
    deal_differently,
    dice,
    hausdorff95,
    iou,
    named_side,
    other_side_share,
)


def mask(*rows: str) -> torch.Tensor:
    """(1, 1, H, W) from rows of '.' and '#'."""
    return torch.tensor([[[[c == "#" for c in row] for row in rows]]])


def test_hand_counted_overlap():
    found = areas(mask("##..", "##.."), mask(".##.", ".##."))
    assert (found.intersection.tolist(), found.predicted.tolist(), found.truth.tolist()) == ([[2]], [[4]], [[4]])
    assert dice(2, 4, 4) == 0.5
    assert iou(2, 4, 4) == pytest.approx(1 / 3)


def test_targets_are_counted_apart():
    predicted, truth = torch.cat([mask("##.."), mask("....")], 1), torch.cat([mask("#..."), mask("..##")], 1)
    found = areas(predicted, truth)
    assert (found.intersection.tolist(), found.predicted.tolist(), found.truth.tolist()) == ([[1, 0]], [[2, 0]], [[1, 2]])
    assert dice(found.intersection, found.predicted, found.truth).tolist() == [[pytest.approx(2 / 3), 0.0]]


def test_empty_mask_rule_case_by_case():
    both, only_predicted, only_truth = (0, 0, 0), (0, 7, 0), (0, 0, 7)
    columns = np.array([both, only_predicted, only_truth]).T
    assert dice(*columns).tolist() == [1, 0, 0]
    assert iou(*columns).tolist() == [1, 0, 0]


def test_uint8_and_bool_masks_count_alike():
    p, t = mask("#.", "##"), mask("##", "..")
    assert areas(p, t).truth.tolist() == areas(p.to(torch.uint8), t.to(torch.uint8)).truth.tolist() == [[2]]


def test_areas_refuse_other_shapes():
    with pytest.raises(ValueError, match="must both be"):
        areas(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="must both be"):
        areas(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="must both be"):
        areas(torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_dice_and_iou_are_each_others_function(only_p, only_t, both):
    d, j = dice(both, only_p + both, only_t + both), iou(both, only_p + both, only_t + both)
    assert d == pytest.approx(2 * j / (1 + j))


def test_hausdorff_by_hand():
    left, right = mask("#......")[0, 0], mask("...#...")[0, 0]
    assert hausdorff95(left, right) == 3.0
    assert hausdorff95(left, left) == 0.0


def test_hausdorff_of_empty_masks():
    none, some = mask("....")[0, 0], mask(".#..")[0, 0]
    assert hausdorff95(none, none) == 0.0
    assert hausdorff95(none, some) is None
    assert hausdorff95(some, none) is None


def test_hausdorff_equals_monai_on_random_masks():
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(0)
    for k in range(30):
        density = (0.02, 0.3, 0.9)[k % 3]
        size = (int(rng.integers(3, 40)), int(rng.integers(3, 40)))
        p, t = (rng.random(size) < density for _ in range(2))
        p[0, 0] = t[-1, -1] = True
        slow = compute_hausdorff_distance(torch.tensor(p)[None, None], torch.tensor(t)[None, None], include_background=True, percentile=95)
        assert hausdorff95(torch.tensor(p), torch.tensor(t)) == pytest.approx(float(slow), abs=1e-4)


def test_other_side_by_hand_the_patients_left_is_on_the_images_right():
    masks = torch.cat([mask("#..#"), mask("#.##"), mask("...."), mask("##.#")])
    assert other_side_share(masks, ["left", "right", "left", None]) == [0.5, pytest.approx(2 / 3), 0.0, None]


def test_sides_of_several_targets_are_those_of_their_union():
    both = torch.cat([mask("#..#"), mask("#...")], 1)  # the left half's pixel is in both and counts once
    assert other_side_share(both, ["left"]) == [0.5]


def test_the_middle_column_of_an_odd_width_is_on_no_side():
    assert other_side_share(mask("..#.."), ["left"]) == other_side_share(mask("..#.."), ["right"]) == [0.0]


def test_named_side_reads_one_sided_reports_only():
    assert named_side("Left lung.") == "left"
    assert named_side("Unilateral pulmonary infection, one infected area, upper right lung.") == "right"
    assert named_side("Bilateral pulmonary infection, two infected areas, upper left lung and lower right lung.") is None
    assert named_side("No pneumonia in the left lung.") is None
    assert named_side("") is None


def test_counterfactual_texts():
    texts = ["Left lung.", "Right lung.", "Left lung.", "Right lung."]
    found = counterfactual_texts(texts, seed=3)
    assert list(found) == ["swapped", "shuffled", "empty"]
    assert found["swapped"] == ["Right lung.", "Left lung."] * 2
    assert found["shuffled"] == ["Right lung.", "Left lung."] * 2  # nothing else differs everywhere
    assert found["empty"] == [""] * 4
    assert counterfactual_texts([]) == {"swapped": [], "shuffled": [], "empty": []}


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_shuffle_is_a_permutation_with_the_fewest_texts_in_their_place(texts, seed):
    order = deal_differently(texts, seed)
    assert sorted(order) == list(range(len(texts)))
    assert order == deal_differently(texts, seed)
    commonest = max((texts.count(text) for text in texts), default=0)
    kept = sum(texts[i] == texts[j] for i, j in enumerate(order))
    assert kept == max(0, 2 * commonest - len(texts))


def test_shuffles_of_other_seeds_differ():
    texts = [str(i) for i in range(20)]
    assert deal_differently(texts, 0) != deal_differently(texts, 1)
