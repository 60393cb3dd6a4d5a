"""Logs as JSON lines: their fields, and that nothing of a case is in them."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hospital import Hospital, private, rewrite

import tmca_core
from tmca_core.errors import ConfigError, ManifestError
from tmca_core.logs import JsonLines, about, formatter

ROOT = Path(tmca_core.__file__).parents[1]


@pytest.fixture
def lines() -> Iterator[Any]:
    """What our loggers write as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    rooms = [logging.getLogger(name) for name in ("client", "server", "tmca_core", "flwr.client")]
    before = [(room.level, room.propagate) for room in rooms]
    for room in rooms:
        room.addHandler(handler)
        room.setLevel(logging.DEBUG)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        for room, (level, propagate) in zip(rooms, before, strict=True):
            room.removeHandler(handler)
            room.setLevel(level)
            room.propagate = propagate


def test_a_line_has_its_fields_and_those_that_are_known(lines: Any) -> None:
    log = logging.getLogger("server.rounds")
    log.warning("round %d: site '%s' failed", 3, "ghent", extra={"run": "0f", "round": 3, "site": "ghent"})
    with about(run="1f", round=4, site=""):
        log.info("of a run")
    log.info("of none")
    first, second, third = lines()
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning", "logger": "server.rounds", "message": "round 3: site 'ghent' failed", "run": "0f", "round": 3, "site": "ghent",
    }  # fmt: skip
    assert {key: second[key] for key in ("run", "round")} == {"run": "1f", "round": 4} and "site" not in second
    assert not {"run", "round", "site"} & third.keys()


def test_a_site_s_lines_keep_numbers_and_the_program_s_own_words(lines: Any) -> None:
    log = logging.getLogger("client.site")
    with about(site="ghent"):
        log.error("%s in %s: %s, %d of %s", "train", Path("/data/Smith^John.dcm"), ManifestError("row 3: Smith"), 7, "ghent")
        try:
            raise ValueError("no pixels in Smith^John.dcm")
        except ValueError as error:
            log.debug("with its traceback", exc_info=error)
    first, second = lines()
    assert first["message"] == "train in [withheld]: [withheld], 7 of ghent"
    assert second["error"] == "ValueError" and second["place"][-1].startswith("tmca_core/test_logs.py:")
    assert "Smith" not in json.dumps([first, second])


def test_what_other_packages_say_is_withheld_whole() -> None:
    def told(name: str) -> str:
        record = logging.LogRecord(name, logging.WARNING, __file__, 1, "Invalid value for VR DS: 'Smith'", (), None)
        return str(json.loads(JsonLines().format(record))["message"])

    assert {told(name) for name in ("pydicom", "py.warnings", "flwr", "clients", "root")} == {"[withheld]"}
    assert "Smith" in told("server.rounds") and "Smith" in told("flwr.server.app")


def test_nothing_of_a_case_is_in_a_hospital_s_lines(tmp_path: Path, lines: Any) -> None:
    """A run over a manifest with a damaged image and a case without a patient's id in the names of files, then an error over all of it."""
    hospital = Hospital.make(tmp_path, cases=12)

    def named(k: int, row: dict[str, str]) -> dict[str, str]:
        image = hospital.manifest.parent / row["image"]
        other = image.with_name(f"Smith-John-{k}{image.suffix}")
        image.rename(other)
        if k == 1:
            other.write_bytes(b"no image")
        return {**row, "image": str(other.relative_to(hospital.manifest.parent)), "patient_id": f"Smith-{k}", "case_id": f"Smith-John-{k}"}

    rewrite(hospital.manifest, named)
    assert not hospital.train(private()).has_error()
    hospital.manifest.write_text(hospital.manifest.read_text().replace("Smith-3", "Smith-33"))
    assert hospital.train(private(), 2).has_error()
    told = lines()
    assert "Smith" not in json.dumps(told) and str(tmp_path) not in json.dumps(told)
    assert any(line["message"] == "skipped [withheld]" for line in told)
    refused = next(line for line in told if "could not be answered: FederationError: [withheld]" in line["message"])
    assert (refused["run"], refused["round"], refused["site"], refused["level"]) == ("0f", 2, "ghent", "error")


def test_no_message_of_a_site_s_rooms_is_put_together_before_it_is_logged() -> None:
    """What is in the text itself, and not among its arguments, could not be withheld."""
    found = []
    for room in ("client", "tmca_core"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)):
                    continue
                if node.func.value.id in ("log", "logger") and node.func.attr in ("debug", "info", "warning", "error", "exception"):
                    found.append((path.name, node.lineno, isinstance(node.args[0], ast.Constant)))
    assert len(found) > 20 and not [place for *place, constant in found if not constant]


def test_the_variable_chooses_and_another_value_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMCA_LOG", raising=False)
    assert not isinstance(formatter(), JsonLines)
    monkeypatch.setenv("TMCA_LOG", "json")
    assert isinstance(formatter(), JsonLines)
    done = subprocess.run(
        [sys.executable, "-m", "tmca_core.cli", "--help"], capture_output=True, text=True, env={"TMCA_LOG": "xml", "PATH": ""}, check=False
    )
    assert done.returncode == 2 and done.stderr.strip() == "error: TMCA_LOG=xml: logs are written as text or as json."
    monkeypatch.setenv("TMCA_LOG", "xml")
    with pytest.raises(ConfigError):
        formatter()


def test_under_flower_our_loggers_write_json_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import logging, tmca_core.logs as logs\n"
        "logs.listen_under_flower(); logs.listen_under_flower()\n"
        "logging.getLogger('flwr.client.app').error('the %s message: %s', 'train', 'Smith')\n"
        "logging.getLogger('server.rounds').warning('said by %s', 'ghent')"
    )
    for chosen, count in (("json", 2), ("text", 0)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"TMCA_LOG": chosen}, check=True)
        told = [line for line in done.stderr.splitlines() if line.startswith("{")]
        assert len(told) == count
        if count:
            assert [json.loads(line)["message"] for line in told] == ["the train message: [withheld]", "said by ghent"]
