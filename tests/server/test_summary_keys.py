"""The declared figures of a site are exactly those that `site_summary` gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tmca_core.training.scores import (
    ALWAYS,
    INTERVAL,
    MAY_BE_NEGATIVE,
    WITHOUT_REPORT,
    CaseScore,
    TargetScore,
    combine,
    of_targets,
    site_summary,
)


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


# --- several targets, missing reports -------------------------------------------------------------------
PAIR = (TargetScore(5, 10, 10, 0.5, 0.3, 2.0), TargetScore(0, 0, 0, 1.0, 1.0, None))


def of_two(patient: str, silent: bool = False) -> CaseScore:
    return replace(score(patient), targets=PAIR, without_report=silent)


HALF_SILENT = [of_two(str(i), silent=i < 5) for i in range(10)]


def test_every_figure_of_several_targets_is_declared() -> None:
    found = site_summary([of_two("a"), of_two("b")], bootstrap=0, seed=0)
    assert set(found) == {*ALWAYS, "dice_image", *of_targets(2)}
    assert of_targets(1) == () and len(of_targets(3)) == 3 * len(of_targets(2)) // 2
    silent = site_summary(HALF_SILENT, bootstrap=0, seed=0)
    assert set(silent) - set(found) == set(WITHOUT_REPORT)


def test_the_server_takes_the_figures_of_as_many_targets_as_the_run_has() -> None:
    from server.summaries import check_summary, declared

    sent = site_summary(HALF_SILENT, bootstrap=0, seed=0) | {"target7:dice_sum": 1.0}
    assert set(declared(sent, 2)) == set(sent) - {"target7:dice_sum"}
    assert check_summary(declared(sent, 2), 10, 2) == ""
    assert set(declared(sent)) == {*ALWAYS, "dice_image", *WITHOUT_REPORT}  # and nobody reads target0 where there is one
    assert check_summary(declared(sent), 10) == ""
    assert check_summary(declared(sent, 2), 10, 3) == "the evaluation lacks 'target2:intersection'"


@pytest.mark.parametrize("key", [*of_targets(2), *WITHOUT_REPORT])
def test_none_of_them_may_be_missing_or_wrong(key: str) -> None:
    from server.summaries import check_summary

    good = site_summary(HALF_SILENT, bootstrap=0, seed=0)
    assert check_summary({name: value for name, value in good.items() if name != key}, 10, 2) == f"the evaluation lacks '{key}'"
    assert "below 0" in check_summary(good | {key: -1.0}, 10, 2) and "not finite" in check_summary(good | {key: float("nan")}, 10, 2)
    if "empty" in key or key.endswith("_cases"):
        assert check_summary(good | {key: 11.0}, 10, 2) == f"the evaluation's '{key}' is 11, above the number of cases"


# --- figures that cannot be -----------------------------------------------------------------------------
BOUNDED = ("dice", "iou", "laterality", "floor", "true", "swapped", "shuffled", "empty", "sided_true", "sided_swapped")


@pytest.mark.parametrize("name", BOUNDED)
def test_a_mean_of_shares_is_at_most_one(name: str) -> None:
    from server.summaries import check_summary

    good = site_summary([score("a"), score("b")], bootstrap=0, seed=0)
    full = good | {f"{name}_sum": good[f"{name}_cases"]}
    full |= {"dice_image": full["dice_sum"] / 2}
    assert check_summary(full, 2) == ""
    assert f"'{name}_sum' is" in check_summary(full | {f"{name}_sum": good[f"{name}_cases"] + 0.01}, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dice_image": 5.0}, "'dice_image' is 5, above 1"),
        ({"dice_image": 0.9}, "'dice_image' is 0.9, and the mean of its cases 0.5"),
        ({"ci95_low": 0.6, "ci95_high": 0.5}, "the evaluation's interval from 0.6 to 0.5"),
        ({"ci95_high": 1.5}, "the evaluation's 'ci95_high' is 1.5, above 1"),
        ({"dice_se": 7.0}, "the evaluation's 'dice_se' is 7, above 1"),
        ({"intersection": 21.0}, "'intersection' is 21, above 'predicted'"),
        ({"laterality_wrong": 1e9}, "'laterality_wrong' is 1e+09, above 'laterality_area'"),
    ],
)
def test_figures_that_cannot_be_are_refused(change: dict[str, float], reason: str) -> None:
    from server.summaries import check_summary

    good = site_summary([score("a"), score("b")], bootstrap=50, seed=0)
    assert check_summary(good, 2) == ""
    assert reason in check_summary(good | change, 2)


@pytest.mark.parametrize("key", ["target1:dice_sum", "target0:iou_sum", "without_report_sum"])
def test_figures_of_targets_and_silent_cases_are_bounded(key: str) -> None:
    from server.summaries import check_summary

    good = site_summary(HALF_SILENT, bootstrap=0, seed=0)
    assert f"'{key}' is 11" in check_summary(good | {key: 11.0}, 10, 2)
