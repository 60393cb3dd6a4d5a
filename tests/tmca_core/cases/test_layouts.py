"""The four public layouts become manifests that pass the checks, and what does not fit is named."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from PIL import Image

from tmca_core.cases.check import check_manifest
from tmca_core.cases.layouts import LAYOUTS, convert
from tmca_core.cases.layouts.listing import stem
from tmca_core.cases.layouts.patients import patient_of
from tmca_core.cases.manifest import read_manifest
from tmca_core.errors import ConfigError, ManifestError

FIXTURES = Path(__file__).parents[3] / "../shared/data/layouts"
Entry = tuple[str, str, str]  # split (train, val, test), name, report

LEFT, RIGHT, BOTH = (
    f"One infected area, {where}." for where in ("lower left lung", "upper right lung", "upper left lung and upper right lung")
)
ENTRIES: list[Entry] = [
    ("train", "film-a", LEFT),
    ("train", "film-b", RIGHT),
    ("train", "film-c", BOTH),
    ("val", "film-d", LEFT),
    ("test", "film-e", RIGHT),
    ("test", "film-f", BOTH),
]


def save(path: Path, name: str, report: str, *, prefix: str = "mask_", sides: str = "patient", suffix: str = ".png") -> None:
    """An image in the first folder and its mask in the second; the lesion is where the report says, in the given sides."""
    images, masks = path
    pixels = np.random.default_rng(len(name)).integers(0, 255, (40, 48), dtype=np.uint8)
    pixels[0, 0] = sum(map(ord, name)) % 256
    mask = np.zeros((40, 48), np.uint8)
    on_right = ("left" in report) == (sides == "patient")
    mask[10:20, slice(30, 40) if on_right else slice(6, 16)] = 255
    if "left" in report and "right" in report:
        mask |= mask[:, ::-1]
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(images / (name + suffix))
    Image.fromarray(mask).save(masks / f"{prefix}{name}.png")


def build_lvit(root: Path, entries: list[Entry], **how: str) -> Path:
    for split in {split for split, _, _ in entries}:
        folder = root / "Task" / f"{split.capitalize()}_Folder"
        book = openpyxl.Workbook()
        book.active.append(["Image", "Description"])
        for _, name, report in (entry for entry in entries if entry[0] == split):
            save((folder / "img", folder / "labelcol"), name, report, **how)
            book.active.append([f"mask_{name}.png", report])
        book.save(folder / f"{split.capitalize()}_text.xlsx")
    return root / "Task"


def build_languide(root: Path, entries: list[Entry], **how: str) -> Path:
    task = root / "Task"
    (task / "prompt").mkdir(parents=True)
    for split in ("train", "test"):
        mine = [entry for entry in entries if (entry[0] == "test") == (split == "test")]
        for _, name, report in mine:
            save((task / split.capitalize() / "Images", task / split.capitalize() / "GTs"), name, report, **how)
        with (task / "prompt" / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["Image", "Description"], *([f"mask_{name}.png", report] for _, name, report in mine)])
    return task


def build_sgseg(root: Path, entries: list[Entry], **how: str) -> Path:
    task = root / "Task"
    annotations: dict[str, list[Any]] = {"train": [], "valid": [], "test": []}
    for split, name, report in entries:
        key = "valid" if split == "val" else split
        save((task / "images" / key / "images", task / "images" / key / "masks"), name, report, **how)
        annotations[key].append({"image_path": f"mask_{name}.png", "caption": report, "pseudo_label": [0, 0, 1, 0, 1, 0]})
    (task / "prompts").mkdir()
    (task / "prompts" / "annotation.json").write_text(json.dumps(annotations))
    return task


def build_prolearn(root: Path, entries: list[Entry], **how: str) -> Path:
    task = root / "Task"
    (task / "reports").mkdir(parents=True)
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, name, report in entries:
        save((task / "images", task / "masks"), name, report, prefix="", **how)
        (task / "reports" / f"{name}.txt").write_text(report)
        splits["valid" if split == "val" else split].append(name)
    (task / "split.json").write_text(json.dumps(splits))
    return task


BUILDERS = {"lvit": build_lvit, "languide": build_languide, "sgseg": build_sgseg, "prolearn": build_prolearn}


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("layout", sorted(BUILDERS))
def test_every_layout_converts_and_passes_the_checks(layout, tmp_path):
    src = BUILDERS[layout](tmp_path / "src", ENTRIES)
    manifest = convert(layout, src, tmp_path / "out")
    assert manifest == tmp_path / "out" / "manifest.csv"
    expected = {name: ("train" if layout == "languide" and split == "val" else split, report) for split, name, report in ENTRIES}
    read = rows(manifest)
    assert {row["case_id"]: (row["split"], row["report"]) for row in read} == expected
    assert {row["site"] for row in read} == {"task"} and len({row["patient_id"] for row in read}) == 6
    check = check_manifest(manifest)
    assert check.cases == 6 and not check.skipped and not check.error
    for case in read_manifest(manifest).cases:
        original = next(src.rglob(f"images/{case.case_id}.png") if layout in ("sgseg", "prolearn") else src.rglob(f"{case.case_id}.png"))
        assert case.image.read_bytes() == original.read_bytes()
    if layout == "sgseg":
        assert {row["zones"] for row in read} == {"LL RM"}
    again = convert(layout, src.parent, tmp_path / "again")  # from the folder above, too
    assert rows(again) == read


@pytest.mark.parametrize("layout", sorted(BUILDERS))
def test_shared_fixtures_convert(layout, tmp_path):
    if not FIXTURES.is_dir():
        pytest.skip("the shared fixtures are not there")
    manifest = convert(layout, FIXTURES / layout, tmp_path / "out")
    check = check_manifest(manifest)
    assert (check.cases, list(check.skipped), check.error) == (12, [], "")
    expected = {"train": 9, "test": 3} if layout == "languide" else {"train": 6, "val": 3, "test": 3}
    assert Counter(row["split"] for row in rows(manifest)) == expected
    # Two one-sided captions, both with the lesion on the patient's side: too few to call it measured.
    assert check.laterality == {"declared": "patient", "measured": None, "agreement": 1.0, "one_sided_cases": 2}
    assert "fewer than 5" in (tmp_path / "out" / "manifest.toml").read_text()


def many(naming: str, count: int = 8) -> list[Entry]:
    return [("train" if k < 6 else "test", naming.format(k), LEFT if k % 2 else RIGHT) for k in range(count)]


@pytest.mark.parametrize("sides", ["patient", "image"])
def test_the_side_convention_is_measured(sides, tmp_path):
    manifest = convert("lvit", build_lvit(tmp_path / "src", many("x{}"), sides=sides), tmp_path / "out")
    sidecar = tomllib.loads((tmp_path / "out" / "manifest.toml").read_text())
    assert sidecar["laterality"] == sides
    assert set(sidecar) == {"modality", "source", "licence", "laterality"} and sidecar["licence"].startswith("unknown")
    assert check_manifest(manifest).laterality["measured"] == sides


def test_too_few_sides_known_names_and_nothing_known(tmp_path):
    for number, (naming, report, expected) in enumerate((("covid_{}", BOTH, "image"), ("x{}", BOTH, None), ("x{}", LEFT, "patient"))):
        src = build_prolearn(tmp_path / str(number), [("train", naming.format(k), report) for k in range(3)])
        convert("prolearn", src, tmp_path / f"out{number}")
        assert tomllib.loads((tmp_path / f"out{number}" / "manifest.toml").read_text()).get("laterality") == expected


def test_data_sets_of_two_conventions_get_a_column(tmp_path):
    build_prolearn(tmp_path / "src", many("p{}"))
    (tmp_path / "src" / "Task").rename(tmp_path / "src" / "A")
    build_prolearn(tmp_path / "src", [("test", "p0", RIGHT), *many("i{}", 7)], sides="image")  # p0 again, of another patient
    manifest = convert("prolearn", tmp_path / "src", tmp_path / "out")
    assert {(row["site"], row["laterality"]) for row in rows(manifest)} == {("a", "patient"), ("task", "image")}
    assert "laterality" not in tomllib.loads((tmp_path / "out" / "manifest.toml").read_text())
    check = check_manifest(manifest)
    assert check.cases == 16 and check.patients == 16 and not check.error


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("covid_123", "covid_123"),
        ("sub-S09412_ses-E24141_run-1_bp-chest_vp-ap_dx", "sub-s09412"),
        ("cxr_s09315-e21849-r1", "s09315"),
        ("Morozov_study_0255_14", "morozov_study_0255"),
        ("16_Morozov_study_0003_24", "16_morozov_study_0003"),
        ("Jun_coronacases_case1_119", "jun_coronacases_case1"),
        ("Jun_radiopaedia_10_85902_3_case12_107", "jun_radiopaedia_10_85902_3_case12"),
        ("bjorke_17", "bjorke_17"),
        ("TCGA-18-5592-01Z-00-DX1", "tcga-18-5592"),
        ("sub-0042_acq-a", "sub-0042"),
    ],
)
def test_patients_are_recognised_in_published_names(name, patient):
    assert patient_of(name)[0] == patient


@pytest.mark.parametrize(
    ("written", "expected"),
    [("mask_a.png", "a"), ("GTs\\Mask_a.PNG", "a"), ("x/y/a.b.jpeg", "a.b"), ("a.b", "a.b"), ("masked.png", "masked"), (" a.tif ", "a")],
)
def test_stems(written, expected):
    assert stem(written) == expected


def test_a_patient_of_test_leaves_the_training_cases(tmp_path):
    names = [f"sub-S1_ses-E{k}" for k in range(3)] + [f"sub-S2_ses-E{k}" for k in range(4)] + [f"covid_{k}" for k in range(6)]
    places = ["train", "test", "val", "train", "train", "val", "train"] + ["train"] * 6
    src = build_lvit(tmp_path / "src", [(split, name, LEFT) for split, name in zip(places, names, strict=True)])
    manifest = convert("lvit", src, tmp_path / "out")
    read = {row["case_id"]: row for row in rows(manifest)}
    assert [read[name]["split"] for name in names[:7]] == ["test"] * 3 + ["train"] * 4
    assert [read[name]["layout_split"] for name in names] == places
    text = (tmp_path / "out" / "manifest.toml").read_text()
    assert "2 of 8 patients have images in more than one split" in text and "3 cases moved, training cases 10 → 10" in text
    assert not check_manifest(manifest).skipped


def test_a_split_by_slice_is_given_up(tmp_path, caplog):
    entries = [("test" if k % 5 == 0 else "train", f"Morozov_study_{s:04d}_{k}", LEFT) for s in range(4) for k in range(5)]
    manifest = convert("lvit", build_lvit(tmp_path / "src", entries), tmp_path / "out")
    assert {row["split"] for row in rows(manifest)} == {""} and {row["layout_split"] for row in rows(manifest)} == {"train", "test"}
    assert len({row["patient_id"] for row in rows(manifest)}) == 4
    assert "would leave 0 of 16 training cases" in caplog.text
    assert not check_manifest(manifest).skipped


def test_the_same_name_in_two_splits_gets_two_ids_and_one_split(tmp_path):
    entries = [*ENTRIES, ("test", "film-a", LEFT)]
    manifest = convert("lvit", build_lvit(tmp_path / "src", entries), tmp_path / "out")
    ids = [row["case_id"] for row in rows(manifest)]
    assert len(set(ids)) == 7 and {"task-train-film-a", "task-test-film-a"} <= set(ids)
    assert {row["split"] for row in rows(manifest) if row["patient_id"] == "film-a"} == {"test"}


def test_letter_case_suffix_and_missing_prefix_are_forgiven(tmp_path):
    src = build_languide(tmp_path / "src", [(split, name.upper(), report) for split, name, report in ENTRIES], suffix=".JPG")
    table = src / "prompt" / "train.csv"
    table.write_text("\ufeff" + table.read_text().replace("mask_FILM-A.png", "film-a.PNG").replace("Image", "image"), encoding="utf-8")
    (src / "Train").rename(src / "train")
    read = rows(convert("languide", src, tmp_path / "out"))
    assert {row["case_id"] for row in read} == {f"FILM-{letter}" for letter in "ABCDEF"}
    assert {Path(row["image"]).suffix for row in read} == {".jpg"}


def test_soft_masks_are_cut_and_unclear_ones_left_to_the_check(tmp_path):
    src = build_prolearn(tmp_path / "src", ENTRIES)
    masks = sorted((src / "masks").iterdir())
    soft = np.array(Image.open(masks[0]))
    soft[10:20, 27:30] = 100
    Image.fromarray(soft).save(masks[0])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, soft.shape, dtype=np.uint8)).save(masks[1])
    Image.fromarray((np.array(Image.open(masks[2])) // 255).astype(np.uint8)).save(masks[2])  # 0 and 1 are two values
    manifest = convert("prolearn", src, tmp_path / "out")
    text = (tmp_path / "out" / "manifest.toml").read_text()
    assert "cut at half of their largest value: 1." in text and "names row and reason): 1." in text
    check = check_manifest(manifest)
    assert check.cases == 5 and [(skip.row, skip.column) for skip in check.skipped] == [(3, "mask")]
    cut = np.array(Image.open(tmp_path / "out" / "masks" / masks[0].name))
    assert set(np.unique(cut)) == {0, 255} and not cut[10:20, 27:30].any() and cut[10:20, 30:40].all()


def damage_image(src: Path) -> str:
    next(src.rglob("Train_Folder/img/film-a.png")).unlink()
    return r"Train_text.xlsx row 2: 'mask_film-a.png': no image of that name in .*img"


def damage_mask(src: Path) -> str:
    next(src.rglob("Train_Folder/labelcol/mask_film-b.png")).unlink()
    return r"Train_text.xlsx row 3: 'mask_film-b.png': no mask of that name in .*labelcol"


def damage_caption(src: Path) -> str:
    path = src / "Test_Folder" / "Test_text.xlsx"
    book = openpyxl.load_workbook(path)
    book.active["B2"] = None
    book.active.delete_rows(3)
    book.save(path)
    return r"3 problems beside 4 usable cases|Test_text.xlsx row 2: .*the report is empty|mask_film-f.png: mask without an entry"


def damage_double(src: Path) -> str:
    folder = src / "Val_Folder" / "img"
    (folder / "film-d.jpg").write_bytes((folder / "film-d.png").read_bytes())
    return r"2 images of that name in .*: film-d.jpg, film-d.png"


def damage_twice(src: Path) -> str:
    path = src / "Test_Folder" / "Test_text.xlsx"
    book = openpyxl.load_workbook(path)
    book.active.append(["mask_film-e.png", BOTH])
    book.save(path)
    return r"Test_text.xlsx row 4: 'mask_film-e.png': .*already .*row 2"


@pytest.mark.parametrize("damage", [damage_image, damage_mask, damage_caption, damage_double, damage_twice])
def test_what_does_not_match_is_named_and_can_be_left_out(damage, tmp_path):
    src = build_lvit(tmp_path / "src", ENTRIES)
    message = damage(src)
    with pytest.raises(ManifestError) as caught:
        convert("lvit", src, tmp_path / "out")
    for part in message.split("|"):
        assert re.search(part, str(caught.value)), (part, str(caught.value))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    manifest = convert("lvit", src, tmp_path / "out", on_bad_case="skip")
    assert 4 <= len(rows(manifest)) <= 6
    assert "Left out: " in (tmp_path / "out" / "manifest.toml").read_text()


def test_folders_tables_and_layouts_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="unknown layout 'coco'; known: languide, lvit, prolearn, sgseg"):
        convert("coco", tmp_path, tmp_path / "out")
    with pytest.raises(ManifestError, match="is not a folder"):
        convert("lvit", tmp_path / "nowhere", tmp_path / "out")
    for layout in LAYOUTS.names():
        with pytest.raises(ManifestError, match="does not look like this layout: expected"):
            convert(layout, tmp_path, tmp_path / "out")
    src = build_lvit(tmp_path / "src", ENTRIES)
    (src / "Train_Folder" / "labelcol").rename(src / "Train_Folder" / "elsewhere")
    with pytest.raises(ManifestError, match=r"labelcol is missing"):
        convert("lvit", src, tmp_path / "out")
    src = build_lvit(tmp_path / "src2", ENTRIES)
    (src / "Val_Folder" / "Val_text.xlsx").write_bytes(b"PK not a workbook")
    with pytest.raises(ManifestError, match=r"Val_text.xlsx is not a readable Excel workbook"):
        convert("lvit", src, tmp_path / "out")
    src = build_languide(tmp_path / "src3", ENTRIES)
    (src / "prompt" / "test.csv").write_bytes("Image,Description\nmask_film-e.png,Trüb\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"test.csv is not UTF-8 \(byte 36\)"):
        convert("languide", src, tmp_path / "out")
    (src / "prompt" / "test.csv").write_text("Name,Description\n")
    with pytest.raises(ManifestError, match=r"has no column 'Image'; it has: name, description"):
        convert("languide", src, tmp_path / "out")
    src = build_sgseg(tmp_path / "src4", ENTRIES)
    (src / "prompts" / "annotation.json").write_text('{"train": [{"image_path": 3}], "odd": []}')
    with pytest.raises(ManifestError, match="names the split 'odd'"):
        convert("sgseg", src, tmp_path / "out")


def test_nothing_is_overwritten(tmp_path):
    src = build_prolearn(tmp_path / "src", ENTRIES)
    (tmp_path / "out").mkdir()
    convert("prolearn", src, tmp_path / "out")  # an empty folder is fine
    with pytest.raises(ManifestError, match="not an empty folder"):
        convert("prolearn", src, tmp_path / "out")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ManifestError, match="cannot write"):
        convert("prolearn", build_prolearn(tmp_path / "src", ENTRIES), tmp_path / "file" / "out")
