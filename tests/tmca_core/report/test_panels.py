"""Panels over films: which words are shown, and what is said of each map."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tmca_core.report.panels import most_telling, panels


def write(folder, **pictures):
    files = {}
    for name, pixels in pictures.items():
        files[name.replace("_", "/")] = folder / f"{name}.png"
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(folder / f"{name}.png")
    return files


def overlay(panel):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel.overlay.partition(",")[2]))))


PREDICTED = np.zeros((32, 32), dtype=bool)
PREDICTED[8:24, 16:32] = True


def word(text, half_area, side="", kind=2):
    return {"text": text, "half_area": half_area, "side": side, "kind": kind}


def test_sides_first_then_the_most_concentrated_and_none_twice():
    words = [word("a", 0.01, kind=1), word("opacity", 0.2), word("left", 0.3, "left", 5), word("hazy", 0.1), word("Left", 0.2, "left", 5)]
    assert most_telling(words) == [4, 3, 1]
    assert most_telling(words[:1]) == [0]
    assert most_telling([word(str(k), k / 10) for k in range(6)]) == [0, 1, 2, 3]
    assert most_telling([]) == []


def test_the_prior_darkens_what_the_report_rules_out(tmp_path):
    prior = np.zeros((16, 16))
    prior[:, 8:] = 255
    prior[:8] = 0
    (panel,) = panels(write(tmp_path, guidance=prior), {}, PREDICTED, 4.0)
    assert panel.kind == "guidance" and panel.outline.startswith("M")
    assert "50\N{NO-BREAK SPACE}% of the predicted mask lies inside of the line" in panel.told  # rows 16 to 24 of 8 to 24
    shade = overlay(panel)
    assert shade[10, 10, 3] == 190 and shade[-10, -10, 3] == 0
    (open_one,) = panels(write(tmp_path, guidance=np.full((16, 16), 255)), {}, PREDICTED, 4.0)
    assert "no place" in open_one.told and not open_one.overlay
    (nothing,) = panels(write(tmp_path, guidance=prior), {}, np.zeros((32, 32), dtype=bool), 4.0)
    assert "predicted mask" not in nothing.told


@pytest.mark.parametrize("certainty", [1.0, 0.5])
def test_the_line_is_round_the_zones_however_sure_the_report_is(tmp_path, certainty):
    zones = np.zeros((16, 16))
    zones[8:, 8:] = 1
    prior = np.round(255 * (1 - certainty * (1 - zones)))
    (sure,) = panels(write(tmp_path, guidance=255 * zones), {"certainty": 1.0}, PREDICTED, 4.0)
    (panel,) = panels(write(tmp_path, guidance=prior), {"certainty": certainty}, PREDICTED, 4.0)
    assert panel.outline == sure.outline != ""
    assert "50\N{NO-BREAK SPACE}% of the predicted mask lies inside of the line" in panel.told
    assert ("with doubt" in panel.told) == (certainty < 1) and "costs" not in panel.told
    assert overlay(panel)[10, 10, 3] == round(190 * certainty)


def test_enhancement_is_the_mean_over_levels_on_a_scale_of_its_own(tmp_path):
    weak, strong = np.zeros((4, 4)), np.full((8, 8), 204)
    strong[:4] = 0
    (panel,) = panels(write(tmp_path, enhancement_32=weak, enhancement_4=strong), {}, PREDICTED, 1.0)
    assert overlay(panel).shape == (8, 8, 4) and "at most 0.40 of 1" in panel.told and "even" not in panel.told
    assert overlay(panel)[0, 0, 3] == 0 < overlay(panel)[-1, -1, 3]
    (even,) = panels(write(tmp_path, enhancement_4=np.full((8, 8), 70)), {}, PREDICTED, 1.0)
    assert "even over the whole film" in even.told


def test_words_and_phrases_say_what_their_map_shows(tmp_path):
    point, even = np.zeros((8, 8)), np.full((8, 8), 255)
    point[2, 7] = 255
    facts = {
        "words": [
            {"text": "the", "half_area": 0.5, "side": "", "kind": 1, "side_share": None},
            {"text": "left <b>", "half_area": 1 / 64, "side": "left", "kind": 5, "side_share": 1.0},
        ],
        "phrases": [{"kind": "diagnostic", "half_area": 0.5, "side_share": None}, {"kind": "right", "half_area": 0.1, "side_share": 0.25}],
    }
    found = panels(write(tmp_path, words=np.vstack([even, point]), phrases=np.vstack([even, point])), facts, PREDICTED, 1.0)
    assert [(panel.kind, panel.title) for panel in found] == [
        ("word", "“left <b>”"),
        ("phrase", "What it may be"),
        ("phrase", "What lies right"),
    ]
    assert (
        "Half of its weight lies on 1.6\N{NO-BREAK SPACE}% of the film. 100\N{NO-BREAK SPACE}% of it lies on the patient's left."
        in found[0].told
    )
    assert "points nowhere in particular" in found[1].told and "25\N{NO-BREAK SPACE}% of it lies on the patient's right" in found[2].told
    assert overlay(found[0])[2, 7, 3] == 200 and overlay(found[0])[0, 0, 3] == 0
    assert overlay(found[1])[..., 3].max() < 60  # an even map must not look like a finding


def test_no_maps_no_panels(tmp_path):
    assert panels({}, {}, PREDICTED, 1.0) == []
    assert panels(write(tmp_path, words=np.zeros((8, 8))), {"words": "damaged"}, PREDICTED, 1.0) == []


def test_a_strip_that_does_not_hold_its_maps(tmp_path):
    with pytest.raises(ValueError, match="holds no 3 maps"):
        panels(write(tmp_path, words=np.zeros((8, 8))), {"words": [word("a", 0.1)] * 3}, PREDICTED, 1.0)
