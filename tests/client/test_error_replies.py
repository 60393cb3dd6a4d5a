"""What an error says outside the site: of a hospital its kind, of a simulation everything."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client import site
from tmca_core.config import Config
from tmca_core.errors import (
    CaseError,
    ConfigError,
    FederationError,
    ImageError,
    LateralityError,
    ManifestError,
    PolicyRefusal,
    TmcaError,
    UpdateRejected,
    WeightsError,
)
from tmca_core.training.loop import DivergedError

HOSPITAL = {"manifest": "/data/DOE-JANE/cases.csv"}
SIMULATED = {"partition-id": 0, "num-partitions": 4}
SECRET = "patient 'DOE-JANE-1954' of /data/DOE-JANE/cases.csv"


class Subclass(FederationError):
    """Nobody has looked at what it says."""


def reason(monkeypatch: pytest.MonkeyPatch, error: Exception, node: dict[str, str | int]) -> str:
    """The reply's error when a site's hello raises `error`."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("client.workspace.open_site", fail)
    monkeypatch.setattr("client.workspace.hold_reports", lambda *_: None)
    monkeypatch.setattr("client.workspace._own_site", lambda config, node: (config, "ghent", ["ghent"], 0))
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    message = Message(RecordDict(), dst_node_id=2, message_type="query")
    message.metadata.__dict__["_message_id"] = "1"
    reply = client.app.make_app(Config())(message, Context(1, 2, dict(node), RecordDict(), {}))
    if not reply.has_error():  # a refusal by the policy still says who refuses
        return str(reply.content["settings"]["refusal"])
    return str(reply.error.reason)


ERRORS = [
    CaseError(3, "report", SECRET),
    ManifestError(SECRET),
    LateralityError(SECRET),
    ImageError(Path("/data/DOE-JANE/1.png"), "is torn"),
    WeightsError(SECRET),
    ConfigError(SECRET),
    TmcaError(SECRET),
    Subclass(SECRET),
    OSError(2, "No such file", "/data/DOE-JANE/1.png"),
    ValueError(SECRET),
    MemoryError(SECRET),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_hospital_says_no_more_than_the_kind(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    caplog.set_level(logging.INFO)
    assert reason(monkeypatch, error, HOSPITAL) == f"{type(error).__name__}: details are in the site's own log"
    (record,) = [record for record in caplog.records if record.name == "flwr.client.app"]
    assert record.levelno == logging.ERROR
    assert "DOE-JANE" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_simulation_says_why(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert reason(monkeypatch, error, SIMULATED) == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [DivergedError("d"), UpdateRejected("u"), FederationError("f"), PolicyRefusal("p")], ids=repr)
def test_what_can_name_no_case_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert reason(monkeypatch, error, HOSPITAL) == f"{type(error).__name__}: {error}"


def test_a_manifest_and_a_partition_make_no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DOE" not in reason(monkeypatch, ManifestError(SECRET), {**HOSPITAL, **SIMULATED})
    assert "DOE" not in reason(monkeypatch, ManifestError(SECRET), {})


def test_the_traceback_is_in_the_log_for_those_who_ask(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reason(monkeypatch, ManifestError(SECRET), HOSPITAL)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.DEBUG]


def test_where_the_code_lies_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from client.workspace import code_digest, code_root

    code_root.cache_clear()
    code_digest.cache_clear()
    monkeypatch.setattr("client.workspace.__file__", "/home/jane/other/client/workspace.py")
    try:
        with pytest.raises(FederationError) as raised:
            code_digest()
    finally:
        code_root.cache_clear()
    assert "/" not in str(raised.value)
    assert site.code_digest is code_digest
