"""Several targets and missing reports, from the manifest to the tensors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import two_targets
from PIL import Image

from tmca_core.cases.augment import augment, flip_cases, mirrored_targets
from tmca_core.cases.case import Case
from tmca_core.cases.check import check_manifest, measure_laterality
from tmca_core.cases.decode import decode, decode_all
from tmca_core.cases.manifest import Manifest, read_manifest
from tmca_core.cases.sites import load_site, load_sites
from tmca_core.cli import main
from tmca_core.config import AugmentationSettings, Config, parse
from tmca_core.errors import CaseError, ConfigError, ManifestError

TARGETS = ("square", "bar")
STILL = AugmentationSettings(flip=0, rotate=0, scale=0, shift=0, gain=0, noise=0)


def read(path: Path, **options: object) -> Manifest:
    return read_manifest(path, **{"targets": TARGETS, **options})  # type: ignore[arg-type]


def config(path: Path, **values: object) -> Config:
    own = {"data.manifest": str(path), "data.targets": "square,bar", "data.image_size": 32, "data.cache_dir": str(path.parent / "cache")}
    return parse({**own, **values})


# --- the manifest ---------------------------------------------------------------------------------------
def test_a_file_a_target_in_the_order_asked_for(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m")
    assert [mask.name for mask in read(path).cases[0].masks] == ["a0-square.png", "a0-bar.png"]
    other = read(path, targets=("bar", "square"))
    assert [mask.name for mask in other.cases[0].masks] == ["a0-bar.png", "a0-square.png"]
    assert other.mask_columns == ("mask:bar", "mask:square")
    assert read(path).cases[0].metadata == {}  # a path of a mask is no metadata, asked for or not
    only = read(path, targets=("bar",))
    assert [mask.name for mask in only.cases[0].masks] == ["a0-bar.png"] and only.cases[0].metadata == {}


def test_one_named_target_takes_the_plain_column_where_it_has_none_of_its_own(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m")
    path.write_text(path.read_text().replace("mask:square", "mask"))
    assert [mask.name for mask in read(path, targets=("lesion",)).cases[0].masks] == ["a0-square.png"]
    assert [mask.name for mask in read(path, targets=()).cases[0].masks] == ["a0-square.png"]
    assert [mask.name for mask in read(path, targets=("bar",)).cases[0].masks] == ["a0-bar.png"]


def test_a_target_that_was_not_drawn_is_no_absent_target(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m", a1={"mask:bar": " "}, a2={"mask:square": "", "mask:bar": ""}, a3={"mask:bar": "f/none.png"})
    manifest = read(path)
    assert [(skip.row, skip.column) for skip in manifest.skipped] == [(3, "mask:bar"), (5, "mask:bar")]
    assert "give an all-zero mask" in manifest.skipped[0].reason and "no file" in manifest.skipped[1].reason
    assert manifest.cases[1].case_id == "a2" and manifest.cases[1].masks == ()  # for prediction
    with pytest.raises(CaseError, match="row 3, column 'mask:bar'"):
        read(path, on_bad_case="fail")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m")
    with pytest.raises(ManifestError, match=r"column 'mask:liver' is missing.*masks of square, bar\."):
        read(path, targets=("square", "liver"))
    for targets in ((), ("lesion",)):
        (warning,) = read(path, targets=targets).warnings
        assert "no 'mask' column" in warning and "masks of square, bar: choose with data.targets" in warning
    (warning,) = read(path, targets=("heart", "liver")).warnings
    assert "no 'mask:heart' column" in warning
    with pytest.raises(ManifestError, match=r"nothing to train on \(there is no 'mask' column.*data\.targets"):
        load_sites(config(path, **{"data.targets": ""}))


# --- tensors --------------------------------------------------------------------------------------------
def test_a_channel_a_target(tmp_path: Path) -> None:
    manifest = read(two_targets.write(tmp_path / "m", cases=4))
    cache = tmp_path / "cache"
    tensors, skipped = decode(manifest.cases, size=48, channels=1, cache_dir=cache, columns=manifest.mask_columns)
    assert tensors.masks.shape == (8, 2, 48, 48) and not skipped
    expected = torch.zeros(2, 48, 48, dtype=torch.uint8)
    expected[0, 10:26, 28:44] = 1
    expected[1, 20:30, 8:40] = 1
    assert torch.equal(tensors.masks[0], expected)  # and they overlap
    assert tensors.masks[:4].flatten(2).any(2).tolist() == [[True, True], [True, True], [True, False], [True, False]]
    decoded = decode_all(manifest.cases, size=48, channels=1, cache_dir=cache, columns=manifest.mask_columns)
    assert torch.equal(decoded.tensors.masks, tensors.masks)
    assert decoded.mask_pixels[:3].tolist() == [[256, 320], [256, 320], [256, 0]] and not decoded.vanished.any()
    assert len(list(cache.rglob("*.safetensors"))) == 1
    for targets in (("bar", "square"), ("bar",), ("square",)):
        other = read(manifest.path, targets=targets)
        found, _ = decode(other.cases, size=48, channels=1, cache_dir=cache, columns=other.mask_columns)
        assert torch.equal(found.masks, tensors.masks[:, [TARGETS.index(name) for name in targets]])


def test_a_bad_mask_is_named_by_its_target_also_from_the_cache(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m", cases=4)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path.parent / "f" / "a1-bar.png")
    manifest = read(path)
    for _ in range(2):
        _, skipped = decode(manifest.cases, size=32, channels=1, cache_dir=tmp_path / "cache", columns=manifest.mask_columns)
        assert [(skip.row, skip.column) for skip in skipped] == [(3, "mask:bar")]
    other = read(path, targets=("bar",))
    path.write_text(path.read_text().replace("mask:bar", "mask"))
    plain = read(path, targets=())
    for one, column in ((other, "mask:bar"), (plain, "mask")):
        _, skipped = decode(one.cases, size=32, channels=1, cache_dir=tmp_path / "cache", columns=one.mask_columns)
        assert [(skip.row, skip.column) for skip in skipped] == [(3, column)]


def test_sites_and_partitions(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m", a1={"mask:square": "", "mask:bar": ""})
    sites = load_sites(config(path))
    assert {name: site.train.masks.shape[1:] for name, site in sites.items()} == dict.fromkeys("ab", (2, 32, 32))
    assert [(skip.row, skip.column) for skip in sites["a"].skipped] == [(3, "mask:square")]
    dealt = load_sites(config(path, **{"partition.by": "dirichlet-size", "partition.sites": 2}))
    assert sum(len(part) for site in dealt.values() for part in (site.train, site.val, site.test)) == 15


def test_the_phantom_has_one_target() -> None:
    for load in (load_sites, lambda settings: load_site(settings, 0)):
        with pytest.raises(ConfigError, match=r"the phantom has one target, and data\.targets names a,b"):
            load(parse({"data.targets": "a,b"}))
    assert len(load_sites(parse({"data.targets": "opacity", "phantom.sites": 1, "phantom.cases": 4, "data.image_size": 32}))) == 1


def test_sides_are_measured_on_the_union() -> None:
    """Left in the report; the first target lies left of the middle by one pixel of area less than the second lies right."""
    masks = torch.zeros(1, 2, 4, 8, dtype=torch.uint8)
    masks[0, 0, 0, 0] = 1  # image left, 3.5 from the middle
    masks[0, 1, 0:2, 6] = 1  # image right, twice 2.5
    case = Case("c", "p", "s", Path("i"), (Path("m"), Path("n")), "Left lung.", "Left lung.", "patient")
    assert measure_laterality([case], masks[:, :1]).image_agreement == 1
    assert measure_laterality([case], masks).patient_agreement == 1
    masks[0, 0] = masks[0, 1]  # what both targets cover counts once
    masks[0, 1] = 0
    masks[0, 1, 0, 0] = masks[0, 1, 1, 0] = 1  # twice 3.5 on the left
    assert measure_laterality([case], masks).image_agreement == 1


# --- augmentation ---------------------------------------------------------------------------------------
def test_every_target_moves_as_it_would_alone() -> None:
    images = torch.rand(3, 1, 32, 32)
    masks = (torch.rand(3, 2, 32, 32) > 0.7).float()
    texts = ["Left lung."] * 3
    both = augment(images, masks, texts, AugmentationSettings(), torch.Generator().manual_seed(3))
    for k in range(2):
        alone = augment(images, masks[:, k : k + 1], texts, AugmentationSettings(), torch.Generator().manual_seed(3))
        assert torch.equal(alone[0], both[0]) and torch.equal(alone[1][:, 0], both[1][:, k]) and alone[2] == both[2]


def test_targets_named_after_a_side_change_places_in_a_flipped_film() -> None:
    assert mirrored_targets(["lesion"]) == [0]
    order = mirrored_targets(["left-lung", "heart", "right_lung"])
    assert order == [2, 1, 0]
    masks = torch.zeros(2, 3, 4, 8)
    masks[:, 0, :, 5:7] = masks[:, 1, :, 3] = masks[:, 2, :, 0] = 1  # the patient's left lung is on the image's right
    flipped = flip_cases(torch.zeros(2, 1, 4, 8), masks, ["", ""], torch.tensor([True, False]), order)[1]
    assert torch.equal(flipped[1], masks[1])
    assert flipped[0, 0, 0].nonzero().flatten().tolist() == [7]  # still on the image's right
    assert flipped[0, 1, 0].nonzero().flatten().tolist() == [4]
    assert flipped[0, 2, 0].nonzero().flatten().tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"'left-lung' is of one side.*augmentation\.flip=0"):
        mirrored_targets(["left-lung", "heart"])
    sided = parse({"data.targets": "left-lung", "phantom.sites": 1, "phantom.cases": 4, "data.image_size": 32})
    with pytest.raises(ConfigError, match="counterpart"):
        load_sites(sided)
    load_sites(sided.with_values({"augmentation.flip": 0}))


def test_cases_lose_their_report_as_often_as_told() -> None:
    images, masks, texts = torch.rand(400, 1, 2, 2), torch.zeros(400, 1, 2, 2), ["Left lung."] * 400

    def shown(share: float) -> list[str]:
        return augment(images, masks, texts, STILL.model_copy(update={"no_report": share}), torch.Generator().manual_seed(0))[2]

    assert shown(0.0) == texts and shown(1.0) == [""] * 400
    assert 70 < shown(0.25).count("") < 130  # 100 expected, standard deviation 8.7
    plain = augment(images, masks, texts, AugmentationSettings(), torch.Generator().manual_seed(0))
    silent = augment(images, masks, texts, AugmentationSettings(no_report=0.5), torch.Generator().manual_seed(0))
    assert torch.equal(plain[0], silent[0])  # nothing else is drawn differently


# --- missing reports ------------------------------------------------------------------------------------
def test_a_case_without_a_report_is_a_bad_row_or_a_case(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m", silent=2)
    skipped = read(path)
    assert [(skip.row, skip.column) for skip in skipped.skipped] == [(8, "report"), (9, "report"), (16, "report"), (17, "report")]
    assert "data.missing_reports=use" in skipped.skipped[0].reason and skipped.without_report == []
    used = read(path, missing_reports="use")
    assert not used.skipped and used.without_report == [8, 9, 16, 17]
    assert (used.cases[7].report, used.cases[7].text) == ("", "")
    # nothing but the report may be missing
    (skip,) = read(two_targets.write(tmp_path / "n", a0={"image": ""}), missing_reports="use").skipped
    assert (skip.row, skip.column) == (2, "image")


@pytest.mark.parametrize("missing_reports", ["skip", "use"])
def test_the_column_is_needed_even_if_it_is_empty(tmp_path: Path, missing_reports: str) -> None:
    path = two_targets.write(tmp_path / "m")
    path.write_text(path.read_text().replace("report", "Report", 1))
    with pytest.raises(ManifestError, match=r"column 'report' is missing.*has the column too, empty"):
        read(path, missing_reports=missing_reports)


def test_training_without_some_reports_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = config(two_targets.write(tmp_path / "m", silent=2), **{"data.missing_reports": "use"})
    with caplog.at_level(logging.WARNING):
        sites = load_sites(settings)
    assert "4 of 16 cases have no report" in caplog.text
    assert sum(not case.text for site in sites.values() for part in (site.train, site.val, site.test) for case in part.cases) == 4


# --- the check ------------------------------------------------------------------------------------------
def test_the_check_counts_by_target_and_says_how_many_reports_are_missing(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m", cases=8, silent=2)
    found = check_manifest(path, targets=TARGETS, missing_reports="use", size=32)
    assert (found.cases, found.facts["without_report"], found.facts["without_mask"]) == (16, 4, 0)
    assert found.facts["empty_masks"] == 12 and found.facts["empty_masks_per_target"] == {"square": 4, "bar": 8}
    assert found.laterality["measured"] == "patient" and found.laterality["one_sided_cases"] == 12
    assert any("4 cases have no report (rows 8, 9, 16, 17)" in warning for warning in found.warnings)
    assert any("8 masks of 'bar' are empty" in warning and "negative cases" in warning for warning in found.warnings)
    skipping = check_manifest(path, targets=TARGETS, size=32)
    assert (skipping.cases, skipping.facts["without_report"], len(skipping.skipped)) == (12, 4, 4)
    one = check_manifest(path, targets=("bar",), size=32)
    assert "empty_masks_per_target" not in one.facts and one.facts["empty_masks"] == 4


def test_a_target_that_is_nowhere_cannot_be_learnt(tmp_path: Path) -> None:
    path = two_targets.write(tmp_path / "m", cases=4)
    for mask in (path.parent / "f").glob("*-bar.png"):
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(mask)
    warnings = check_manifest(path, targets=TARGETS, size=32).warnings
    assert any("8 masks of 'bar' are empty" in warning and "it is in no case" in warning for warning in warnings)


def test_the_command_takes_targets_and_missing_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = two_targets.write(tmp_path / "m", silent=1)

    def check(*options: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["data", "check", str(path), *options])
        return int(stop.value.code or 0), *capsys.readouterr()

    code, out, _ = check("--targets", "square,bar", "--missing-reports", "use", "--json")
    found = json.loads(out)
    assert code == 0 and (found["cases"], found["without_report"]) == (16, 2)
    code, out, err = check("--targets", "square,bar")
    assert code == 2 and "2 missing" in out and "2 of 16 rows cannot be used" in err
    code, _, err = check("--targets", "square,,bar")
    assert code == 2 and "data.targets takes different names" in err
