"""The report's part on the federation: what run.json says, in any state of completeness."""

from __future__ import annotations

from typing import Any

from tmca_core.report.consortium import consortium

SUMMARY: dict[str, Any] = {
    "fairness": {
        "spread": 0.05,
        "worst_decile": 0.6,
        "rounds": [{"round": k, "dice_image": 0.1 * k, "worst_dice": 0.05 * k, "worst_decile": 0.06 * k} for k in (1, 2, 3)],
    },
    "stragglers": {
        "ghent": {"turns": [1.0, 2.0], "median_seconds": 1.5, "late": 0, "late_by": []},
        "iowa": {"turns": [9.0], "median_seconds": 9.0, "late": 2, "late_by": [3.0]},
    },
    "rejections": {"hannover": {"norm": 3, "replay": 1}},
    "contribution": {"ghent": 0.02, "iowa": -0.01},
    "suspects": [{"site": "hannover", "reason": "its reports fit better with left and right exchanged"}],
    "stopped_early": 7,
    "best_round": 5,
    "tested_round": 5,
}


def test_members_suspects_and_ending() -> None:
    found = consortium(SUMMARY)
    assert [member.name for member in found.members] == ["hannover", "iowa", "ghent"]  # remarkable ones first
    hannover, iowa, ghent = found.members
    assert hannover.refused == "3 norm, 1 replay" and hannover.turns == 0 and hannover.contribution is None
    assert (iowa.late, iowa.median_seconds, iowa.contribution) == (2, 9.0, -0.01)
    assert (ghent.turns, ghent.remarkable) == (2, False)
    assert found.suspects == [("hannover", "its reports fit better with left and right exchanged")]
    assert "after round 7" in found.ending and "round 5; which was tested" in found.ending
    assert str(found.chart).count('class="line') == 3


def test_a_run_without_any_of_it_has_no_part() -> None:
    assert not consortium({})
    assert not consortium({"fairness": 3, "stragglers": [], "suspects": [{"reason": "no name"}], "rejections": None})
