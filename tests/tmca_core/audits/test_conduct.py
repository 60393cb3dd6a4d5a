"""The verdict, what is fixed beforehand, and a third audit that takes one function."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.conduct import conduct, invalid, judge
from tmca_core.audits.interface import EXIT_CODES, Arm, Audit, Bound, Evidence, Verdict
from tmca_core.audits.page import render, summary, worst, write
from tmca_core.audits.scores import Scores
from tmca_core.errors import AuditInvalid, ConfigError, WeightsError


def found(value: float, claim: float = 1.0, attainable: float = 3.0) -> Evidence:
    return Evidence((Bound("b", "ε", value, claim, attainable, 0.95),))


LEAK, QUIET, WEAK = found(2.0), found(0.5), found(0.5, attainable=0.9)
ALARM, BROKEN = Evidence((WEAK.bounds[0],), ("the noise repeats",)), Evidence(invalid=("scores are tied",))


@pytest.mark.parametrize(
    ("target", "positive", "negative", "verdict", "says"),
    (
        (QUIET, LEAK, QUIET, "PASS", "0.5 ε, claimed 1"),
        (LEAK, LEAK, QUIET, "FAIL", "at least 2 ε, where 1 is claimed"),
        (QUIET, QUIET, QUIET, "INVALID", "positive control"),
        (LEAK, QUIET, QUIET, "INVALID", "positive control"),
        (LEAK, LEAK, LEAK, "INVALID", "negative control"),
        (QUIET, LEAK, ALARM, "INVALID", "negative control"),
        (WEAK, WEAK, QUIET, "NO POWER", "at most 0.9 ε, claimed 1"),
        (Evidence(), Evidence(), Evidence(), "NO POWER", "there is no bound"),
        (ALARM, WEAK, QUIET, "FAIL", "the noise repeats"),  # a proof needs no power
        (BROKEN, LEAK, QUIET, "INVALID", "tied"),
        (LEAK, LEAK, BROKEN, "INVALID", "negative control: scores are tied; the target exceeded its claim, which without its controls"),
        (replace(LEAK, alarms=("the noise repeats",)), BROKEN, LEAK, "FAIL", "the noise repeats; this needs no control; positive control"),
        (found(9.0, math.inf, 9.0), LEAK, QUIET, "NO POWER", "claimed inf"),
    ),
)
def test_verdicts(target: Evidence, positive: Evidence, negative: Evidence, verdict: Verdict, says: str) -> None:
    given, reasons = judge({"target": target, "positive": positive, "negative": negative})
    assert given == verdict and says in "; ".join(reasons)


def two(first: float, second: float, measure: str = "dB", attainable: float = 3.0) -> Evidence:
    return Evidence((Bound("b", "ε", first, 1.0, 3.0), Bound("c", measure, second, 1.0, attainable)))


@pytest.mark.parametrize(
    ("target", "positive", "verdict", "says"),
    (
        (two(0, 0), two(2, 0), "INVALID", "was not flagged by c:"),  # the words of a report say nothing of its film
        (two(0, 2), two(2, 0), "INVALID", "was not flagged by c:"),
        (two(2, 2), two(2, 0), "FAIL", "b gives at least 2 ε"),
        (two(0, 0, "ε"), two(2, 0, "ε"), "PASS", "c: 0 ε, claimed 1, which clears nobody, for its own positive control did not exceed"),
        (two(2, 0, "ε"), two(0, 2, "ε"), "INVALID", "not flagged by b, and the target was; the target exceeded its claim, which without"),
        (two(0, 0, attainable=1), two(2, 0, attainable=1), "PASS", "c: 0 dB, claimed 1, which could not have passed it"),
        (two(0, 0), LEAK, "PASS", "c: 0 dB, claimed 1, which clears nobody, for there is no positive control of it"),
        (two(0, 2), LEAK, "FAIL", "c gives at least 2 dB"),  # weights as they were released refute by themselves
        (two(0, 2), WEAK, "FAIL", "c gives at least 2 dB"),
        (LEAK, Evidence(alarms=("something",)), "FAIL", "b gives at least 2 ε"),
        (QUIET, Evidence(alarms=("something",)), "NO POWER", "no bound of this audit"),
    ),
)
def test_a_bound_clears_only_what_the_positive_control_exceeds_by_it(
    target: Evidence, positive: Evidence, verdict: Verdict, says: str
) -> None:
    given, reasons = judge({"target": target, "positive": positive, "negative": QUIET})
    assert given == verdict and says in "; ".join(reasons)


@pytest.mark.parametrize(("target", "verdict"), ((QUIET, "NO POWER"), (LEAK, "FAIL"), (WEAK, "NO POWER"), (ALARM, "FAIL")))
def test_an_audit_without_a_real_positive_control_may_fail_and_never_pass(target: Evidence, verdict: Verdict) -> None:
    given, reasons = judge({"target": target, "positive": LEAK, "negative": QUIET}, blind="there is no positive control: add one")
    assert given == verdict and ("add one (b: 0.5 ε, claimed 1)" in reasons[0]) == (target is QUIET)


def audit(target: Evidence, **fixed: float) -> Audit:
    arms: dict[Arm, Evidence] = {"target": target, "positive": LEAK, "negative": QUIET}
    return Audit("third", "Is there anything?", "Sees all.", of_epsilon(1.0, 1e-5), 0.05, {"r": 10, **fixed}, arms.__getitem__)


def test_a_negative_control_that_chance_flags_is_measured_once_more(tmp_path: Path) -> None:
    for flags, verdict in (([LEAK, QUIET], "PASS"), ([LEAK, LEAK], "INVALID"), ([LEAK, BROKEN], "INVALID")):
        arms: dict[Arm, list[Evidence]] = {"target": [QUIET], "positive": [LEAK], "negative": flags}
        taken = {arm: iter(found) for arm, found in arms.items()}
        third = Audit("third", "", "", of_epsilon(1.0, 1e-5), 0.05, {"r": 10}, lambda arm, taken=taken: next(taken[arm]))  # type: ignore[misc]
        report = conduct(third, tmp_path / verdict / str(len(flags[1].invalid)))
        assert report.verdict == verdict and "gives at least" in report.to_json()["controls"]["negative"]["first_look"]


def test_what_is_fixed_is_written_before_anything_is_measured_and_not_changed_after(tmp_path: Path) -> None:
    def measure(arm: Arm) -> Evidence:
        assert json.loads((tmp_path / "registered.json").read_text())["registered"] == {"r": 10}
        raise AuditInvalid("the scores are not there.")

    report = conduct(Audit("third", "", "", of_epsilon(1.0, 1e-5), 0.05, {"r": 10}, measure), tmp_path)
    assert report.verdict == "INVALID" and report.exit_code == 5 and "the scores are not there" in report.sentence
    assert conduct(audit(QUIET), tmp_path).verdict == "PASS"
    with pytest.raises(ConfigError, match="fixes another audit"):
        conduct(audit(QUIET, threshold=0.3), tmp_path)


def test_an_audit_that_failed_stays_failed_in_its_folder(tmp_path: Path) -> None:
    first, second, third = (conduct(audit(evidence), tmp_path) for evidence in (QUIET, LEAK, QUIET))
    assert (first.verdict, second.verdict, third.verdict) == ("PASS", "FAIL", "FAIL") and third.exit_code == 4
    assert "Attempt" not in first.sentence and second.sentence.startswith("Attempt 2 in this folder.")
    assert "by itself was PASS: attempt 2 in this folder failed" in third.sentence and "at least 2 ε" in third.sentence
    value = third.to_json()
    assert value["attempt"] == 3 and [before["verdict"] for before in value["earlier_attempts"]] == ["PASS", "FAIL"]
    lines = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines if "ends" in line] == ["PASS", "FAIL", "PASS"] and all(line["time"] for line in lines)
    assert invalid("third", "the run is gone", tmp_path).verdict == "FAIL"  # nor does material that was taken away hide it
    assert conduct(audit(QUIET), tmp_path / "mended").verdict == "PASS"
    assert "Attempt 3 in this folder" in render([third])
    (tmp_path / "attempts.jsonl").write_text("torn\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        conduct(audit(QUIET), tmp_path)


def test_an_attempt_that_is_broken_off_stays_in_the_list(tmp_path: Path) -> None:
    def stopped(arm: Arm) -> Evidence:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            conduct(replace(audit(QUIET), measure=stopped), tmp_path)
    report = conduct(audit(QUIET), tmp_path)
    assert report.verdict == "PASS" and "of attempts 1, 2, which were broken off" in report.sentence
    value = report.to_json()
    assert value["attempt"] == 3 and [before["verdict"] for before in value["earlier_attempts"]] == ["BROKEN OFF"] * 2


def broken(target: Evidence, error: Exception | None = None) -> Audit:
    """An audit whose positive control cannot be measured."""

    def measure(arm: Arm) -> Evidence:
        if arm == "positive":
            raise error or WeightsError("its training diverged.")
        return target if arm == "target" else QUIET

    return replace(audit(target), measure=measure)


def test_an_error_in_a_control_takes_nothing_from_what_the_target_showed(tmp_path: Path) -> None:
    fact = conduct(broken(replace(LEAK, alarms=("the noise repeats",))), tmp_path / "fact")
    assert fact.verdict == "FAIL" and conduct(audit(QUIET), tmp_path / "fact").verdict == "FAIL"
    first = conduct(broken(LEAK), tmp_path / "bound")
    assert first.verdict == "INVALID" and "positive control: its training diverged" in first.sentence
    assert first.to_json()["bounds"][0]["exceeds"] and first.to_json()["controls"]["positive"]["invalid"] == ["its training diverged"]
    assert not first.to_json()["controls"]["positive"]["as_it_must"] and first.to_json()["controls"]["negative"]["as_it_must"]
    second = conduct(audit(QUIET), tmp_path / "bound")
    assert second.verdict == "PASS" and "attempt 1, which was INVALID, had found: b gives at least 2 ε" in second.sentence
    page = render([first])
    assert "What was found" in page and "its training diverged</td>" in page
    gone = conduct(replace(audit(QUIET), measure=lambda arm: (_ for _ in ()).throw(WeightsError("it is gone."))), tmp_path / "gone")
    assert gone.verdict == "INVALID" and gone.reasons == ("it is gone",)


@pytest.mark.parametrize(
    ("error", "says"),
    (
        (RuntimeError("shapes do not fit"), "RuntimeError: shapes do not fit"),
        (MemoryError(), "MemoryError"),
        (np.linalg.LinAlgError("Singular matrix"), "LinAlgError: Singular matrix"),
    ),
)
def test_no_error_of_a_library_in_a_control_discards_what_the_target_showed(error: Exception, says: str, tmp_path: Path) -> None:
    fact = conduct(broken(replace(LEAK, alarms=("the noise repeats",)), error), tmp_path / "fact")
    assert fact.verdict == "FAIL" and fact.to_json()["controls"]["positive"]["invalid"] == [says]
    found = conduct(broken(LEAK, error), tmp_path / "bound")
    assert found.verdict == "INVALID" and f"positive control: {says}; the target exceeded its claim" in found.sentence


def test_the_page_has_the_controls_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scored = Scores(rng.normal(1, 1, 40), rng.normal(0, 1, 40))
    arms: dict[Arm, Evidence] = {"target": QUIET, "positive": replace(LEAK, scores=scored), "negative": ALARM}
    page = render([conduct(replace(audit(QUIET), measure=arms.__getitem__), tmp_path)])
    low, high = scored.auc_interval()
    assert f"{scored.auc:.4g} ({low:.4g} to {high:.4g})" in page and "the noise repeats</td>" in page and "What was found" in page


def test_an_audit_that_a_configuration_does_not_allow_does_not_decide(tmp_path: Path) -> None:
    absent = invalid("inversion", "the run sends no update.", tmp_path / "a", applies=False)
    passed, free = conduct(audit(QUIET), tmp_path / "b"), replace(conduct(audit(WEAK), tmp_path / "c"), name="told")
    free = replace(free, audit=replace(audit(WEAK), informs_only=True))
    assert absent.verdict == worst([absent]) == worst([absent, replace(absent, name="attribute")]) == "INVALID"  # nothing is left
    assert worst([passed, absent]) == worst([passed, absent, free]) == "PASS" and worst([absent, free]) == "NO POWER"
    assert summary([passed, absent, free])["sentence"].endswith("nothing of the kind in this configuration: inversion.")
    assert worst([passed, replace(absent, verdict="FAIL")]) == "FAIL"  # an earlier attempt in its folder had failed


def test_the_report_says_all_and_fetches_nothing(tmp_path: Path) -> None:
    reports = [conduct(audit(evidence), tmp_path / name) for name, evidence in (("a", QUIET), ("b", LEAK))]
    value = write(tmp_path, reports, together=True)
    assert value == summary(reports) == json.loads((tmp_path / "audit.json").read_text())
    assert value["verdict"] == worst(reports) == "FAIL" and EXIT_CODES["FAIL"] == 4
    one = reports[0].to_json()
    assert one["claim"]["relation"] == "add/remove" and one["controls"]["positive"]["as_it_must"] and one["registered"]["r"] == 10
    assert one["bounds"][0] | {"name": "b", "value": 0.5, "attainable": 3.0, "powerful": True} == one["bounds"][0]
    page = (tmp_path / "audit.html").read_text()
    assert (
        "http:" not in page and "https:" not in page and "src=" not in page and "is never a proof" in page and page.count("<section>") == 2
    )


@pytest.mark.parametrize(
    ("target", "promised", "verdict"), ((QUIET, False, "PASS"), (WEAK, False, "NO POWER"), (LEAK, False, "FAIL"), (QUIET, True, "NO POWER"))
)
def test_an_audit_that_holds_nothing_against_a_promise_is_told_and_does_not_decide(
    target: Evidence, promised: bool, verdict: Verdict, tmp_path: Path
) -> None:
    free = replace(audit(found(9.0, math.inf)), name="told", informs_only=not promised)
    reports = [conduct(audit(target), tmp_path / "a"), conduct(free, tmp_path / "b")]
    assert reports[1].verdict == "NO POWER" and worst(reports) == summary(reports)["verdict"] == verdict
    said = summary(reports)["sentence"]
    assert ("without a say in this verdict" in said and said.endswith("against: told.")) != promised
    assert ("without a say" in render(reports)) != promised
    assert worst(reports[1:]) == "NO POWER"  # by itself it decides over nobody


def test_what_comes_from_a_run_is_data_and_never_markup(tmp_path: Path) -> None:
    report = conduct(audit(Evidence(LEAK.bounds, ("<script>alert(1)</script>",))), tmp_path)
    assert "<script>" not in render([report]) and "&lt;script&gt;" in render([report])
