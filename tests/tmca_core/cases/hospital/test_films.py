"""A folder of DICOM files becomes a manifest: the same pixels, pseudonyms for ids, and no trace of whose films they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from films import SECRETS, everything_in, film, pixels
from PIL import Image
from pydicom.uid import MPEG2MPML, JPEGLosslessSV1, SegmentationStorage, generate_uid

from tmca_core.cases.check import check_manifest
from tmca_core.cases.hospital.films import folder_of, import_films
from tmca_core.cases.hospital.objects import Wanted
from tmca_core.cases.hospital.pseudonyms import Pseudonyms
from tmca_core.cases.images import read_image
from tmca_core.cases.manifest import read_manifest
from tmca_core.cases.segments import load_codes, write_segments
from tmca_core.cli import main
from tmca_core.errors import ManifestError

IDS = Pseudonyms(b"k" * 32)


def rows(destination: Path) -> list[dict[str, str]]:
    with (destination / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_films_become_cases_with_the_pixels_that_their_reader_gives(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    first = film(source / "Krawczyk_Zbigniew" / "IM1", pixels(1))
    second = film(source / "b.dcm", pixels(2), PhotometricInterpretation="MONOCHROME1", AccessionNumber=None)
    other = film(source / "c.dcm", pixels(3), PatientID="MRN-9", ViewPosition="KRAW", StudyInstanceUID=first.StudyInstanceUID)
    done = import_films(folder_of(source), out, IDS, site="ghent")
    assert (done.objects, done.films, done.known, done.cases, done.patients, done.skipped) == (3, 3, 0, 3, 2, [])
    assert (done.personal, done.unsaid) == (3, 0)
    by_id = {row["case_id"]: row for row in rows(out)}
    assert by_id.keys() == {IDS.of("film", ds.SOPInstanceUID) for ds in (first, second, other)}
    for path, ds in ((source / "Krawczyk_Zbigniew" / "IM1", first), (source / "b.dcm", second), (source / "c.dcm", other)):
        row = by_id[IDS.of("film", ds.SOPInstanceUID)]
        np.testing.assert_array_equal(read_image(out / row["image"]), read_image(path))
        assert row["patient_id"] == IDS.of("patient", ds.PatientID) and row["study"] == IDS.of("study", ds.StudyInstanceUID)
        assert (row["site"], row["modality"], row["report"], row["mask"]) == ("ghent", "DX", "", "")
    assert by_id[IDS.of("film", first.SOPInstanceUID)]["accession"] == IDS.of("accession", "ACC-4411")
    assert by_id[IDS.of("film", second.SOPInstanceUID)]["accession"] == ""
    assert by_id[IDS.of("film", other.SOPInstanceUID)]["view"] == ""  # what is no code stays outside
    manifest = read_manifest(out / "manifest.csv", missing_reports="use")
    assert len(manifest.cases) == 3 and not manifest.skipped


@pytest.mark.parametrize(
    "attribute",
    ["NumberOfFrames", "WindowCenter", "ImageOrientationPatient", "PixelPaddingRangeLimit", "Rows", "PhotometricInterpretation"],
)
def test_a_damaged_header_costs_its_film_alone_and_no_word_of_it_is_told(
    tmp_path: Path, attribute: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The damage is a person's name, as a modality or a gateway that mixes up attributes writes it."""
    source, out, name = tmp_path / "in", tmp_path / "out", b"KRAWCZYK88"
    film(source / "b.dcm", pixels(2))
    if attribute == "Rows":  # two bytes by their kind, so that ten of them are no number
        film(source / "a.dcm", pixels(1))
        data = (source / "a.dcm").read_bytes()
        at = data.index(b"\x28\x00\x10\x00US\x02\x00")
        (source / "a.dcm").write_bytes(data[: at + 6] + b"\x0a\x00" + name + data[at + 10 :])
    elif attribute == "PixelPaddingRangeLimit":
        film(source / "a.dcm", pixels(1), PixelPaddingValue=0, PixelPaddingRangeLimit=1)
        data = (source / "a.dcm").read_bytes()
        at = data.index(b"\x28\x00\x21\x01")
        (source / "a.dcm").write_bytes(data[: at + 6] + b"\x0a\x00" + name + data[at + 10 :])
    else:
        held = {"ImageOrientationPatient": ["1111111111", 0, 0, 0, 1, 0], "PhotometricInterpretation": "1111111111"}
        film(source / "a.dcm", pixels(1), **{attribute: held.get(attribute, "1111111111")})
        data = (source / "a.dcm").read_bytes()
        assert data.count(b"1111111111") == 1
        (source / "a.dcm").write_bytes(data.replace(b"1111111111", name))
    done = import_films(folder_of(source), out, IDS)
    assert (done.films, [one.number for one in done.skipped]) == (1, [1])
    assert done.skipped[0].id
    said = "".join(capfd.readouterr()) + json.dumps(done.to_json(show=True)) + done.skipped[0].reason
    assert "KRAW" not in said.upper()


def test_nothing_that_is_written_names_anybody(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    ds = film(source / "Krawczyk_Zbigniew.dcm", StudyDescription="Krawczyk", SeriesDescription="St. Brendan", ViewPosition="KRAWCZYK")
    done = import_films(folder_of(source), out, IDS)
    held = everything_in(out)
    for secret in (*SECRETS, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID):
        assert secret.encode() not in held and secret.lower().encode() not in held.lower()
    assert (out.stat().st_mode | (out / "images").stat().st_mode) & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (out / "manifest.csv", *(out / "images").iterdir()))
    assert "Krawczyk" not in json.dumps(done.to_json())


SKIPS = [
    ({"Modality": "CT"}, "has the modality 'CT'"),
    ({"Modality": "KRAWCZYK"}, "has no modality that is asked for"),
    ({"BurnedInAnnotation": "YES"}, "text is burned into its pixels"),
    ({"NumberOfFrames": 2, "PixelData": pixels().tobytes() * 2}, "has 2 frames"),
    ({"ViewPosition": "LL"}, "is a lateral view"),
    ({"PresentationIntentType": "FOR PROCESSING"}, "raw values (FOR PROCESSING)"),
    ({"PatientID": ""}, "has no PatientID"),
    ({"StudyInstanceUID": None}, "has no StudyInstanceUID"),
    ({"Rows": None}, "a DICOM object without an image"),
    ({"PixelData": b"\0\0"}, "cannot be decoded"),
    ({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, "is stored mirrored"),
]


@pytest.mark.parametrize(("attributes", "reason"), SKIPS, ids=[reason for _, reason in SKIPS])
def test_what_is_no_usable_film_is_listed_with_its_reason(tmp_path: Path, attributes: dict[str, object], reason: str) -> None:
    ds = film(tmp_path / "in" / "Krawczyk.dcm", **attributes)
    film(tmp_path / "in" / "z.dcm", pixels(5))
    done = import_films(folder_of(tmp_path / "in"), tmp_path / "out", IDS)
    (skipped,) = done.skipped
    assert reason in skipped.reason and done.films == 1
    assert (skipped.number, skipped.id) == (1, IDS.of("film", ds.SOPInstanceUID))
    assert "Krawczyk" not in skipped.reason and "Krawczyk" not in json.dumps(done.to_json())
    assert done.to_json(show=True)["skipped"][0]["where"] == "Krawczyk.dcm"


def test_files_that_are_no_objects_are_listed_too(tmp_path: Path) -> None:
    source = tmp_path / "in"
    film(source / "a.dcm")
    film(source / "again.dcm", SOPInstanceUID=film(source / "a.dcm").SOPInstanceUID)
    whole = film(source / "cut.dcm") and (source / "cut.dcm").read_bytes()
    (source / "cut.dcm").write_bytes(whole[:200])
    (source / "readme.txt").write_text("Krawczyk")
    (tmp_path / "elsewhere.dcm").write_bytes(whole)
    (source / "link.dcm").symlink_to(tmp_path / "elsewhere.dcm")
    done = import_films(folder_of(source), tmp_path / "out", IDS)
    assert done.films == 1 and done.objects == 5
    found = {one.where: one.reason for one in done.skipped}
    assert found.keys() == {"again.dcm", "cut.dcm", "readme.txt", "link.dcm"}
    assert "came before in this import" in found["again.dcm"] and "leads out of the folder" in found["link.dcm"]
    assert "is no DICOM file" in found["readme.txt"]


def test_a_compressed_film_without_a_decoder_is_told_from_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    film(tmp_path / "in" / "a.dcm", syntax=JPEGLosslessSV1, PixelData=encapsulate([b"\xff\xd8\xff\xd9"]))
    film(tmp_path / "in" / "b.dcm", syntax=MPEG2MPML, PixelData=encapsulate([b"\xff\xd8\xff\xd9"]))
    done = import_films(folder_of(tmp_path / "in"), tmp_path / "out", IDS)
    first, second = (one.reason for one in done.skipped)
    assert "JPEG Lossless" in first and "no decoder is here" in first and "MPEG2" in second and "not supported" in second


def test_an_import_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    film(source / "a.dcm", pixels(1))
    import_films(folder_of(source), out, IDS, site="x")
    table = (out / "manifest.csv").read_text().replace(",x,", ",y,")
    (out / "manifest.csv").write_text(table)  # somebody has worked on it
    film(source / "b.dcm", pixels(2))  # the same patient, another day
    done = import_films(folder_of(source), out, IDS, site="x")
    assert (done.films, done.known, done.cases, done.patients) == (1, 1, 2, 1)
    assert [row["site"] for row in rows(out)] == ["y", "x"] and len({row["patient_id"] for row in rows(out)}) == 1
    with pytest.raises(ManifestError, match="made with another key"):
        import_films(folder_of(source), out, Pseudonyms(b"o" * 32))


def test_an_import_that_is_interrupted_keeps_what_it_has(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for k in range(3):
        film(source / f"{k}.dcm", pixels(k))

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_films(folder_of(source), out, IDS, progress=interrupt)
    assert len(rows(out)) == 2 == len(list((out / "images").iterdir()))
    done = import_films(folder_of(source), out, IDS)
    assert (done.films, done.known, done.cases) == (1, 2, 3)


def segmented(source: Path, name: str, picture: int, masks: dict[str, np.ndarray], **attributes: object) -> str:
    """A film and a segmentation of it; returns the film's case id."""
    ds = film(source / f"{name}.dcm", pixels(picture), **attributes)
    write_segments(source / f"{name}.dcm", masks, source / f"0-{name}-seg.dcm", codes=load_codes(None), algorithm="reader", version="1")
    return IDS.of("film", ds.SOPInstanceUID)


def square(at: int) -> np.ndarray:
    mask = np.zeros((40, 56), bool)
    mask[at : at + 10, at : at + 20] = True
    return mask


def test_segmentations_become_masks_of_their_films(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    source, out = tmp_path / "in", tmp_path / "out"
    case = segmented(source, "a", 1, {"Krawczyk's nodule": square(5)})  # the segmentation comes first by name
    film(source / "b.dcm", pixels(2))
    done = import_films(folder_of(source), out, IDS)
    assert (done.films, done.masks, done.skipped) == (2, 1, [])
    (row,) = [row for row in rows(out) if row["mask"]]
    assert row["case_id"] == case and row["mask"] == f"masks/{case}.png"
    np.testing.assert_array_equal(np.asarray(Image.open(out / row["mask"])), square(5).astype(np.uint8) * 255)
    assert b"Krawczyk" not in everything_in(out)
    report = check_manifest(out / "manifest.csv", missing_reports="use", size=32)
    assert report.cases == 2 and not report.skipped and report.facts["without_mask"] == 1
    again = import_films(folder_of(source), out, IDS)
    assert (again.masks, again.known) == (0, 2) and "has its masks already" in again.skipped[0].reason
    assert not list(out.rglob("*.new.png"))


def test_several_targets_are_taken_by_their_labels(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    source, out = tmp_path / "in", tmp_path / "out"
    case = segmented(source, "a", 1, {"Left Lung": square(3), "Opacity": square(9), "Heart": square(20)})
    segmented(source, "b", 2, {"Opacity": square(1)})
    done = import_films(folder_of(source), out, IDS, wanted=Wanted(targets=("opacity", "left-lung")))
    assert done.masks == 1 and "without a segment 'left-lung'" in done.skipped[0].reason
    (row,) = [row for row in rows(out) if row["mask:opacity"]]
    assert row["case_id"] == case and row["mask:left-lung"] == f"masks/{case}-left-lung.png"
    np.testing.assert_array_equal(np.asarray(Image.open(out / row["mask:left-lung"])) > 0, square(3))
    manifest = read_manifest(out / "manifest.csv", targets=("opacity", "left-lung"), missing_reports="use")
    assert sum(bool(one.masks) for one in manifest.cases) == 1 and not manifest.skipped
    done = import_films(folder_of(source), tmp_path / "one", IDS)
    assert "with 3 segments: name those" in done.skipped[0].reason


def test_a_segmentation_that_fits_no_film_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    source, out = tmp_path / "in", tmp_path / "out"
    segmented(source, "a", 1, {"x": square(5)}, BurnedInAnnotation="YES")  # its film is not taken
    film(source / "c.dcm", pixels(2), SOPClassUID=SegmentationStorage)
    film(source / "d.dcm", pixels(3))
    done = import_films(folder_of(source), out, IDS)
    reasons = [one.reason for one in done.skipped]
    assert len(reasons) == 3 and any("a film that is not in the table" in reason for reason in reasons), reasons
    assert [path.name for path in (out / "masks").iterdir()] == []


def test_the_command_lists_reasons_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, key = tmp_path / "in", tmp_path / "out", tmp_path / "site.key"
    film(source / "Krawczyk.dcm", BurnedInAnnotation=None)
    film(source / "ct.dcm", Modality="CT", SOPInstanceUID=generate_uid())
    code, _, err = tmca(capsys, "data", "dicom", source, out, "--key", key)
    assert code == 2 and f"tmca data key {key}" in err and not out.exists()
    assert tmca(capsys, "data", "key", key)[0] == 0
    code, said, err = tmca(capsys, "data", "dicom", source, out, "--key", key, "--site", "ghent")
    assert code == 0, err
    assert "skipped 1: has the modality 'CT'" in said and "1 films do not say whether text is burned in" in said
    assert "Krawczyk" not in said and "1 cases of 1 patients. Next: tmca data fhir" in said
    code, said, _ = tmca(capsys, "data", "dicom", source, out, "--key", key, "--modality", "ct", "--show", "--json")
    told = json.loads(said)
    assert code == 0 and told["films"] == 1 and told["skipped"][0]["where"] == "Krawczyk.dcm"
    code, _, err = tmca(capsys, "data", "dicom", tmp_path / "nowhere", out, "--key", key)
    assert code == 2 and "is no folder" in err
    code, _, err = tmca(capsys, "data", "dicom", source, tmp_path / "o2", "--key", key, "--modality", "XA")
    assert code == 2 and "none of the 2 objects" in err
    code, _, err = tmca(capsys, "data", "dicom", source, out, "--key", key, "--query", "StudyDate=2024")
    assert code == 2 and "--query is a search of a server" in err
