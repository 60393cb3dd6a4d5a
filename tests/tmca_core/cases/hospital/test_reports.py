"""Reports from FHIR find their films by pseudonym; every other one is listed with the reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from films import film, pixels
from hospital_services import HospitalServices

from tmca_core.cases.hospital.films import folder_of, import_films
from tmca_core.cases.hospital.pseudonyms import Pseudonyms
from tmca_core.cases.hospital.reports import Matched, import_reports
from tmca_core.cases.hospital.resources import Resources
from tmca_core.cli import main
from tmca_core.errors import ManifestError

ACSN = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}


def report(text: str = "Opacity on the left.", id: str = "r", **fields: Any) -> dict[str, Any]:
    return {"resourceType": "DiagnosticReport", "id": id, "status": "final", "conclusion": text, "issued": "2024-03-01T10:00:00Z", **fields}


def accession(number: str) -> dict[str, Any]:
    return {"type": ACSN, "value": number}


class Films:
    """A manifest of three films: two of one study and patient, one of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids = Pseudonyms.create(folder / "site.key")
        first = film(folder / "in" / "a.dcm", pixels(1))
        film(folder / "in" / "b.dcm", pixels(2), StudyInstanceUID=first.StudyInstanceUID)
        other = film(folder / "in" / "c.dcm", pixels(3), PatientID="MRN-2", AccessionNumber="ACC-2")
        self.study, self.other = first.StudyInstanceUID, other.StudyInstanceUID
        self.manifest = import_films(folder_of(folder / "in"), folder / "out", self.ids).manifest

    def texts(self) -> list[str]:
        with self.manifest.open(newline="") as file:
            return [row["report"] for row in csv.DictReader(file)]

    def bring(self, *resources: dict[str, Any], **options: Any) -> Matched:
        found = Resources()
        for number, one in enumerate(resources):
            found.add(f"Krawczyk.json, line {number}", one)
        return import_reports(self.manifest, found, self.ids, **options)


@pytest.fixture
def films(tmp_path: Path) -> Films:
    return Films(tmp_path)


def uid(study: str) -> dict[str, str]:
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}


def test_each_way_from_a_report_to_its_films(films: Films) -> None:
    study = {"resourceType": "ImagingStudy", "id": "s", "identifier": [uid(films.study)]}
    ways: list[tuple[dict[str, Any], ...]] = [
        (report(imagingStudy=[{"reference": "ImagingStudy/s"}]), study),
        (report(imagingStudy=[{"reference": "#in"}], contained=[{**study, "id": "in"}]),),
        (report(imagingStudy=[{"identifier": uid(films.study)}]),),
        (
            report(basedOn=[{"reference": "ServiceRequest/o"}]),
            {"resourceType": "ServiceRequest", "id": "o", "identifier": [accession("ACC-4411")]},
        ),
        (report(basedOn=[{"identifier": accession(" ACC-4411 ")}]),),
        (report(identifier=[accession("ACC-4411")]),),
        (report(study=[{"reference": "ImagingStudy/s/_history/3"}]), study),
    ]
    for number, resources in enumerate(ways):
        done = films.bring({**resources[0], "conclusion": f"Way {number}."}, *resources[1:], replace=True)
        assert (done.reports, done.films, done.without, done.skipped) == (1, 2, 1, []), number
        assert films.texts() == [f"Way {number}."] * 2 + [""]
    bundle = {"resourceType": "Bundle", "entry": [{"fullUrl": "urn:uuid:7", "resource": study}]}
    bundle["entry"].append({"resource": report("In a bundle.", imagingStudy=[{"reference": "urn:uuid:7"}])})
    assert films.bring(bundle, replace=True).films == 2 and films.texts()[0] == "In a bundle."
    local = report("By a local number.", identifier=[{"system": "urn:ris", "value": "ACC-2"}])
    assert films.bring(local).films == 0
    assert films.bring(local, accession_systems=["urn:ris"]).films == 1 and films.texts()[2] == "By a local number."


SKIPS = [
    (report(status="preliminary", identifier=[accession("ACC-2")]), "has the status 'preliminary'; only final, amended, corrected"),
    (report(status="Krawczyk's", identifier=[accession("ACC-2")]), "has the status 'unknown'"),
    (report(identifier=[accession("ACC-9")]), "its study or order is not in the table"),
    (report(identifier=[{"value": "ACC-2"}]), "it names neither a study nor an order"),
    (report(imagingStudy=[{"reference": "ImagingStudy/gone"}]), "it names neither a study nor an order"),
    (report("", identifier=[accession("ACC-2")]), "has no text"),
    (report(identifier=[accession("ACC-2"), accession("ACC-4411")]), "films of several patients"),
    (report(identifier=[accession("ACC-2")], subject={"identifier": {"value": "MRN-77120"}}), "of a film of another patient"),
    ({"resourceType": 7}, "no FHIR resource"),
]


@pytest.mark.parametrize(("resource", "reason"), SKIPS, ids=[reason for _, reason in SKIPS])
def test_every_other_report_is_listed_with_its_reason(films: Films, resource: dict[str, Any], reason: str) -> None:
    done = films.bring(resource)
    (skipped,) = done.skipped
    assert reason in skipped.reason and (done.films, done.without) == (0, 3)
    assert "Krawczyk" not in json.dumps(done.to_json()) and "Krawczyk" in json.dumps(done.to_json(show=True))
    assert skipped.id == (films.ids.of("report", "r") if "id" in resource else "")


def test_a_report_whose_patient_is_known_here_under_its_number_is_taken(films: Films) -> None:
    patient = {"resourceType": "Patient", "id": "p", "identifier": [{"value": "MRN-2"}]}
    assert films.bring(report(identifier=[accession("ACC-2")], subject={"reference": "Patient/p"}), patient).films == 1
    stranger = report("Again.", identifier=[accession("ACC-2")], subject={"identifier": {"value": "in another numbering"}})
    assert films.bring(stranger, replace=True).films == 1


def test_of_several_reports_the_newest_amended_one_is_taken(films: Films) -> None:
    def of(text: str, status: str, issued: str | None, **more: Any) -> dict[str, Any]:
        return report(text, text, status=status, issued=issued, identifier=[accession("ACC-2")], **more)

    several = [
        of("old amendment", "amended", "2024-03-02T09:00:00Z"),
        of("newest, final", "final", "2024-04-01T09:00:00Z"),
        of("newest amendment", "corrected", "2024-03-02T11:00:00+01:00"),  # ten o'clock in UTC
        of("no time", "amended", None),
        of("a year", "amended", None, effectiveDateTime="2023"),
    ]
    for order in (several, several[::-1]):
        done = films.bring(*order, replace=True)
        assert films.texts()[2] == "newest amendment" and len(done.skipped) == 4
        assert {one.reason for one in done.skipped} == {"is superseded: another report of its films is newer, or amends it."}
    one, other = of("this", "amended", "2025-01-01"), of("that", "amended", "2025-01-01T00:00:00Z")
    done = films.bring(one, other, replace=True)
    assert films.texts()[2] == "this" and "says something else; the first in the source is used" in done.skipped[0].reason


def test_a_mended_report_stays_unless_told_otherwise(films: Films) -> None:
    first = report("Seen by Dr Krawczyk.", identifier=[accession("ACC-2")])
    films.bring(first)
    table = films.manifest.read_text().replace("Seen by Dr Krawczyk.", "Seen.")
    films.manifest.write_text(table)
    assert "that stays (--replace)" in films.bring(first).skipped[0].reason and films.texts()[2] == "Seen."
    assert films.bring({**first, "conclusion": "Seen."}).skipped[0].reason == "is in the table already."
    assert films.bring(first, replace=True).films == 1 and films.texts()[2] == "Seen by Dr Krawczyk."


def test_another_key_or_table_is_refused(films: Films, tmp_path: Path) -> None:
    films.ids = Pseudonyms(b"x" * 32)
    with pytest.raises(ManifestError, match="made with another key"):
        films.bring(report())
    other = tmp_path / "other"
    other.mkdir()
    (other / "m.csv").write_text("case_id,patient_id,image,report\na,p,i.png,r\n")
    with pytest.raises(ManifestError, match="no import made it"):
        import_reports(other / "m.csv", Resources(), films.ids)


# --- sources and commands -----------------------------------------------------------------------------
def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_folder_of_bundles_and_lines(films: Films, capsys: pytest.CaptureFixture[str]) -> None:
    source = films.folder / "fhir"
    source.mkdir()
    (source / "Krawczyk.json").write_text(json.dumps(report("One.", "1", imagingStudy=[{"identifier": uid(films.study)}])))
    lines = [report("Two.", "2", identifier=[accession("ACC-2")]), report("Three.", "3")]
    (source / "export.ndjson").write_text("\n\n".join(json.dumps(line) for line in lines) + "\n{broken\n" + json.dumps(lines[0]))
    (source / "scan.pdf").write_bytes(b"%PDF")
    (source / "deep.json").write_text("[" * 100_000)
    asked = ("data", "fhir", films.manifest, source, "--key", films.folder / "site.key")
    code, out, err = tmca(capsys, *asked, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["films"], told["without_report"]) == (3, 0) and films.texts() == ["One.", "One.", "Two."]
    assert [why.split(";")[0] for why in told["reasons"]].count("is no well-formed JSON (JSONDecodeError)") == 1
    assert "Krawczyk" not in out and told["screened"]["flagged"] == 0
    code, out, _ = tmca(capsys, *asked, "--show")
    assert code == 0 and "skipped Krawczyk.json: is in the table already." in out and "skipped scan.pdf: is no .json" in out


def test_reports_that_name_somebody_end_with_two_and_are_named_by_kind(films: Films, capsys: pytest.CaptureFixture[str]) -> None:
    source = films.folder / "one.ndjson"
    source.write_text(json.dumps(report("Mr Zbigniew Krawczyk was seen on 3 May 2021.", identifier=[accession("ACC-2")])))
    code, out, err = tmca(capsys, "data", "fhir", films.manifest, source, "--key", films.folder / "site.key")
    assert code == 2 and "1 of 3 rows hold what may identify a person" in err and "tmca data screen" in err
    assert "Krawczyk" not in out + err and films.texts()[2].startswith("Mr Zbigniew")


def test_a_server_page_by_page_with_what_its_reports_refer_to(films: Films, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resources = [
        report("By its study.", "1", imagingStudy=[{"reference": "ImagingStudy/s"}]),
        report("Not yet.", "2", status="registered"),
        report("By its order.", "3", basedOn=[{"reference": "ServiceRequest/o"}]),
        report("Lost.", "4", basedOn=[{"reference": "ServiceRequest/gone"}]),
        report("Abroad.", "5", basedOn=[{"reference": "https://elsewhere.example/fhir/ServiceRequest/o"}]),
        {"resourceType": "ImagingStudy", "id": "s", "identifier": [uid(films.study)]},
        {"resourceType": "ServiceRequest", "id": "o", "identifier": [accession("ACC-2")]},
    ]
    (tmp_path / "token").write_text("t")
    with HospitalServices(resources=resources, token="t") as here:
        asked = ("data", "fhir", films.manifest, f"{here.url}/fhir", "--key", films.folder / "site.key", "--token", tmp_path / "token")
        code, out, err = tmca(capsys, *asked, "--query", "date=ge2024-01-01", "--json")
        assert code == 0, err
        assert "date=ge2024-01-01" in here.asked[0][0] and len([path for path, _ in here.asked if "_offset" in path]) == 2
    told = json.loads(out)
    assert films.texts() == ["By its study.", "By its study.", "By its order."] and told["reports"] == 5
    reasons = " ".join(told["reasons"])
    assert "has the status 'registered'" in reasons and "answers with 404" in reasons and "it is not followed" in reasons
