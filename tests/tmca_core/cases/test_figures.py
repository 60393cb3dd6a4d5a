"""Figures of a site's data against hand-computed ones; every value is bounded and a patient counts once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from films import film, pixels
from PIL import Image

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.cases.figures import figures_of, values_of
from tmca_core.cases.images import read_image
from tmca_core.cases.sizes import stored_size
from tmca_core.errors import ImageError

SIDE = 16
ONE = ("lesion",)


def case(id: str, patient: str, report: str, image: Path = Path("none.png")) -> Case:
    return Case(id, patient, "s", image, (Path("m.png"),), report, report, "patient")


def part(*cases: Case, grey: int = 51, at: tuple[int, ...] = ()) -> CaseTensors:
    """Grey images; the case with number k has the mask of a quarter on the patient's left for k in `at`, else none."""
    images = torch.full((len(cases), 1, SIDE, SIDE), grey, dtype=torch.uint8)
    masks = torch.zeros((len(cases), 1, SIDE, SIDE), dtype=torch.uint8)
    for k in at:
        masks[k, 0, : SIDE // 2, SIDE // 2 :] = 1
    return CaseTensors(list(cases), images, masks)


def told(*parts: CaseTensors, targets: tuple[str, ...] = ONE) -> dict[str, dict[str, float]]:
    """Patient → figure → value, those that are there."""
    patients, values = values_of(parts, targets)
    assert ((values >= 0) & (values <= 1) | np.isnan(values)).all() and values.shape == (len(patients), len(figures_of(targets)))
    names = [name.removeprefix("data.") for name in figures_of(targets)]
    return {who: {n: v for n, v in zip(names, row, strict=True) if v == v} for who, row in zip(patients, values.tolist(), strict=True)}


def test_a_patient_is_the_mean_of_the_patients_cases() -> None:
    first = part(case("a", "p", "Consolidation in the left lung."), case("b", "p", ""), case("c", "q", "Left."), grey=51, at=(0, 1))
    second = part(case("d", "p", "There is an opacity of the right lung."), grey=204, at=(0,))
    found = told(first, second)
    p, q = found["p"], found["q"]
    assert p["intensity_mean"] == pytest.approx((51 + 51 + 204) / 3 / 255)
    assert p["intensity_deviation"] == pytest.approx(0, abs=1e-6)
    assert p["missing_reports"] == pytest.approx(1 / 3) and q["missing_reports"] == 0
    assert p["report_words"] == pytest.approx((5 + 8) / 2 / 250)  # of the two that are there
    assert p["one_sided"] == pytest.approx(2 / 3)
    assert (p["sides_patient"], p["sides_image"]) == (0.5, 0.5)  # left is where it says, right is not
    assert "sides_patient" not in q and "mask_area" not in q  # an empty mask has no side
    assert (p["prevalence"], q["prevalence"]) == (1.0, 0.0) and p["mask_area"] == pytest.approx(0.25)
    width = figures_of(ONE)["data.image_width"]
    assert width.shown(p["image_width"]) == SIDE


def test_languages_by_their_small_words() -> None:
    german = "Es zeigt sich eine Verschattung im linken Unterfeld, kein Nachweis eines Ergusses."
    found = told(part(case("a", "p", german), case("b", "q", "There is no effusion in the left lung."), case("c", "r", "Ø")))
    assert [(found[w]["language_de"], found[w]["language_en"]) for w in "pqr"] == [(1, 0), (0, 1), (0, 0)]


def test_targets_have_figures_of_their_own() -> None:
    cases = [case("a", "p", "Left."), case("b", "q", "Left.")]
    masks = torch.zeros((2, 2, SIDE, SIDE), dtype=torch.uint8)
    masks[0, 0, :4] = 1
    masks[:, 1] = 1
    found = told(CaseTensors(cases, torch.zeros((2, 1, SIDE, SIDE), dtype=torch.uint8), masks), targets=("a", "b"))
    assert (found["p"]["prevalence:a"], found["q"]["prevalence:a"], found["q"]["prevalence:b"]) == (1, 0, 1)
    assert found["p"]["mask_area:a"] == 0.25 and "mask_area:a" not in found["q"] and found["q"]["mask_area:b"] == 1


def test_nobody_and_extremes_are_within_bounds() -> None:
    assert values_of((), ONE)[0] == [] and values_of((part(),), ONE)[1].shape == (0, len(figures_of(ONE)))
    whole = part(case("a", "p", "word " * 999))
    whole.images[0, 0, ::2] = 0
    whole.images[0, 0, 1::2] = 255
    found = told(whole)["p"]
    assert found["report_words"] == 1 and found["intensity_deviation"] == 1


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    film(tmp_path / "a.dcm", pixels(1, (40, 160)))
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / "c.jpg", exif=exif)
    for name in ("a.dcm", "b.png", "c.jpg"):
        assert stored_size(tmp_path / name) == read_image(tmp_path / name).shape[:2]
    found = told(part(case("a", "p", "", tmp_path / "a.dcm")))["p"]
    figures = figures_of(ONE)
    assert (figures["data.image_width"].shown(found["image_width"]), figures["data.image_height"].shown(found["image_height"])) == (160, 40)
    (tmp_path / "d.png").write_bytes((tmp_path / "b.png").read_bytes()[:20])
    with pytest.raises(ImageError):
        stored_size(tmp_path / "d.png")
