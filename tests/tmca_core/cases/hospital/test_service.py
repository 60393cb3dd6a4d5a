"""How a hospital's services are reached: TLS both ways, tokens that go nowhere else, answers of bounded size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hospital_services import HospitalServices, certificates

from tmca_core.cases.hospital.service import Access, Service, ServiceError
from tmca_core.errors import ConfigError

PATIENT = {"resourceType": "Patient", "id": "1"}


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("pem"))


def asked(access: Access, path: str = "Patient/1") -> object:
    with Service(access) as service:
        return service.json(path)


def test_mutual_tls(pem: dict[str, Path]) -> None:
    with HospitalServices(resources=[PATIENT], tls=(pem["server"], pem["server-key"], pem["ca"])) as here:
        base = f"{here.url}/fhir"
        good = Access(base, ca=pem["ca"], certificate=pem["client"], key=pem["client-key"])
        assert asked(good) == PATIENT
        with pytest.raises(ServiceError, match="does not answer"):
            asked(Access(base, ca=pem["ca"]))  # no certificate of ours
        with pytest.raises(ServiceError, match="does not answer"):
            asked(Access(base, ca=pem["ca"], certificate=pem["stranger"], key=pem["stranger-key"]))
        with pytest.raises(ServiceError, match=r"does not answer: .*certificate"):
            asked(Access(base, certificate=pem["client"], key=pem["client-key"]))  # an authority that nobody knows
        assert len(here.asked) == 1
        with pytest.raises(ConfigError, match="Give PEM files"):
            asked(Access(base, ca=pem["server-key"]))


def test_a_token_is_needed_read_anew_and_goes_nowhere_else(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with HospitalServices(resources=[PATIENT], token="s3cret") as here, HospitalServices(resources=[PATIENT]) as elsewhere:
        access = Access(f"{here.url}/fhir", token)
        with pytest.raises(ConfigError, match="cannot read the token"):
            asked(access)
        token.write_text("old\n")
        with Service(access) as service:
            with pytest.raises(ServiceError, match=r"answers with 401: give a valid token with --token"):
                service.json("Patient/1")
            token.write_text("s3cret\n")
            assert service.json("Patient/1") == PATIENT
            here.special["/fhir/moved"] = lambda: (302, f"Location:{elsewhere.url}/fhir/Patient/1", b"")
            with pytest.raises(ServiceError, match="302: it sends on to another address"):
                service.json("moved")
            for address in (f"{elsewhere.url}/fhir/Patient/1", "../other/Patient/1", "/admin", "//other.example/x", "/fhirs/x"):
                with pytest.raises(ServiceError, match="it is not followed"):
                    service.json(address)
        assert elsewhere.asked == []


def test_addresses_that_would_give_data_away_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="in the open"):
        Service(Access("http://pacs.example/dicom-web"))
    Service(Access("http://pacs.example/dicom-web", insecure=True))
    for wrong in ("https://user:pw@pacs.example/", "ftp://pacs.example/", "https://"):  # pragma: allowlist secret
        with pytest.raises(ConfigError) as refused:
            Service(Access(wrong))
        assert "pw" not in str(refused.value)
    with HospitalServices(resources=[PATIENT]) as here:  # a proxy of the environment would see everything
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert asked(Access(f"{here.url}/fhir")) == PATIENT


def test_what_is_too_much_or_no_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with HospitalServices() as here:
        access = Access(f"{here.url}/fhir")
        here.special |= {
            "/fhir/html": lambda: (200, "text/html", b"<html>"),
            "/fhir/deep": lambda: (200, "application/json", b"[" * 100_000),
            "/fhir/nothing": lambda: (204, "application/json", b""),
            "/fhir/much": lambda: (200, "application/json", json.dumps("x" * 5000).encode()),
            "/fhir/broken": lambda: (500, "text/plain", b"Krawczyk"),
        }
        for path in ("html", "deep"):
            with pytest.raises(ServiceError, match="no JSON"):
                asked(access, path)
        assert asked(access, "nothing") is None
        with pytest.raises(ServiceError, match="answers with 500") as broken:
            asked(access, "broken")
        assert "Krawczyk" not in str(broken.value)
        monkeypatch.setattr("tmca_core.cases.hospital.service.MOST_JSON", 1000)
        with pytest.raises(ServiceError, match="in one answer: it is not taken"):
            asked(access, "much")
    with pytest.raises(ServiceError, match="does not answer"):
        asked(access)
