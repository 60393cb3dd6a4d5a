"""The manifest: rows, columns and reasons, exact to the line."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tmca_core.cases.manifest import Manifest, read_manifest
from tmca_core.errors import CaseError, ManifestError

HEADER = ["case_id", "patient_id", "image", "report", "mask", "site", "laterality", "split", "ward"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "site"
    (home / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "Film.png"):
        (home / "images" / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    return home


def table(*rows: dict[str, str], columns: list[str] | None = None) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns or HEADER)
    writer.writeheader()
    for number, row in enumerate(rows):
        base = {"case_id": f"c{number}", "patient_id": f"p{number}", "image": "images/a.png", "report": "Left lung."}
        writer.writerow({name: value for name, value in {**base, **row}.items() if name in (columns or HEADER)})
    return out.getvalue()


def read(folder: Path, text: str | bytes, **options: str) -> Manifest:
    path = folder / "cases.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_manifest(path, **options)  # type: ignore[arg-type]


def skips(manifest: Manifest) -> list[tuple[int, str]]:
    return [(skip.row, skip.column) for skip in manifest.skipped]


def test_a_good_row_becomes_a_case(folder: Path) -> None:
    manifest = read(folder, table({"mask": "images/b.png", "site": "north", "split": "Test", "ward": " 7b"}, {}))
    first, second = manifest.cases
    assert (first.case_id, first.patient_id, first.site, first.split, first.row) == ("c0", "p0", "north", "test", 2)
    assert first.image == folder / "images/a.png" and first.masks == (folder / "images/b.png",)
    assert first.metadata == {"ward": " 7b"}
    assert (second.site, second.masks, second.split, second.row) == ("all", (), "", 3)
    assert manifest.declared == {"north": None, "all": None} and not manifest.skipped and manifest.rows == 2


def test_only_the_required_columns_are_required(folder: Path) -> None:
    manifest = read(folder, table({}, columns=["case_id", "patient_id", "image", "report"]))
    assert len(manifest.cases) == 1
    assert any("no 'mask' column" in warning for warning in manifest.warnings)


@pytest.mark.parametrize(
    ("values", "column", "reason"),
    [
        ({"case_id": " "}, "case_id", "is empty"),
        ({"patient_id": ""}, "patient_id", "is empty"),
        ({"image": ""}, "image", "is empty"),
        ({"report": " \n "}, "report", "is empty"),
        ({"case_id": "c0"}, "case_id", "already the case of row 2"),
        ({"image": "images/none.png"}, "image", "there is no file"),
        ({"image": "images/film.png"}, "image", "there is 'Film.png': upper and lower case differ"),
        ({"image": "pictures/a.png"}, "image", "nor a folder 'pictures'"),
        ({"mask": "images/none.png"}, "mask", "there is no file"),
        ({"image": "images"}, "image", "is a folder"),
        ({"image": "/etc/hostname"}, "image", "absolute"),
        ({"image": "~/a.png"}, "image", "absolute"),
        ({"image": "C:\\films\\a.png"}, "image", "absolute"),
        ({"image": "c:a.png"}, "image", "absolute"),
        ({"image": "\\\\server\\share\\a.png"}, "image", "absolute"),
        ({"image": "../outside.png"}, "image", "leads out"),
        ({"image": "images/../../outside.png"}, "image", "leads out"),
        ({"image": "images\\..\\..\\outside.png"}, "image", "leads out"),
        ({"image": "images/link.png"}, "image", "leads out"),
        ({"image": "images/loop.png"}, "image", ""),
        ({"image": "images/" + "x" * 5000}, "image", "not a usable path"),
        ({"image": "images/a\x00.png"}, "image", "not a usable path"),
        ({"split": "training"}, "split", "is unknown; it is train, val, test"),
        ({"laterality": "radiological"}, "laterality", "is unknown; it is patient, image"),
        ({"site": "../../etc"}, "site", "cannot name a folder"),
        ({"site": ".hidden"}, "site", "cannot name a folder"),
    ],
)
def test_a_bad_row_is_named(folder: Path, values: dict[str, str], column: str, reason: str) -> None:
    (folder / "images/link.png").symlink_to(folder.parent / "outside.png")
    (folder / "images/loop.png").symlink_to(folder / "images/loop.png")
    text = table({}, values, {})
    manifest = read(folder, text)
    assert skips(manifest) == [(3, column)]
    assert reason in manifest.skipped[0].reason
    assert [case.row for case in manifest.cases] == [2, 4]
    with pytest.raises(CaseError, match=f"row 3, column '{column}'") as caught:
        read(folder, text, on_bad_case="fail")
    assert caught.value.row == 3 and caught.value.exit_code == 2


def test_backslashes_are_read_as_slashes(folder: Path) -> None:
    assert read(folder, table({"image": "images\\b.png"})).cases[0].image == folder / "images/b.png"


def test_links_and_dots_within_the_folder_are_fine(folder: Path) -> None:
    (folder / "images/link.png").symlink_to(folder / "images/a.png")
    assert not read(folder, table({"image": "images/link.png"}, {"image": "images/../images/a.png"})).skipped


def test_a_manifest_reached_through_a_linked_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "cases.csv").write_text(table({}))
    (tmp_path / "alias").symlink_to(folder)
    assert len(read_manifest(tmp_path / "alias" / "cases.csv").cases) == 1


def test_one_patient_in_two_splits_names_both_rows(folder: Path) -> None:
    rows = [{"split": "train"}, {"patient_id": "p0", "split": "test"}, {"patient_id": "p0", "split": "train"}, {"patient_id": "p0"}]
    manifest = read(folder, table(*rows))
    assert skips(manifest) == [(3, "split"), (5, "split")]
    assert "'test' here and 'train' in row 2" in manifest.skipped[0].reason
    assert "no split here and 'train' in row 2" in manifest.skipped[1].reason


def test_a_bad_row_does_not_speak_for_its_patient_or_id(folder: Path) -> None:
    manifest = read(folder, table({"split": "train", "image": "none"}, {"case_id": "c0", "patient_id": "p0", "split": "test"}))
    assert skips(manifest) == [(2, "image")] and manifest.cases[0].split == "test"


def test_one_patient_at_two_sites_is_a_warning(folder: Path) -> None:
    manifest = read(folder, table({"site": "north"}, {"site": "south", "patient_id": "p0"}))
    assert len(manifest.cases) == 2
    assert manifest.warnings == ("patient 'p0' occurs at sites north, south: right for one person; else prefix ids with the site.",)


# --- the table ------------------------------------------------------------------------------------------
def test_rows_are_records_not_lines(folder: Path) -> None:
    text = "\ufeff" + table({"report": 'Left\nlung,\r\n"clear".'}, {}).replace("\r\nc1", "\r\n\r\nc1") + "c2,p2,images/none.png,x,,,,,\r\n"
    manifest = read(folder, text)
    assert [case.row for case in manifest.cases] == [2, 4]  # row 3 is a blank line
    assert manifest.cases[0].report == 'Left\nlung,\r\n"clear".'
    assert skips(manifest) == [(5, "image")]


def test_a_ragged_row(folder: Path) -> None:
    manifest = read(folder, table({}) + "c8,p8,images/a.png,Left lung, clear,,,,,\nc9,p9,images/a.png\n")
    assert skips(manifest) == [(3, "*"), (4, "*")]
    assert "has 10 fields, the header 9" in manifest.skipped[0].reason and "double quotes" in manifest.skipped[0].reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (",".join(HEADER).encode() + b"\n", "has a header and no rows"),
        (b"case_id,image,report\nc,i,r\n", "column 'patient_id' is missing.*found: case_id, image, report"),
        (b"case_id;patient_id;image;report\nc;p;i;r\n", "separated by ';'"),
        (b"case_id\tpatient_id\timage\treport\n", "separated by 'tab'"),
        (b"case_id,patient_id,image,report,image\n", "row 1: column 'image' stands 2 times"),
        (b'case_id,patient_id,image,report\nc,p,i,"open\n\n', "row 2: not well-formed CSV"),
        ("case_id,patient_id,image,report\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04rest", "is a spreadsheet"),
        (b"PAR1 but then nonsense", "Parquet"),
        (b"case_id,patient_id,image,report\nc,p,none.png,r\n", "none of the 1 rows.*row 2, column 'image'"),
    ],
)
def test_a_table_that_cannot_be_used(folder: Path, content: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(folder, content)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_named_with_row_column_and_byte(folder: Path, mark: bytes) -> None:
    good = mark + table({"report": "One\nline."}).encode()
    bad = good + "c1,p1,images/a.png,Epanchement à gauche,,,,,\r\n".encode("latin-1")
    with pytest.raises(ManifestError, match=rf"row 3, column 'report': byte {bad.index(0xE0)} \(0xe0\)"):
        read(folder, bad)


def test_a_missing_table(folder: Path) -> None:
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        read_manifest(folder / "nothing.csv")
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        read_manifest(folder)


def test_parquet_says_the_same_as_csv(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    columns = {
        "case_id": ["c0", "c1", "c0"],
        "patient_id": [7.0, 8.0, None],
        "image": ["images/a.png"] * 3,
        "report": ["Left lung.", "Right lung.", "x"],
        "age": [61, None, 40],
    }
    parquet.write_table(pyarrow.table(columns), folder / "cases.parquet")
    manifest = read_manifest(folder / "cases.parquet")
    assert [case.patient_id for case in manifest.cases] == ["7", "8"]
    assert [case.metadata["age"] for case in manifest.cases] == ["61", ""]
    assert skips(manifest) == [(4, "patient_id")]
    whole = (folder / "cases.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match="damaged or truncated"):
        read_manifest(folder / "cut.parquet")


# --- sides ----------------------------------------------------------------------------------------------
def test_text_is_in_patient_sides(folder: Path) -> None:
    manifest = read(
        folder, table({"site": "n", "laterality": "image"}, {"site": "n"}, {"site": "s", "laterality": "patient"}, {"site": "t"})
    )
    assert [(case.report, case.text, case.laterality) for case in manifest.cases] == [
        ("Left lung.", "Right lung.", "image"),
        ("Left lung.", "Right lung.", "image"),  # an empty cell takes its site's word
        ("Left lung.", "Left lung.", "patient"),
        ("Left lung.", "Left lung.", "patient"),
    ]
    assert manifest.declared == {"n": "image", "s": "patient", "t": None}
    assert read(folder, table({}), laterality="image").cases[0].text == "Right lung."
    assert read(folder, table({}), laterality="image").declared == {"all": None}


def test_one_site_has_one_convention(folder: Path) -> None:
    manifest = read(folder, table({"laterality": "image"}, {"laterality": "patient"}))
    assert skips(manifest) == [(3, "laterality")] and "'image' in row 2" in manifest.skipped[0].reason


def test_the_sidecar(folder: Path) -> None:
    (folder / "manifest.toml").write_text(
        'laterality = "image"\nmodality = "CR"\nlicence = "own"\nsource = "PACS"\nlateralty = "patient"\n'
    )
    manifest = read(folder, table({}, {"site": "s", "laterality": "patient"}))
    assert manifest.declared == {"all": "image", "s": "patient"}
    assert (manifest.modality, manifest.licence, manifest.source) == ("CR", "own", "PACS")
    assert [case.text for case in manifest.cases] == ["Right lung.", "Left lung."]
    assert any("'lateralty' is not used" in warning for warning in manifest.warnings)


@pytest.mark.parametrize("content", ['laterality = "left"', "laterality = 1", "modality = [", "source = 3"])
def test_a_bad_sidecar(folder: Path, content: str) -> None:
    (folder / "manifest.toml").write_text(content)
    with pytest.raises(ManifestError, match=r"manifest\.toml"):
        read(folder, table({}))


# --- properties -----------------------------------------------------------------------------------------
cell = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reports=st.lists(cell, min_size=1, max_size=6))
def test_every_row_is_either_a_case_or_a_skip(folder: Path, reports: list[str]) -> None:
    text = table({"report": "anchor"}, *({"report": report} for report in reports))
    manifest = read(folder, text)
    assert sorted([*(case.row for case in manifest.cases), *(skip.row for skip in manifest.skipped)]) == list(range(2, len(reports) + 3))
    for case in manifest.cases[1:]:
        assert case.report == reports[case.row - 3].strip()
    for skip in manifest.skipped:
        assert skip.column == "report" and not reports[skip.row - 3].strip()


@example(parts=["a.png", "..", "images", "a.png"], slash="/")
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["..", ".", "images", "a.png", "outside.png", "", "/", "\\", "C:", "link", "\x00"]), max_size=6),
    slash=st.sampled_from("/\\"),
)
def test_no_path_leaves_the_folder(folder: Path, parts: list[str], slash: str) -> None:
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(folder.parent)
    manifest = read(folder, table({}, {"image": slash.join(parts)}))
    for case in manifest.cases:
        assert os.path.realpath(case.image).startswith(os.path.realpath(folder) + "/")
        assert case.image.is_file()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_one_error(folder: Path, data: bytes) -> None:
    with pytest.raises(ManifestError):
        read(folder, b"case_id,patient_id,image,report\n" + data)
