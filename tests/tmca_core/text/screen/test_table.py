"""`tmca data screen` and its gate: rows, columns and kinds; exit codes; waivers; DICOM headers; never the identifier itself."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydantic import ValidationError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from tmca_core.cli import main
from tmca_core.errors import ConfigError, ManifestError, PolicyRefusal
from tmca_core.text.screen.gate import ReportRules, hold_reports
from tmca_core.text.screen.headers import read_header
from tmca_core.text.screen.presidio import _engine, presidio_findings
from tmca_core.text.screen.table import screen_manifest

HARMLESS = "Left basal consolidation, Kerley B lines."
NAMED = "Discussed with Dr Quillfeather on 3 May 2021."
SECRETS = ("Quillfeather", "3 May", "Quackenbush")


def manifest(folder: Path, reports: list[str], images: dict[int, Path] | None = None, **columns: str) -> Path:
    Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(folder / "x.png")
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "image", "report", *columns])
        for i, report in enumerate(reports):
            writer.writerow([f"c{i}", f"p{i}", (images or {}).get(i, Path("x.png")).name, report, *columns.values()])
    return folder / "cases.csv"


def dicom(path: Path, **attributes: Any) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Rows = ds.Columns = 8
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(64)
    for name, value in attributes.items():
        setattr(ds, name, value)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_harmless_manifest_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "screen", manifest(tmp_path, [HARMLESS] * 3))
    assert (code, err) == (0, "") and "0 of 3 rows" in out and "not a guarantee" in out


def test_rows_columns_and_kinds_without_the_identifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, [HARMLESS, NAMED, HARMLESS, "Mrs Quackenbush coughs."])
    code, out, err = run(capsys, "screen", path)
    assert code == 2 and "row 3, column 'report': name at character 19, date at character 35" in out
    assert "2 of 4 rows hold what may identify a person (name 2, date 1)" in err and "Traceback" not in err
    assert not any(secret in out + err for secret in SECRETS)
    code, out, err = run(capsys, "screen", path, "--json")
    told = json.loads(out)
    assert code == 2 and (told["rows"], told["flagged"], told["kinds"]) == (4, 2, {"name": 2, "date": 1})
    assert told["cells"] == [
        {"row": 3, "column": "report", "kinds": ["name", "date"]},
        {"row": 5, "column": "report", "kinds": ["name"]},
    ]
    assert not any(secret in out + err for secret in SECRETS)


def test_show_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, [NAMED])
    code, out, err = run(capsys, "screen", path, "--show")
    assert code == 2 and "name 'Quillfeather', date '3 May 2021'" in out and "Quillfeather" not in err
    assert json.loads(run(capsys, "screen", path, "--show", "--json")[1])["cells"][0]["found"] == ["Quillfeather", "3 May 2021"]


def test_rows_that_training_would_skip_are_screened_too(tmp_path: Path) -> None:
    path = manifest(tmp_path, [HARMLESS, NAMED], images={1: Path("missing.png")})
    assert [cell.row for cell in screen_manifest(path).cells] == [3]


def test_further_columns_are_screened_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, [HARMLESS], note=NAMED)
    assert run(capsys, "screen", path)[0] == 0
    code, out, _ = run(capsys, "screen", path, "--column", "report", "--column", "note")
    assert code == 2 and "row 2, column 'note'" in out
    assert run(capsys, "screen", path, "--column", "*")[0] == 2
    code, _, err = run(capsys, "screen", path, "--column", "nte")
    assert code == 2 and "column 'nte' is missing" in err


def test_languages_and_allowed_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, ["Frau Quackenbush wurde am 3.5. entlassen."])
    assert run(capsys, "screen", path, "--languages", "de")[0] == 2
    assert "unknown language of reports 'fr'" in run(capsys, "screen", path, "--languages", "fr")[2]
    path = manifest(tmp_path, ["Held in the Zorblat Quixler frame."])
    assert run(capsys, "screen", path)[0] == 2
    assert run(capsys, "screen", path, "--allow", "Zorblat", "--allow", "Quixler")[0] == 0


def test_data_check_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", manifest(tmp_path, [HARMLESS, NAMED, NAMED]), "--json")
    told = json.loads(out)
    assert code == 0 and told["identifiers"] == {"reports": 2, "kinds": {"name": 2, "date": 2}}
    assert any("2 reports hold what may identify a person" in warning for warning in told["warnings"])
    assert "Quillfeather" not in out


def test_dicom_headers_and_burned_in_text_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = dicom(tmp_path / "a.dcm", PatientName="Quackenbush^Ada", PatientID="4471902", BurnedInAnnotation="YES")
    clean = dicom(tmp_path / "b.dcm", PatientName="ANON^17", PatientID="p17", PatientIdentityRemoved="YES", BurnedInAnnotation="NO")
    unsaid = dicom(tmp_path / "c.dcm", PatientName="", InstitutionName="Quackenbush Hospital")
    path = manifest(tmp_path, [HARMLESS] * 4, images={0: named, 1: clean, 2: unsaid})
    code, out, err = run(capsys, "screen", path)
    assert (code, err) == (0, "")
    assert "warning: row 2, DICOM image: text is burned into the pixels; header holds PatientName, PatientID" in out
    assert "row 4, DICOM image: header holds InstitutionName" in out and "row 3" not in out
    assert "1 of 3 DICOM images do not say whether text is burned in" in out and "Quackenbush" not in out
    told = json.loads(run(capsys, "screen", path, "--json")[1])
    assert told["headers"][0] == {"row": 2, "tags": ["PatientName", "PatientID"], "burned_in": "YES"}
    assert (told["dicom_images"], told["burned_in_unsaid"]) == (3, 1)


def test_a_damaged_dicom_is_left_to_data_check(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    whole = dicom(tmp_path / "b.dcm", PatientName="Quackenbush^Ada").read_bytes()
    for damaged in (bytes(128) + b"DICM" + b"\xff" * 40, whole[:200], whole[:133], b"", b"no image at all"):
        path.write_bytes(damaged)
        header = read_header(path, 2)
        assert header is None or header.tags == ()
    assert read_header(tmp_path / "none.dcm", 2) is None


def test_the_gate_blocks_by_default(tmp_path: Path) -> None:
    path = manifest(tmp_path, [HARMLESS, NAMED])
    with pytest.raises(PolicyRefusal, match=r"1 of 2 rows hold what may identify a person \(name 1, date 1\)") as refusal:
        hold_reports(path, ReportRules())
    assert refusal.value.exit_code == 3 and not any(secret in str(refusal.value) for secret in SECRETS)
    passed = hold_reports(manifest(tmp_path, [HARMLESS]), ReportRules())
    assert passed is not None and passed.kinds == {}


def test_a_waiver_has_a_reason_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = manifest(tmp_path, [HARMLESS, NAMED])
    with caplog.at_level(logging.WARNING):
        screened = hold_reports(path, ReportRules(waived="ethics vote 12/2025 covers staff names"))
    assert screened is not None and screened.flagged == 1
    assert "ethics vote 12/2025" in caplog.text and "1 of 2 rows" in caplog.text and "Quillfeather" not in caplog.text
    with pytest.raises(ValidationError, match="is a reason in words"):
        ReportRules(waived="yes")
    with pytest.raises(PolicyRefusal, match=r"\(name 1\)"):
        hold_reports(path, ReportRules(waived="dates were shifted at random", waived_kinds=("date",)))
    with pytest.raises(ValidationError, match="'dates' is no kind of identifier"):
        ReportRules(waived_kinds=("dates",))


def test_a_site_that_does_not_look_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert hold_reports(manifest(tmp_path, [NAMED]), ReportRules(screen=False)) is None
    assert "nobody has looked for identifiers" in caplog.text


def test_headers_block_where_the_site_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = manifest(tmp_path, [HARMLESS], images={0: dicom(tmp_path / "a.dcm", PatientName="Quackenbush^Ada")})
    with caplog.at_level(logging.WARNING):
        hold_reports(path, ReportRules())
    assert "1 of 1 DICOM images" in caplog.text and "Quackenbush" not in caplog.text
    with pytest.raises(PolicyRefusal, match=r"reports\.headers"):
        hold_reports(path, ReportRules(headers=True))


def test_a_pass_is_remembered_until_manifest_or_rules_change(tmp_path: Path) -> None:
    path, passed = manifest(tmp_path, [HARMLESS]), tmp_path / "state" / "passed"
    assert hold_reports(path, ReportRules(), passed) is not None
    assert hold_reports(path, ReportRules(), passed) is None
    assert hold_reports(path, ReportRules(languages=("en", "de")), passed) is not None
    assert hold_reports(path, ReportRules(headers=True), passed) is not None  # images may have changed
    path = manifest(tmp_path, [HARMLESS, NAMED])
    with pytest.raises(PolicyRefusal):
        hold_reports(path, ReportRules(), passed)
    for _ in range(2):  # what is waived is looked at, and logged, each time
        assert hold_reports(path, ReportRules(waived="ethics vote 12/2025 covers it"), passed) is not None
    with pytest.raises(PolicyRefusal):
        hold_reports(path, ReportRules(), passed)


def test_a_manifest_that_cannot_be_read_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        hold_reports(tmp_path / "none.csv", ReportRules())
    (tmp_path / "cases.csv").write_text("case_id,patient_id,image\nc,p,i\n")
    with pytest.raises(ManifestError, match="column 'report' is missing"):
        hold_reports(tmp_path / "cases.csv", ReportRules())


def test_presidio_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "presidio_analyzer", None)  # as where it is not installed
    _engine.cache_clear()
    with pytest.raises(ConfigError, match=r"tmca-fl\[deid\]"):
        screen_manifest(manifest(tmp_path, [HARMLESS]), presidio=True)


def test_presidios_findings_are_added_without_eponyms(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        def __init__(self, entity: str, start: int, end: int, score: float) -> None:
            self.entity_type, self.start, self.end, self.score = entity, start, end, score

    text = "Kerley lines seen by tomasz."

    class Engine:
        def analyze(self, text: str, language: str, entities: list[str]) -> list[Result]:
            assert "PERSON" in entities and "LOCATION" not in entities
            return [Result("PERSON", 0, 6, 0.85), Result("PERSON", 21, 27, 0.85), Result("PERSON", 7, 12, 0.3)]

    monkeypatch.setattr("tmca_core.text.screen.presidio._engine", Engine)
    assert [(one.kind, text[one.start : one.end]) for one in presidio_findings(text, ("en",))] == [("name", "tomasz")]
