"""From a configuration to every site's tensors: nothing lost, nothing in two places, the same every time."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tmca_core.cases.sites import SiteData, all_skips, load_site, load_sites, site_names, splits_json
from tmca_core.config import Config, parse
from tmca_core.errors import CaseError, ConfigError, LateralityError, ManifestError

LUNGS = Path(__file__).parents[3] / "../shared/data/cxr-lungs/cases.csv"


def write_manifest(folder: Path, patients: dict[str, int], sides: str = "patient", **changes: dict[str, str]) -> Path:
    """Two cases a patient (left lung, right lung) at every site; `changes` maps a case id to cells."""
    (folder / "f").mkdir(parents=True)
    columns = ["case_id", "patient_id", "site", "image", "mask", "report", "split", "laterality"]
    table = []
    for site, count in patients.items():
        for p in range(count):
            for side in ("left", "right"):
                name = f"{site}{p}{side}"
                rng = np.random.default_rng(p)
                Image.fromarray(rng.integers(0, 255, (48, 48), dtype=np.uint8)).save(folder / "f" / f"{name}.png")
                mask = np.zeros((48, 48), np.uint8)
                mask[10:30, slice(28, 44) if (side == "left") == (sides == "patient") else slice(4, 20)] = 255
                Image.fromarray(mask).save(folder / "f" / f"{name}_m.png")
                row = {"case_id": name, "patient_id": f"{site}-{p}", "site": site, "report": f"{side.capitalize()} lung."}
                table.append(row | {"image": f"f/{name}.png", "mask": f"f/{name}_m.png"} | changes.get(name, {}))
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(table)
    return folder / "cases.csv"


def config(manifest: Path | str, cache: Path, **values: object) -> Config:
    return parse({"data.manifest": str(manifest), "data.image_size": 32, "data.cache_dir": str(cache), **values})


def contents(sites: dict[str, SiteData]) -> Counter[str]:
    return Counter(case.case_id for site in sites.values() for part in (site.train, site.val, site.test) for case in part.cases)


def same(a: SiteData, b: SiteData) -> bool:
    return all(
        list(x.cases) == list(y.cases) and torch.equal(x.images, y.images) and torch.equal(x.masks, y.masks)
        for x, y in ((a.train, b.train), (a.val, b.val), (a.test, b.test))
    )


def test_sites_of_a_manifest(tmp_path):
    settings = config(write_manifest(tmp_path, {"b": 10, "a": 3}), tmp_path / "cache")
    sites = load_sites(settings)
    assert list(sites) == site_names(settings) == ["a", "b"]
    assert sum(contents(sites).values()) == len(contents(sites)) == 26
    b = sites["b"]
    assert (len(b.train), len(b.val), len(b.test)) == (14, 2, 4) and b.test.patients == 2
    assert all(case.split == "test" and case.site == "b" for case in b.test.cases) and not b.skipped
    for case, mask in zip(b.test.cases, b.test.masks, strict=True):  # tensors stay beside their cases
        assert (case.text == "Left lung.") == bool(mask[0, :, 16:].sum() > mask[0, :, :16].sum())
    assert same(load_site(settings, 1), b) and same(load_sites(settings)["a"], load_site(settings, 0))
    assert splits_json(sites)["b"] == {case.case_id: split for split in ("train", "val", "test") for case in getattr(b, split).cases}
    with pytest.raises(ConfigError, match="no site number 2: the 2 sites"):
        load_site(settings, 2)


def test_image_sides_are_measured_and_read_as_patient_sides(tmp_path):
    manifest = write_manifest(tmp_path, {"a": 4}, sides="image")
    site = load_sites(config(manifest, tmp_path / "cache"))["a"]
    for case, mask in zip(site.train.cases, site.train.masks, strict=True):
        assert case.laterality == "image" and case.text != case.report
        assert (case.text == "Left lung.") == bool(mask[0, :, 16:].sum() > mask[0, :, :16].sum())
    (tmp_path / "manifest.toml").write_text('laterality = "patient"\n')
    with pytest.raises(LateralityError, match="8 of 8"):
        load_sites(config(manifest, tmp_path / "cache"))


@pytest.mark.parametrize("by", ["iid", "dirichlet-zones", "dirichlet-size", "quantity"])
def test_other_partitions_deal_out_the_same_cases(by, tmp_path):
    manifest = write_manifest(tmp_path, {"a": 5, "b": 7})
    settings = config(manifest, tmp_path / "cache", **{"partition.by": by, "partition.sites": 3})
    sites = load_sites(settings)
    assert list(sites) == site_names(settings) == ["site-00", "site-01", "site-02"]
    assert sum(contents(sites).values()) == len(contents(sites)) == 24
    assert all(site.train.patients >= 1 and site.val.patients >= 1 and site.test.patients >= 1 for site in sites.values())
    assert same(load_site(settings, 2), sites["site-02"])


def test_a_split_column_is_honoured_by_every_partition(tmp_path):
    tested = {f"a{p}{side}": {"split": "test"} for p in range(4) for side in ("left", "right")}
    rest = {f"a{p}{side}": {"split": "train"} for p in range(4, 16) for side in ("left", "right")}
    manifest = write_manifest(tmp_path, {"a": 16}, **tested, **rest)
    for by in ("site", "iid", "quantity"):
        sites = load_sites(config(manifest, tmp_path / "cache", **{"partition.by": by, "partition.sites": 2}))
        assert {case.case_id for site in sites.values() for case in site.test.cases} == set(tested)


def test_skips_are_listed_at_their_site_and_counted_once(tmp_path):
    manifest = write_manifest(tmp_path, {"a": 4, "b": 4}, a0left={"mask": ""}, b1left={"image": "f/none.png"}, b2left={"report": ""})
    (tmp_path / "f" / "b0left.png").write_bytes(b"\x89PNG")
    settings = config(manifest, tmp_path / "cache")
    sites = load_sites(settings)
    assert len(contents(sites)) == 12
    assert [(skip.row, skip.column) for skip in all_skips(sites)] == [(2, "mask"), (10, "image"), (12, "image"), (14, "report")]
    assert 10 not in {skip.row for skip in sites["a"].skipped} and 2 in {skip.row for skip in sites["a"].skipped}
    with pytest.raises(CaseError, match="row 12, column 'image'"):
        load_sites(settings.with_values({"data.on_bad_case": "fail"}))


def test_a_site_without_training_cases_is_named(tmp_path):
    bad = {f"b{p}{side}": {"mask": ""} for p in range(3) for side in ("left", "right")}
    manifest = write_manifest(tmp_path / "x", {"a": 4, "b": 3}, **bad)
    with pytest.raises(ManifestError, match=r"site 'b' is left without a case to train on.*row 10, column 'mask'"):
        load_sites(config(manifest, tmp_path / "cache"))
    kept = {f"b{p}{side}": {"split": "test"} for p in range(3) for side in ("left", "right")}
    manifest = write_manifest(tmp_path / "y", {"a": 4, "b": 3}, **kept)
    with pytest.raises(ManifestError, match=r"site 'b' has no case to train on: its 3 patients are all kept for test"):
        load_sites(config(manifest, tmp_path / "cache"))


def test_phantom_sites(tmp_path):
    settings = config("", tmp_path / "cache", **{"phantom.sites": 3, "phantom.cases": 12})
    sites = load_sites(settings)
    assert list(sites) == site_names(settings) == ["phantom-00", "phantom-01", "phantom-02"]
    assert all(len(site.train) + len(site.val) + len(site.test) == 12 and len(site.test) for site in sites.values())
    assert same(load_site(settings, 2), sites["phantom-02"])
    dealt = load_sites(settings.with_values({"partition.by": "iid", "partition.sites": 2}))
    assert list(dealt) == ["site-00", "site-01"] and contents(dealt) == contents(sites)
    many = settings.with_values({"phantom.sites": 101, "phantom.cases": 4})
    assert [load_site(many, index).name for index in (11, 100)] == [site_names(many)[index] for index in (11, 100)]


def test_real_lungs(tmp_path):
    if not LUNGS.is_file():
        pytest.skip("the shared data are not there")
    settings = parse({"data.manifest": str(LUNGS), "data.image_size": 64, "data.cache_dir": str(tmp_path)})
    sites = load_sites(settings)
    assert list(sites) == ["east-asia", "hannover", "other", "south-europe", "usa"]
    assert sum(contents(sites).values()) == len(contents(sites)) == 276 and not all_skips(sites)
    for site in sites.values():
        total = len(site.train) + len(site.val) + len(site.test)
        # A site of six patients with up to six cases each cannot come nearer than half a patient.
        assert abs(len(site.test) - 0.2 * total) <= 3 and 1 <= len(site.val) <= max(0.1 * total + 3, 4)
        groups = [{case.patient_id for case in part.cases} for part in (site.train, site.val, site.test)]
        assert all(groups) and sum(map(len, groups)) == len(set.union(*groups))
    assert all(case.laterality == "patient" for case in sites["usa"].train.cases)
    assert splits_json(sites) == splits_json(load_sites(settings))
    assert splits_json(sites) != splits_json(load_sites(settings.with_values({"seed": 1})))


PRIVATE = {"privacy.enabled": True, "privacy.noise_multiplier": 1.0}


def cases_of(site: SiteData) -> dict[str, tuple[str, str]]:
    """Case → its split, and its report as training reads it."""
    return {case.case_id: (case.split, case.text) for part in (site.train, site.val, site.test) for case in part.cases}


@pytest.mark.parametrize("column", ("", "train"))
def test_one_patient_more_changes_nothing_of_the_others_in_private_training(tmp_path: Path, column: str) -> None:
    cells = {f"a{p}{side}": {"split": column} for p in range(40) for side in ("left", "right")} if column else {}
    settings = config(write_manifest(tmp_path, {"a": 40}, **cells), tmp_path / "cache", **PRIVATE, **{"data.laterality": "patient"})
    whole = cases_of(load_sites(settings)["a"])
    assert column or {split for split, _ in whole.values()} == {"train", "val", "test"}
    table = Path(settings.data.manifest).read_text().splitlines(keepends=True)
    for patient in ("a-0", "a-7", "a-39"):
        Path(settings.data.manifest).write_text("".join(line for line in table if f",{patient}," not in line))
        rest = cases_of(load_sites(settings)["a"])
        assert len(rest) == len(whole) - 2
        assert rest == {case: found for case, found in whole.items() if case in rest}


def test_one_patient_does_not_turn_the_others_reports_round_in_private_training(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, {"a": 20}, sides="image")
    with pytest.raises(ManifestError, match=r"none of the 40 rows .*column 'laterality'.*tmca data check"):
        load_sites(config(path, tmp_path / "cache", **PRIVATE))
    plain = load_sites(config(path, tmp_path / "cache"))["a"]
    assert {case.laterality for case in plain.train.cases} == {"image"}  # measured, where no promise is made
    declared = load_sites(config(path, tmp_path / "cache", **PRIVATE, **{"data.laterality": "patient"}))["a"]
    assert {case.laterality for case in declared.train.cases} == {"patient"}  # though the masks say otherwise: nothing is refused
    (tmp_path / "manifest.toml").write_text('laterality = "image"\n')
    told = load_sites(config(path, tmp_path / "cache", **PRIVATE))["a"]
    assert all(case.text != case.report and case.laterality == "image" for case in told.train.cases)


@pytest.mark.parametrize("cell", ({"laterality": "image"}, {"split": "test"}, {"split": "train"}))
def test_a_cell_of_one_patient_speaks_for_nobody_else_in_private_training(tmp_path: Path, cell: dict[str, str]) -> None:
    odd, bare = (
        cases_of(load_sites(config(write_manifest(tmp_path / name, {"a": 12}, **cells), tmp_path / "cache", **own))["a"])
        for own in (PRIVATE | {"data.laterality": "patient"},)
        for name, cells in (("odd", {f"a0{side}": cell for side in ("left", "right")}), ("bare", {}))
    )
    assert {name for name in bare if odd[name] != bare[name]} <= {"a0left", "a0right"}
    assert odd["a0left"] == (cell.get("split", bare["a0left"][0]), "Right lung." if "laterality" in cell else "Left lung.")


def test_a_row_for_which_nothing_declares_whose_left_it_means_is_left_out_of_private_training_by_itself(tmp_path: Path) -> None:
    cells = {f"a{p}{side}": {"laterality": "image"} for p in range(1, 12) for side in ("left", "right")}
    site = load_sites(config(write_manifest(tmp_path, {"a": 12}, **cells), tmp_path / "cache", **PRIVATE))["a"]
    assert [skip.column for skip in site.skipped] == ["laterality"] * 2 and len(cases_of(site)) == 22
    assert {case.laterality for case in site.train.cases} == {"image"}


def test_settings_by_which_one_patient_decides_about_others_are_refused_with_privacy() -> None:
    for setting, value in (("data.split", "counted"), ("data.on_bad_case", "fail"), ("training.precision", "bf16")):
        with pytest.raises(ConfigError, match=rf"^privacy\.enabled .*{value}|^privacy\.enabled .*float32"):
            parse({**PRIVATE, setting: value})
