"""The declared figures of a site are exactly those that `site_summary` gives."""

from __future__ import annotations

import pytest

from tmca_core.training.scores import ALWAYS, INTERVAL, MAY_BE_NEGATIVE, CaseScore, combine, site_summary


def score(patient: str, loss: float = 0.7) -> CaseScore:
    changed = {"swapped": 0.2, "shuffled": 0.1, "empty": 0.3}
    return CaseScore(f"c-{patient}", patient, "ghent", 5, 10, 10, 0.5, 0.3, 2.0, 0.1, 0.0, loss, changed)


def test_every_figure_is_declared() -> None:
    full = site_summary([score("a"), score("b"), score("c")], bootstrap=50, seed=0)
    assert set(full) == {*ALWAYS, "dice_image", *INTERVAL}
    assert set(site_summary([score("a")], bootstrap=0, seed=0)) == {*ALWAYS, "dice_image"}
    assert set(site_summary([], bootstrap=50, seed=0)) == {*ALWAYS}


def test_only_a_loss_may_be_negative() -> None:
    summary = site_summary([score("a", loss=-3.0)], bootstrap=0, seed=0)
    assert {key for key, value in summary.items() if value < 0} == {"loss_sum"} == set(MAY_BE_NEGATIVE)


@pytest.mark.parametrize("key", [*ALWAYS, "dice_image"])
def test_all_of_them_are_needed(key: str) -> None:
    """So that a reply without one has to be refused before `combine` sees it; or a figure is declared that nobody reads."""
    from server.summaries import check_summary

    summary = site_summary([score("a"), score("b")], bootstrap=0, seed=0)
    assert check_summary(summary, 2) == ""
    del summary[key]
    assert check_summary(summary, 2) == f"the evaluation lacks '{key}'"


def test_a_checked_summary_can_be_combined() -> None:
    from server.summaries import check_summary

    summary = site_summary([score("a"), score("b")], bootstrap=20, seed=0)
    assert check_summary(summary, 2) == ""
    assert combine({"ghent": summary})[0]["cases"] == 2
