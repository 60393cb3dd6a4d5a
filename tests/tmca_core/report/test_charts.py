import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmca_core.report.charts import Line, Range, bar_chart, line_chart, range_chart, ticks
from tmca_core.report.contours import outlines, svg_path
from tmca_core.report.svg import tag


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_enclose_the_values_and_are_few(low, span):
    found = ticks(low, low + span)
    step = found[1] - found[0]
    assert found[0] <= low + step * 1e-6 and found[-1] >= low + span - step * 1e-6
    assert 2 <= len(found) <= 8


def test_ticks_of_one_value():
    assert len(ticks(0.5, 0.5)) >= 2


def test_charts_are_well_formed_whatever_the_labels():
    nasty = '<script>alert("x")</script>&'
    charts = [
        line_chart(nasty, [Line(nasty, [(1, 0.5), (2, 0.7)], "federated")], x_label=nasty, y_label=nasty),
        range_chart(nasty, [Range(nasty, 0.8, (0.7, 0.9), 0.6), Range("b", None)], x_label="x", value_label=nasty, other_label=nasty),
        bar_chart(nasty, [(nasty, 0.4, "true")]),
    ]
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert "<script" not in chart
        assert root.get("role") == "img" and root.get("aria-label") == nasty
        assert root[0].tag == "title" and root[0].text == nasty
        assert root[1].tag == "desc" and "0." in root[1].text


def test_charts_without_data_are_empty():
    assert line_chart("t", [Line("a", [], "local")], x_label="x", y_label="y") == ""
    assert range_chart("t", [Range("a", None)], x_label="x", value_label="v", other_label="o") == ""
    assert bar_chart("t", []) == ""


def test_one_round_is_a_point():
    chart = line_chart("t", [Line("a", [(1, 0.5)], "federated")], x_label="x", y_label="y")
    assert len(ElementTree.fromstring(chart).findall(".//circle")) == 1
    assert "nan" not in chart


def test_long_curves_are_thinned_and_keep_their_end():
    points = [(float(k), k / 5000) for k in range(5000)]
    chart = line_chart("t", [Line("a", points, "federated")], x_label="x", y_label="y")
    assert len(chart) < 10_000
    assert "to 1.000" in chart


def test_a_higher_value_is_drawn_higher():
    root = ElementTree.fromstring(line_chart("t", [Line("a", [(1, 0.1), (2, 0.9)], "x")], x_label="x", y_label="y"))
    low, high = root.findall(".//circle")
    assert float(high.get("cy")) < float(low.get("cy")) and float(high.get("cx")) > float(low.get("cx"))


def test_tags_escape_attributes_and_content():
    assert tag("text", "a<b", title='"&') == '<text title="&#34;&amp;">a&lt;b</text>'


# --- outlines ---------------------------------------------------------------------------------------
def test_outline_of_a_square_by_hand():
    mask = np.zeros((4, 4), dtype=bool)
    mask[1, 1] = True
    (curve,) = outlines(mask)
    assert {tuple(p) for p in curve.tolist()} == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert svg_path([curve], 2.0).count("L") == 3 and svg_path([curve]).startswith("M") and svg_path([curve]).endswith("Z")


def area(curve):
    x, y = curve[:, 0], curve[:, 1]
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


@given(st.integers(0, 10_000))
def test_unsmoothed_outlines_enclose_exactly_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((8, 9)) < 0.5  # holes and corners that touch; few enough curves for all to be kept
    assert sum(area(c) for c in outlines(mask, smooth=1)) == pytest.approx(mask.sum())


def test_smoothing_moves_the_boundary_by_less_than_a_pixel():
    y, x = np.mgrid[:64, :64]
    mask = (x - 30) ** 2 + (y - 34) ** 2 < 20**2
    (curve,) = outlines(mask)
    radius = np.hypot(curve[:, 0] - 30.5, curve[:, 1] - 34.5)
    assert np.abs(radius - 20).max() < 1


def test_noise_stays_small_and_nothing_is_nothing():
    noise = np.random.default_rng(0).random((256, 256)) < 0.5
    assert len(svg_path(outlines(noise))) < 60_000
    assert outlines(np.zeros((4, 4), dtype=bool)) == [] and svg_path([]) == ""
