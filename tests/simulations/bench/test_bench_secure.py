"""The cost of secure aggregation, at a small size: what it says, and that masking is not free."""

from __future__ import annotations

from simulations.bench.secure import secure


def test_a_small_round() -> None:
    measured = secure(megabytes=2, sites=5, repeats=2)
    assert measured.ratios.keys() == {"server", "server_dropouts", "all"} and measured.repeats == 2
    assert measured.figures["dropouts"] == 1  # t = 4 of 5
    assert all(measured.figures[f"{name}.seconds"] > 0 for name in ("plain", "server", "server_dropouts", "a_site", "all"))
    # Five sites and the server together, against the server: never less.
    assert measured.ratios["all"] > measured.ratios["server"] > 0


def test_of_ten_sites_three_may_leave() -> None:
    assert secure(megabytes=1, sites=10, repeats=1).figures["dropouts"] == 3
