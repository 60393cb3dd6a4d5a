"""A PACS becomes the same manifest as the folder that it holds; what it cannot give is listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from films import everything_in, film, pixels
from hospital_services import HospitalServices
from hypothesis import given
from hypothesis import strategies as st

from tmca_core.cases.hospital.dicomweb import only_part
from tmca_core.cases.hospital.service import ServiceError
from tmca_core.cli import main


def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert tmca(capsys, "data", "key", tmp_path / "site.key")[0] == 0
    return tmp_path / "site.key"


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    """Five films in three studies, three of them in one series, and a CT series."""
    folder = tmp_path / "pacs"
    first = film(folder / "a.dcm", pixels(1))
    same = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    film(folder / "b.dcm", pixels(2), **same)
    film(folder / "c.dcm", pixels(3), **same, BurnedInAnnotation="YES")
    film(folder / "d.dcm", pixels(4), PatientID="MRN-2", StudyDate="20240301")
    film(folder / "e.dcm", pixels(5), StudyDate="20240301")
    film(folder / "f.dcm", pixels(6), Modality="CT", StudyInstanceUID=first.StudyInstanceUID)
    return folder


def test_a_server_gives_what_its_folder_would(tmp_path: Path, pacs: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("t")
    with HospitalServices(films=pacs, token="t") as here:
        server = (f"{here.url}/dicom-web", tmp_path / "web", "--key", key, "--token", tmp_path / "token")
        code, out, err = tmca(capsys, "data", "dicom", *server, "--json")
        assert code == 0, err
        told = json.loads(out)
        assert (told["films"], told["patients"]) == (4, 2)
        assert sorted(told["reasons"].values()) == [1, 1]
        assert any("has the modality 'CT', which is not asked for: a whole series that was not fetched" in why for why in told["reasons"])
        assert any("burned into its pixels" in why for why in told["reasons"])
        # Without a transfer syntax the server sends what every reader can read; nothing of the CT was fetched.
        fetched = [headers["Accept"] for path, headers in here.asked if path.count("/") == 7]
        assert fetched == ['multipart/related; type="application/dicom"'] * 5
        code, out, err = tmca(capsys, "data", "dicom", *server, "--json")
        assert code == 0 and json.loads(out)["known"] == 4
    assert tmca(capsys, "data", "dicom", pacs, tmp_path / "folder", "--key", key)[0] == 0

    def table(name: str) -> list[str]:
        return sorted((tmp_path / name / "manifest.csv").read_text().splitlines())

    assert table("web") == table("folder")
    for image in (tmp_path / "web" / "images").iterdir():
        assert image.read_bytes() == (tmp_path / "folder" / "images" / image.name).read_bytes()
    assert not [path for path in (tmp_path / "web").iterdir() if path.name.startswith(".incoming")]
    assert b"MRN-" not in everything_in(tmp_path / "web")


def test_a_query_and_a_limit_take_some(tmp_path: Path, pacs: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with HospitalServices(films=pacs) as here:
        server = (f"{here.url}/dicom-web", tmp_path / "out", "--key", key, "--json")
        code, out, _ = tmca(capsys, "data", "dicom", *server, "--query", "StudyDate=20240301", "--limit", 1)
        assert code == 0 and json.loads(out)["films"] == 1
        code, out, _ = tmca(capsys, "data", "dicom", *server, "--query", "StudyDate=20240301")
        assert code == 0 and (json.loads(out)["films"], json.loads(out)["known"]) == (1, 1)
        code, _, err = tmca(capsys, "data", "dicom", *server, "--query", "../admin=1")
        assert code == 2 and "attributes of studies by keyword or tag" in err


def test_an_object_that_cannot_be_fetched_is_a_skip_and_a_server_that_lies_an_error(
    tmp_path: Path, pacs: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HospitalServices(films=pacs) as here:
        server = (f"{here.url}/dicom-web", tmp_path / "out", "--key", key, "--json")
        tmca(capsys, "data", "dicom", *server, "--query", "StudyDate=20240301")
        place = next(path for path, _ in here.asked if path.count("/") == 7)
        here.special[place] = lambda: (500, "text/plain", b"")
        code, out, _ = tmca(capsys, "data", "dicom", *server)
        assert code == 0 and any("could not be fetched: 127.0.0.1 answers with 500" in why for why in json.loads(out)["reasons"])
        for wrong in (b"{}x", b'{"a": 1}', b'[{"0020000D": {"Value": ["../../x"]}}]', b'[{"0020000D": []}]'):
            here.special["/dicom-web/studies"] = lambda wrong=wrong: (200, "application/dicom+json", wrong)  # type: ignore[misc]
            code, _, err = tmca(capsys, "data", "dicom", *server)
            assert code == 2 and err.startswith("error: ") and "Traceback" not in err


def test_a_server_that_ignores_pages_is_not_asked_for_ever(
    tmp_path: Path, pacs: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HospitalServices(films=pacs, page=99) as here:
        status, kind, body = here.answer("/dicom-web/studies", "")
        here.special["/dicom-web/studies"] = lambda: (status, kind, body)
        code, out, _ = tmca(capsys, "data", "dicom", f"{here.url}/dicom-web", tmp_path / "out", "--key", key, "--json")
        assert code == 0 and json.loads(out)["films"] == 4
        assert sum(path.startswith("/dicom-web/studies?") for path, _ in here.asked) == 2


@given(st.binary(max_size=300))
def test_the_one_object_of_an_answer(body: bytes) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary="-b-"'
    if b"\r\n---b-" not in body:
        whole = b"---b-\r\nContent-Type: application/dicom\r\nMIME-Version: 1.0\r\n\r\n" + body + b"\r\n---b---\r\n"
        assert only_part(kind, whole) == body
        with pytest.raises(ServiceError):
            only_part(kind, whole[:-9])
        with pytest.raises(ServiceError):
            only_part(kind, whole[:-4] + b"\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n---b---\r\n")
    assert only_part("application/dicom", body) == body
    for other in ("text/html", "multipart/related", "multipart/mixed; boundary=-b-"):
        with pytest.raises(ServiceError):
            only_part(other, body)
