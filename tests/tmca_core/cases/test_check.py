"""Sides measured against masks, and the whole check of a manifest with everything that can be wrong with one."""

from __future__ import annotations

import csv
import logging
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.cases.check import check_manifest, measure_laterality, resolve_laterality
from tmca_core.cases.manifest import Manifest
from tmca_core.errors import LateralityError, ManifestError
from tmca_core.text.sides import swap_sides

SHARED = Path(__file__).parents[3] / "../shared/data"


def tensors(specs: list[tuple[str, str, str]]) -> CaseTensors:
    """(site, report, side of the mask in the IMAGE: l, r, m for the middle, b for both, e for empty)."""
    masks = torch.zeros((len(specs), 1, 8, 8), dtype=torch.uint8)
    cases = []
    for i, (site, report, side) in enumerate(specs):
        masks[i, 0, 2:5, {"l": slice(1, 3), "r": slice(5, 7), "m": slice(3, 5), "b": slice(0, 8), "e": slice(0, 0)}[side]] = 1
        cases.append(Case(str(i), str(i), site, Path("x"), (Path("x"),), report, report, "patient", row=i + 2))
    return CaseTensors(cases, torch.zeros((len(specs), 1, 8, 8), dtype=torch.uint8), masks)


def manifest_of(found: CaseTensors, **declared: str | None) -> Manifest:
    return Manifest(Path("cases.csv"), found.cases, [], {case.site: declared.get(case.site) for case in found.cases})  # type: ignore[arg-type, misc]


def test_patient_sides() -> None:
    found = tensors(
        [("s", "Opacity in the left lung.", "r")] * 4
        + [("s", "Opacity in the right lung.", "l")] * 5
        + [("s", "Opacity in the right lung.", "r")]
    )
    sides = measure_laterality(found.cases, found.masks)
    assert (sides.one_sided_cases, sides.patient_agreement, sides.image_agreement, sides.measured) == (10, 0.9, 0.1, "patient")


def test_who_does_not_speak() -> None:
    silent = [
        ("s", "Opacity in both lungs.", "l"),
        ("s", "Opacity.", "l"),
        ("s", "Left lung.", "e"),
        ("s", "No opacity in the left lung.", "l"),
    ]
    found = tensors(silent)
    assert measure_laterality(found.cases, found.masks).one_sided_cases == 0
    middle = tensors([("s", "Left lung.", "m"), ("s", "Left lung.", "b")])
    sides = measure_laterality(middle.cases, middle.masks)
    assert (sides.one_sided_cases, sides.patient_agreement, sides.image_agreement) == (2, 0.0, 0.0)
    assert measure_laterality([], torch.zeros((0, 1, 8, 8), dtype=torch.uint8)).measured is None


@pytest.mark.parametrize(
    ("right", "wrong", "measured"), [(4, 0, None), (5, 0, "patient"), (8, 2, "patient"), (7, 3, None), (1, 9, "image")]
)
def test_when_a_convention_counts_as_measured(right: int, wrong: int, measured: str | None) -> None:
    found = tensors([("s", "Left lung.", "r")] * right + [("s", "Left lung.", "l")] * wrong)
    assert measure_laterality(found.cases, found.masks).measured == measured


@settings(deadline=None, max_examples=50)
@given(
    specs=st.lists(
        st.tuples(st.just("s"), st.sampled_from(["Left lung.", "Right lung.", "Both lungs."]), st.sampled_from("lrmbe")), max_size=12
    )
)
def test_mirrors(specs: list[tuple[str, str, str]]) -> None:
    """Swapping every report, or mirroring every mask, exchanges the two agreements."""
    found = tensors(specs)
    here = measure_laterality(found.cases, found.masks)
    swapped = measure_laterality([replace(case, report=swap_sides(case.report)) for case in found.cases], found.masks)
    mirrored = measure_laterality(found.cases, found.masks.flip(3))
    assert swapped == mirrored
    assert (here.patient_agreement, here.image_agreement) == (swapped.image_agreement, swapped.patient_agreement)


def test_undeclared_sites_get_their_own_measured_convention(caplog: pytest.LogCaptureFixture) -> None:
    found = tensors([("a", "Left lung.", "r")] * 6 + [("b", "Left lung.", "l")] * 6 + [("c", "Left lung.", "l")] * 2)
    with caplog.at_level(logging.INFO):
        resolved = resolve_laterality(manifest_of(found), found, laterality="auto", trust=False)
    assert [case.laterality for case in resolved.cases] == ["patient"] * 6 + ["image"] * 6 + ["patient"] * 2
    assert [case.text for case in resolved.cases] == ["Left lung."] * 6 + ["Right lung."] * 6 + ["Left lung."] * 2
    assert all(case.report == "Left lung." for case in resolved.cases)
    assert "site 'b': reports use image sides, measured on 6 cases" in caplog.text
    assert "site 'c': side convention neither declared nor measurable" in caplog.text


def test_a_contradicted_declaration_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    found = tensors([("a", "Left lung.", "r")] * 6 + [("b", "Left lung.", "l")] * 9 + [("b", "Left lung.", "r")])
    manifest = manifest_of(found, a="image", b="image")
    message = (
        r"cases\.csv: site 'a' declares 'image' but 6 of 6 one-sided reports agree with PATIENT sides \(100\.0 %\).*--trust-laterality"
    )
    with pytest.raises(LateralityError, match=message):
        resolve_laterality(manifest, found, laterality="auto", trust=False)
    resolved = resolve_laterality(manifest, found, laterality="auto", trust=True)
    assert {case.laterality for case in resolved.cases} == {"image"} and "Gone on as told" in caplog.text
    with pytest.raises(LateralityError, match=r"site 'b' declares 'patient' but 9 of 10 .* IMAGE sides \(90\.0 %\)"):
        resolve_laterality(manifest_of(found, b="patient"), found, laterality="auto", trust=False)


def test_the_setting_is_a_declaration_where_there_is_none() -> None:
    found = tensors([("a", "Left lung.", "r")] * 6 + [("b", "Left lung.", "l")] * 3)
    with pytest.raises(LateralityError, match="site 'a'"):
        resolve_laterality(manifest_of(found), found, laterality="image", trust=False)
    resolved = resolve_laterality(manifest_of(found, a="patient"), found, laterality="image", trust=False)
    assert [case.laterality for case in resolved.cases] == ["patient"] * 6 + ["image"] * 3


def test_small_sites_are_measured_together() -> None:
    specs = [(site, "Left lung.", "l") for site in "abc" for _ in range(2)]
    found = tensors(specs)
    assert {case.laterality for case in resolve_laterality(manifest_of(found), found).cases} == {"image"}
    with pytest.raises(LateralityError, match=r"sites 'a', 'b', 'c' declare 'patient' but 6 of 6"):
        resolve_laterality(manifest_of(found, a="patient", b="patient", c="patient"), found)
    # a small site that declares something else is not counted with them
    assert [c.laterality for c in resolve_laterality(manifest_of(found, a="patient"), found).cases[:2]] == ["patient"] * 2


# --- the whole check ------------------------------------------------------------------------------------
def film(path: Path, side: str = "r", size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """A film with a bright patch on one side of the image; returns the mask of the patch."""
    rng = np.random.default_rng(len(path.name))
    pixels = rng.integers(20, 90, size, dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[20:40, 50 : 70 if side == "r" else 60] = 255
    if side == "l":
        mask = np.ascontiguousarray(mask[:, ::-1])
    Image.fromarray(np.where(mask > 0, np.uint8(200), pixels)).save(path)
    return mask


def dicom(path: Path, pixels: np.ndarray, photometric: str) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    if pixels.ndim == 3:
        ds.NumberOfFrames = pixels.shape[0]
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, photometric, 0
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    ds.save_as(path, enforce_file_format=True)


def header_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"0" * 99))
    )


def nasty(folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    """A manifest of six good cases, then one row of every bad input; returns (column, part of the reason) of each bad row."""
    import nibabel

    site = folder / "site"
    (site / "i").mkdir(parents=True)
    (site / "m").mkdir()
    for i in range(4):
        Image.fromarray(film(site / f"i/{i}.png")).save(site / f"m/{i}.png")
    good = [{"image": f"i/{i}.png", "mask": f"m/{i}.png"} for i in range(2)]
    good.append({"image": "i\\2.png", "mask": "m\\2.png"})
    dicom(site / "i/mono1", 4000 - np.arange(4800).reshape(60, 80), "MONOCHROME1")
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(site / "m/empty.png")
    good.append({"image": "i/mono1", "mask": "m/empty.png"})
    nibabel.Nifti1Image(np.zeros((80, 60, 1), np.int16), np.diag([-1, -1, 1, 1])).to_filename(site / "i/odd.nii.gz")
    good.append({"image": "i/odd.nii.gz", "mask": ""})
    good.append({"image": "i/3.png", "mask": "m/3.png", "patient_id": "twice", "split": "train"})

    whole = (site / "i/0.png").read_bytes()
    (site / "i/cut.png").write_bytes(whole[: len(whole) // 2])
    (site / "i/text.png").write_text("not an image")
    (site / "i/bomb.png").write_bytes(header_of(100_000, 100_000))
    dicom(site / "i/frames", np.zeros((2, 60, 80)), "MONOCHROME2")
    nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_filename(site / "i/volume.nii")
    film(folder / "secret.png")
    box = np.asarray(Image.open(site / "m/0.png"))
    Image.fromarray(box[:50]).save(site / "m/small.png")
    Image.fromarray(np.tile(np.arange(80, dtype=np.uint8), (60, 1))).save(site / "m/soft.png")
    Image.fromarray(np.dstack([box, box * 0, box * 0])).save(site / "m/red.png")
    (site / "m/cut.png").write_bytes((site / "m/0.png").read_bytes()[:60])
    bad: list[tuple[dict[str, str], str, str]] = [
        ({"image": "i/none.png"}, "image", "there is no file"),
        ({"image": "i/text.png"}, "image", "is no PNG"),
        ({"image": "i/cut.png"}, "image", "truncated"),
        ({"image": "i/bomb.png"}, "image", "100000 × 100000|far too large"),
        ({"image": "i/frames"}, "image", "has 2 frames"),
        ({"image": "i/volume.nii"}, "image", "volume of 8 × 8 × 8"),
        ({"image": "../secret.png"}, "image", "leads out"),
        ({"image": str(folder / "secret.png")}, "image", "absolute"),
        ({"image": "C:\\films\\1.png"}, "image", "absolute"),
        ({"mask": "m/none.png"}, "mask", "there is no file"),
        ({"mask": "m/small.png"}, "mask", "80 × 50 pixels, its image 80 × 60"),
        ({"mask": "m/soft.png"}, "mask", "soft"),
        ({"mask": "m/red.png"}, "mask", "coloured"),
        ({"mask": "m/cut.png"}, "mask", "truncated"),
        ({"report": " "}, "report", "is empty"),
        ({"case_id": "g0"}, "case_id", "already the case of row 2"),
        ({"patient_id": "twice", "split": "test"}, "split", "'test' here and 'train' in row 7"),
        ({"split": "holdout"}, "split", "unknown"),
        ({"laterality": "both"}, "laterality", "unknown"),
    ]
    path = site / "cases.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["case_id", "patient_id", "image", "mask", "report", "split", "laterality"])
        writer.writeheader()
        for i, row in enumerate(good):
            writer.writerow({"case_id": f"g{i}", "patient_id": f"g{i}", "report": "Left lung.", **row})
        for i, (row, _, _) in enumerate(bad):
            writer.writerow(
                {"case_id": f"b{i}", "patient_id": f"b{i}", "report": "Left lung.", "image": "i/0.png", "mask": "m/0.png", **row}
            )
    return path, [(column, reason) for _, column, reason in bad]


def test_every_bad_input_has_its_row_column_and_reason(tmp_path: Path) -> None:
    path, expected = nasty(tmp_path)
    report = check_manifest(path)
    found = report.to_json()
    assert [(skip["row"], skip["column"]) for skip in found["skipped"]] == [(8 + i, column) for i, (column, _) in enumerate(expected)]
    for skip, (_, reason) in zip(found["skipped"], expected, strict=True):
        assert any(part in skip["reason"] for part in reason.split("|")), (skip, reason)
        assert len(skip["reason"]) < 400 and "Traceback" not in skip["reason"]
    assert (found["cases"], found["patients"], found["sites"], found["rows"]) == (6, 6, {"all": 6}, 25)
    assert (found["empty_masks"], found["without_mask"]) == (1, 1)
    assert found["splits"] == {"unassigned": 5, "train": 1}
    assert found["laterality"] == {"declared": None, "measured": None, "agreement": 1.0, "one_sided_cases": 4}
    assert any("1 masks are empty (row 5)" in warning for warning in found["warnings"])
    assert any("one grey all over (row 6)" in warning for warning in found["warnings"])
    assert "error" not in found


def sided(folder: Path, sides: str, reports: str = "Left lung.", extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["case_id,patient_id,image,mask,report,site"]
    for i, side in enumerate(sides):
        Image.fromarray(film(folder / f"{'x' * (i + 1)}.png", side)).save(folder / f"m{i}.png")
        lines.append(f"c{i},p{i},{'x' * (i + 1)}.png,m{i}.png,{reports},north")
    (folder / "cases.csv").write_text("\n".join(lines))
    if extra:
        (folder / "manifest.toml").write_text(extra)
    return folder / "cases.csv"


def test_a_wrong_declaration_is_an_error_with_the_agreement(tmp_path: Path) -> None:
    path = sided(tmp_path / "a", "rrrrrl", extra='laterality = "image"\nmodality = "CR"')
    report = check_manifest(path)
    assert "site 'north' declares 'image' but 5 of 6 one-sided reports agree with PATIENT sides (83.3 %)" in report.error
    assert report.to_json()["error"] == report.error and report.to_json()["modality"] == "CR"
    assert report.laterality == {"declared": "image", "measured": "patient", "agreement": 5 / 6, "one_sided_cases": 6}
    trusted = check_manifest(path, trust=True)
    assert not trusted.error and any("declares 'image'" in warning for warning in trusted.warnings)
    assert check_manifest(sided(tmp_path / "b", "llllll"), laterality="patient").error
    assert not check_manifest(sided(tmp_path / "b", "llllll")).error


def test_sites_that_differ_are_mixed(tmp_path: Path) -> None:
    path = sided(tmp_path / "a", "rrrrrllllll")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace("north", "south") if i > 5 else line for i, line in enumerate(lines)))
    report = check_manifest(path)
    assert report.laterality == {"declared": None, "measured": "mixed", "agreement": 1.0, "one_sided_cases": 11}
    assert report.site_laterality["south"]["measured"] == "image"


def test_one_image_under_two_patients_is_a_warning(tmp_path: Path) -> None:
    path = sided(tmp_path / "a", "rrr")
    (path.parent / "x.png").write_bytes((path.parent / "xxx.png").read_bytes())
    assert any("2 cases share one image between different patients (rows 2, 4)" in warning for warning in check_manifest(path).warnings)


def test_nothing_usable(tmp_path: Path) -> None:
    path = sided(tmp_path / "a", "r")
    (path.parent / "x.png").unlink()
    report = check_manifest(path)
    assert "none of the 1 rows can be used" in report.error and len(report.skipped) == 1
    path.write_text("case_id,image\n")
    with pytest.raises(ManifestError, match="column 'patient_id', 'report' is missing"):
        check_manifest(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cxr-lungs", (276, 75, "patient", 1.0)), ("cxr-infection", (6, 6, None, None)), ("nuclei-he", (44, 44, "image", None))],
)
def test_real_data(name: str, expected: tuple[int, int, str | None, float | None]) -> None:
    path = SHARED / name / "cases.csv"
    if not path.exists():
        pytest.skip("the development data are not here")
    report = check_manifest(path)
    cases, patients, measured, agreement = expected
    assert (report.cases, report.patients, report.laterality["measured"]) == (cases, patients, measured)
    assert not report.skipped and not report.error
    assert agreement is None or report.laterality["agreement"] == agreement
    if name == "cxr-lungs":
        error = check_manifest(path, laterality="image").error
        assert "276 of 276 one-sided reports agree with PATIENT sides (100.0 %)" in error
