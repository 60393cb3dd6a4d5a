"""Figures of sites that keep their sums: what is told, what is refused, and what becomes of them together."""

from __future__ import annotations

import math

import pytest

from tmca_core.training.scores import CaseScore, combine, site_summary
from tmca_core.training.told import CASES, combine_told, means, wrong


def score(dice: float, patient: str, hd95: float | None = 2.0) -> CaseScore:
    changed = {"swapped": 0.2, "shuffled": 0.1, "empty": 0.3}
    return CaseScore(f"c-{patient}", patient, "ghent", 5, 10, 10, dice, 0.3, hd95, 0.1, 0.0, 0.7, changed)


WHOLE = site_summary([score(0.4, "a", None), score(0.6, "b"), score(0.8, "c")], bootstrap=50, seed=0)


def test_means_by_hand() -> None:
    told = means(WHOLE)
    assert set(told) == set(CASES)
    assert told["dice_image"] == pytest.approx(0.6) and told["hd95_px"] == 2.0 and told["loss"] == pytest.approx(0.7)
    assert told["dice_pooled"] == 0.5 and told["true"] == pytest.approx(0.6) and told["swapped"] == pytest.approx(0.2)
    assert told["ci95_low"] < 0.6 < told["ci95_high"]
    assert WHOLE[CASES["hd95_px"]] == 2 and WHOLE[CASES["dice_image"]] == 3
    assert means(site_summary([], bootstrap=50, seed=0)) == {}


def test_whole_summaries_are_combined_as_ever() -> None:
    both = {"ghent": WHOLE, "iowa": WHOLE}
    assert combine_told(both) == combine(both)
    assert combine_told({}) == combine({})


def test_where_a_site_keeps_its_counts_every_site_that_tells_counts_the_same() -> None:
    final, counterfactual = combine_told({"ghent": WHOLE, "iowa": {"dice_image": 0.9, "swapped": 0.4}, "mute": {}})
    assert final["dice_image"] == pytest.approx((0.6 + 0.9) / 2)  # not by cases
    assert final["hd95_px"] == 2.0  # of the only one that told
    assert counterfactual["swapped"] == pytest.approx(0.3) and counterfactual["true"] == pytest.approx(0.6)
    assert final["cases"] is final["patients"] is final["ci95"] is final["one_sided"] is None
    assert final["mean_over"] == "sites" and final["withheld"] == ["iowa", "mute"] and final["worst_site"] == "ghent"
    iowa = final["per_site"]["iowa"]
    assert iowa["dice_image"] == 0.9 and iowa["loss"] is iowa["ci95"] is iowa["cases"] is None
    assert "loss" in iowa["withheld"] and "dice_image" not in iowa["withheld"]
    assert final["per_site"]["ghent"] == combine({"ghent": WHOLE})[0]["per_site"]["ghent"]


def test_nobody_tells_anything() -> None:
    final, counterfactual = combine_told({"iowa": {}, "mute": {}})
    assert final["dice_image"] is final["worst_site"] is None and counterfactual == {}
    assert set(final["per_site"]) == {"iowa", "mute"}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"dice_image": math.nan}, "'dice_image' is not finite"),
        ({"hd95_px": -1.0}, "'hd95_px' is -1, below 0"),
        ({"dice_image": 1.5}, "'dice_image' is 1.5, above 1"),
        ({"ci95_high": 1.5}, "'ci95_high' is 1.5, above 1"),
        ({"dice_image": 1.0, "loss": -3.0, "hd95_px": 40.0}, ""),
        ({}, ""),
    ],
)
def test_figures_that_cannot_be(told: dict[str, float], why: str) -> None:
    assert why in wrong(told) and bool(why) == bool(wrong(told))
