"""Scores that others wrote down: of patients with several rows, tied, damaged, exchanged; and what may be claimed of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tmca_core.audits.claims import of_epsilon
from tmca_core.audits.conduct import conduct
from tmca_core.audits.external import digest, distribution_check, read_scores
from tmca_core.audits.foreign import of_scores
from tmca_core.audits.onerun import one_run
from tmca_core.cli import main
from tmca_core.errors import AuditInvalid, ConfigError

Row = tuple[float, int, str, str]
BARE: tuple[Row, ...] = tuple((k + 10_000 * member, member, "positive", "") for k in range(1200) for member in (0, 1))


def written(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("score,member,arm,record\n" + "".join(f"{score},{member},{arm},{name}\n" for score, member, arm, name in rows))
    return path


def verdicts(audit: str, path: Path, epsilon: float, out: Path) -> str:
    made = one_run(scores=path, epsilon=epsilon) if audit == "one-run" else of_scores(path, of_epsilon(epsilon, 1e-5), beta=0.05)
    return conduct(made, out).verdict


@pytest.mark.parametrize("audit", ("one-run", "mechanism"))
def test_rows_of_one_patient_are_one_canary(audit: str, tmp_path: Path) -> None:
    rng, found = np.random.default_rng(1), Counter[str]()
    for k in range(12):
        coins, own = rng.random(60) < 0.5, rng.normal(size=60)
        rows = [(own[p] + 0.05 * rng.normal(), int(coins[p]), "target", f"p{p}") for p in range(60) for _ in range(10)]
        found[verdicts(audit, written(tmp_path / "s.csv", [*rows, *BARE]), 0.5, tmp_path / str(k))] += 1
    assert found["PASS"] >= 10 and found["FAIL"] <= 2  # 5 of 12 failed when every row counted


def test_a_patients_score_is_the_mean_of_its_rows_and_covariates(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("score,member,record,covariate:age\n1,1,a,50\n5,0,b,60\n2,1,a,52\n")
    table = read_scores(tmp_path / "s.csv")["target"]
    assert table.score.tolist() == [1.5, 5.0] and table.member.tolist() == [True, False] and table.covariates.tolist() == [[51.0], [60.0]]


@pytest.mark.parametrize(
    ("content", "says"),
    (
        (b"score,member,record\n1,1,a\n2,0,b\n3,0,a\n", "line 4: 'member' is another than in the row of the same 'record'"),
        (b"score,member,record\n1,1,a\n2,0,\n3,0,c\n", "line 3: 'record' is empty and others are not"),
        (b"score,member,record\n1,1,M\xfcller\n", "is not UTF-8"),
        (b"score,member\n" + b"1" * 200_000 + b",1\n", "cannot be read as CSV"),
        (b"", "columns 'score' and 'member' are needed"),
        (b"score,score,member\n1,2,1\n", "the column 'score' is there more than once"),
        (b"score,member,Covariate:age\n1,1,50\n", "the column 'Covariate:age' is none of score, member"),
        (b"score,member,arm\n1,1,positive\n", "no row is of the target"),
        (b"score,member,record\n" + b"".join(b"%d,%d,p%d\n" % (i, i % 2, i % 2) for i in range(60)), "too few"),
    ),
)
def test_files_that_cannot_be_used_end_as_invalid(content: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.csv").write_bytes(content)
    for audit, claim in (("one-run", ("--epsilon", "1")), ("mechanism", ("--noise", "1"))):
        with pytest.raises(SystemExit) as stop:
            main(["audit", audit, "--scores", str(tmp_path / "s.csv"), *claim, "--out", str(tmp_path / audit), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert stop.value.code == 5 and found["verdict"] == "INVALID" and says in found["sentence"]


def test_a_constant_covariate_checks_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("score,member,covariate:age\n1,1,50\n5,0,50\n")
    assert distribution_check(read_scores(tmp_path / "s.csv")["target"])["distribution check"].startswith("NOT MADE: the columns")


def test_tied_scores_may_refute_and_never_reassure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coins = rng.random(2000) < 0.5
    for right, expected in ((0.88, "FAIL"), (0.5, "INVALID")):  # ε = 2 where 1 is claimed, and nothing
        seen = np.where(rng.random(2000) < right, coins, ~coins)
        coarse = np.where(rng.random(2000) < 0.06, 1, 2 * seen)
        path = written(tmp_path / "s.csv", [*((float(s), int(b), "target", "") for s, b in zip(coarse, coins, strict=True)), *BARE])
        report = conduct(one_run(scores=path, epsilon=1.0), tmp_path / expected)
        assert report.verdict == expected
    assert "tied where guesses end" in report.sentence
    right_guesses = str(report.to_json()["figures"]["right guesses"])
    assert 240 < int(right_guesses.split()[0]) < 360


def test_scores_without_a_positive_control_fail_or_lack_power(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coins = rng.random(400) < 0.5
    blind, clear = rng.normal(size=400), rng.normal(size=400) + 9 * coins
    for k, (score, epsilon, expected) in enumerate(((blind, 1.0, "NO POWER"), (clear, 1.0, "FAIL"), (clear, 9.0, "NO POWER"))):
        path = written(tmp_path / "s.csv", ((float(s), int(b), "target", "") for s, b in zip(score, coins, strict=True)))
        report = conduct(one_run(scores=path, epsilon=epsilon, guesses=60), tmp_path / str(k))  # they end among scores of one kind
        assert report.verdict == expected and not report.evidence["positive"].invalid


@pytest.mark.parametrize("audit", ("one-run", "mechanism"))
def test_a_control_that_cannot_be_used_leaves_what_the_target_showed(audit: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for arm, control in (("positive", [(1.0, k % 2) for k in range(40)]), ("negative", [(float(k), k % 2) for k in range(6)])):
        rows = [(9 * (k % 2) + rng.normal(), k % 2, "target", "") for k in range(400)]
        path = written(tmp_path / "s.csv", [*rows, *((score, member, arm, "") for score, member in control)])
        made = one_run(scores=path, epsilon=1.0) if audit == "one-run" else of_scores(path, of_epsilon(1.0, 1e-5), beta=0.05)
        report = conduct(made, tmp_path / arm)
        assert report.verdict == "INVALID" and f"{arm} control: {'40 of 40' if arm == 'positive' else '3 scores'}" in report.sentence
        assert "the target exceeded its claim" in report.sentence and report.to_json()["bounds"][0]["exceeds"]
        assert f"threshold_of_{arm}_control" not in report.to_json()["registered"]


def test_randomised_response_keeps_what_it_promises(tmp_path: Path) -> None:
    rng, found = np.random.default_rng(0), Counter[str]()
    for k in range(6):
        coins = rng.random(2000) < 0.5
        kept = rng.random(2000) < np.e / (1 + np.e)
        score = np.where(kept, coins, ~coins) + 0.5 * rng.random(2000)
        path = written(tmp_path / "s.csv", [*((float(s), int(b), "target", "") for s, b in zip(score, coins, strict=True)), *BARE])
        report = conduct(one_run(scores=path, epsilon=1.0), tmp_path / str(k))
        found[report.verdict] += 1
        (bound,) = report.evidence["target"].bounds
        assert bound.confidence == pytest.approx(1 - 0.9 * 0.05)
        assert report.evidence["target"].figures["for information, ε by f-DP if the noise were Gaussian, at least"] > 0.8
    assert found["PASS"] >= 5
    gaussian = one_run(scores=path, epsilon=1.0, gaussian=True).measure("target").bounds  # for whoever knows the noise
    assert [bound.confidence for bound in gaussian] == pytest.approx([1 - 0.45 * 0.05] * 2)
    with pytest.raises(ConfigError, match="give --gaussian with --scores or --step"):
        one_run(gaussian=True)


@pytest.mark.parametrize("elsewhere", (0.0, 5.0))
def test_an_honest_system_is_judged_where_its_positive_control_is_seen(elsewhere: float, tmp_path: Path) -> None:
    rng, found = np.random.default_rng(2), Counter[str]()
    for k in range(12):
        rows = [(rng.normal(), int(rng.random() < 0.5), "target", f"p{p}") for p in range(300)]
        control = [(elsewhere + 9 * b + rng.normal(), b, "positive", f"q{i}-{b}") for i in range(100) for b in (0, 1)]
        found[verdicts("mechanism", written(tmp_path / "s.csv", [*rows, *control]), 0.5, tmp_path / str(k))] += 1
    assert found["PASS"] >= 10  # 51 of 60 were INVALID with the lowest threshold of many that gave nothing


def test_a_positive_control_of_fewer_canaries_makes_fewer_guesses(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.normal(), k % 2, "target", "") for k in range(2000)]
    path = written(tmp_path / "s.csv", [*rows, *((k + 1000 * (k % 2), k % 2, "positive", "") for k in range(100))])
    audit = one_run(scores=path, epsilon=1.0)
    assert audit.registered["guesses"] == 600
    assert audit.measure("positive").figures["right guesses"] == "100 of 100, on 100 canaries"
    assert conduct(audit, tmp_path / "out").verdict == "PASS"


def test_exchanged_controls_and_memberships_are_another_audit(tmp_path: Path) -> None:
    rows = [(float(k * 7919 % 2003), k % 2, "target", "") for k in range(60)]
    path = written(tmp_path / "s.csv", [*rows, *BARE])
    audits = [one_run(scores=path, epsilon=1.0)]
    conduct(audits[0], tmp_path / "out")
    for changed in ([*rows, *((-score, *rest) for score, *rest in BARE)], [*rows[1:-1], (0.0, 1, "target", ""), rows[-1], *BARE]):
        written(path, changed)  # type: ignore[arg-type]
        audits.append(one_run(scores=path, epsilon=1.0))
        with pytest.raises(ConfigError, match="fixes another audit"):
            conduct(audits[-1], tmp_path / "out")
    assert len({audit.registered["scores_sha256"] for audit in audits}) == 3
    folder = digest(tmp_path)
    path.rename(tmp_path / "t.csv")
    assert digest(tmp_path) != folder
    with pytest.raises(AuditInvalid, match="line 2"):
        read_scores(written(path, [(float("nan"), 3, "target", "")]))
