"""The cost of secure aggregation, at a small size: what it says, and that masking is not free."""

from __future__ import annotations

import pytest

from simulations.bench.secure import secure


def test_a_small_round() -> None:
    measured = secure(megabytes=2, sites=5, repeats=2)
    assert measured.ratios.keys() == {"server", "server_dropouts", "all"} and measured.repeats == 2
    assert measured.figures["dropouts"] == 1  # t = 4 of 5
    assert all(measured.figures[f"{name}.seconds"] > 0 for name in ("plain", "server", "server_dropouts", "a_site", "all"))
    # Five sites and the server together, against the server: never less.
    assert measured.ratios["all"] > measured.ratios["server"] > 0


@pytest.mark.slow
def test_forty_megabytes_of_ten_sites() -> None:
    measured = secure(megabytes=40, sites=10, repeats=3)
    assert measured.ratios["server"] <= 3
    # 7 self-masks and 21 pairwise ones in the place of 10: dearer, and never by more than these are more.
    assert measured.figures["dropouts"] == 3
    assert measured.ratios["server"] < measured.ratios["server_dropouts"] <= 28 / 10 * 1.5 * measured.ratios["server"]
