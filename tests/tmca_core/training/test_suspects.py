"""A site whose reports say left for right is named by the figures that leave it; honest sites are not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tmca_core.training.scores import CaseScore, SiteSummary, site_summary
from tmca_core.training.suspects import FEWEST_CASES, MARGIN, swapped_sides


def site(true: float, swapped: float, cases: int = 10, sided: bool = True) -> SiteSummary:
    """Every case with the same Dice; one-sided reports, of which none has an empty counterfactual."""
    error = 0.1 if sided else None
    scores = [
        CaseScore(f"{i}", f"p{i}", "x", 5, 10, 10, true, 0.3, 2.0, error, 0.0, 0.7, {"swapped": swapped, "shuffled": 0.1, "empty": 0.1})
        for i in range(cases)
    ]
    return site_summary(scores, bootstrap=0, seed=0)


def names(**sites: SiteSummary) -> list[str]:
    return [entry["site"] for entry in swapped_sides(sites)]


def test_the_swapped_site_is_named_with_its_figures() -> None:
    (found,) = swapped_sides({"ghent": site(0.8, 0.1), "hannover": site(0.1, 0.7, cases=4), "iowa": site(0.6, 0.2, cases=30)})
    assert found["site"] == "hannover" and "side convention" in found["reason"]
    assert (found["dice_true"], found["dice_swapped"], found["cases"]) == (0.1, 0.7, 4)
    assert found["others_true"] == (0.8 * 10 + 0.6 * 30) / 40
    assert found["laterality_error"] == 0.1


def test_nobody_is_named_where_the_rule_has_no_ground() -> None:
    assert names(a=site(0.8, 0.1), b=site(0.7, 0.2), c=site(0.4, 0.3)) == []  # honest, one weak
    assert names(a=site(0.4, 0.4), b=site(0.5, 0.5)) == []  # a network that does not read
    assert names(a=site(0.1, 0.8), b=site(0.1, 0.7)) == []  # all alike: nobody differs
    assert names(a=site(0.8, 0.1), b=site(0.3, 0.39)) == []  # within the margin
    assert names(a=site(0.8, 0.1), b=site(0.1, 0.8, cases=FEWEST_CASES - 1)) == []  # too few cases
    assert names(a=site(0.8, 0.1), b=site(0.1, 0.8, sided=False)) == []  # no one-sided report
    assert names(b=site(0.1, 0.8)) == []  # alone
    assert names(a=site(0.3, 0.25), b=site(0.1, 0.8)) == []  # the others do not show that the text is followed
    assert swapped_sides({}) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 20)), max_size=6))
def test_a_named_site_always_differs_from_the_others(figures: list[tuple[float, float, int]]) -> None:
    sites = {f"s{k}": site(true, swapped, cases) for k, (true, swapped, cases) in enumerate(figures)}
    for entry in swapped_sides(sites):
        assert entry["dice_swapped"] - entry["dice_true"] > MARGIN
        assert entry["others_true"] - entry["others_swapped"] > MARGIN
