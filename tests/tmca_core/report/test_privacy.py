"""The page's part on privacy: what stands in it, what is drawn, and what it does without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tmca_core.config import parse
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.ledger import Charge, Ledger
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.statement import spent_in, statement
from tmca_core.report.content import gather
from tmca_core.report.html import write_report
from tmca_core.report.privacy import privacy_part
from tmca_core.run import Run

SETTINGS = {"privacy.enabled": True, "privacy.noise_multiplier": 1.0, "privacy.target_epsilon": 9.0, "privacy.sample_rate": 0.1}
CONFIG = parse(SETTINGS)
MECHANISM = Mechanism(1.0, 1.0, 0.1, 3.0, 5)


def make(folder: Path, **changes: Any) -> Run:
    run = Run.create(folder, CONFIG)
    sites = {"ghent": spent_in([1, 2, 3], MECHANISM, CONFIG, 30), "iowa": spent_in([1, 3], MECHANISM, CONFIG, None)}
    run.write_json("run.json", {"schema": 1, "engine": "inprocess", "privacy": statement(CONFIG, sites) | changes})
    return run


def test_a_statement_by_hand() -> None:
    rounds = [round for round in range(1, 31) if round != 7]
    found = spent_in(rounds, MECHANISM, CONFIG, 30)
    assert found["steps"] == 29 * 5 and found["epsilon"] == epsilon([NoisySteps(1.0, 0.1, 145)], 1e-5)
    at = [round for round, _ in found["history"]]
    assert at[0] == 1 and at[-1] == 30 and len(at) <= 13 and 7 not in at
    values = [value for _, value in found["history"]]
    assert values == sorted(values) and values[-1] == pytest.approx(found["epsilon"], abs=0.01)
    assert spent_in(rounds, MECHANISM, CONFIG, None, curve=False)["history"] == []
    whole = statement(CONFIG, {"a": found})
    assert whole["epsilon"] == {"a": found["epsilon"]} and whole["target"] == 9.0 and whole["steps"] == 145


def test_the_section_says_who_spent_what_and_draws_it(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    ledger = Ledger.create(tmp_path / "run" / "ledger" / "ghent")
    for round in (1, 2, 2, 3):  # one was done again
        ledger.charge(Charge(NoisySteps(1.0, 0.1, 5), run="a", round=round), ["p"], None)
    content = gather(run)
    part = privacy_part(content.summary, content.ledgers)
    assert part is not None and part.worst == part.worst_ledger == "ghent" and part.bound == 9.0
    assert [row.name for row in part.rows] == ["ghent", "iowa"] and part.rows[1].patients is None
    (curve,) = content.ledgers.values()
    assert [x for x, _ in curve] == [1, 2, 3, 4]
    assert curve[-1][1] == pytest.approx(epsilon([NoisySteps(1.0, 0.1, 20)], 1e-5), abs=0.01)
    page = write_report(run).read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    assert "within ε = 9." in text and "withheld" in text and "at the hospitals" not in text
    assert page.count("ε spent by round") >= 1 and page.count("ε spent by entry of the ledger") >= 1
    assert "bound of the run: 9" in page


def test_a_damaged_ledger_is_named_and_a_deployment_has_none_here(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    Ledger.create(tmp_path / "run" / "ledger" / "ghent")
    (tmp_path / "run" / "ledger" / "ghent" / "head.json").unlink()
    content = gather(run)
    assert content.ledgers == {} and "ledger of ghent is not drawn" in content.remarks[-1]
    page = write_report(make(tmp_path / "other")).read_text()
    assert "at the hospitals" in page and "ε spent by entry" not in page


@pytest.mark.parametrize("odd", [{"sites": None}, {"sites": {"ghent": {"history": [[1], "x", [None, 2]]}}}, {"epsilon": {"<b>": None}}])
def test_odd_statements_do_not_break_the_page(tmp_path: Path, odd: dict[str, Any]) -> None:
    page = write_report(make(tmp_path / "run", **odd)).read_text()
    assert "<h2>Privacy</h2>" in page and "<b>" not in page


def test_a_run_without_privacy_has_no_section(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", parse({}))
    run.write_json("run.json", {"schema": 1, "privacy": None})
    assert "<h2>Privacy</h2>" not in write_report(run).read_text()
