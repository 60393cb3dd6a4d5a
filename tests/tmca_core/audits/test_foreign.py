"""Auditing what others made: callables, scores in files, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import multiprocessing
import random
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tmca_core.audits.claims import of_epsilon, of_one_step
from tmca_core.audits.conduct import Report, conduct
from tmca_core.audits.external import Step, as_vector
from tmca_core.audits.foreign import of_step
from tmca_core.audits.repeats import DRAWS, repeated, too_small
from tmca_core.audits.scores import Scores, area, dealt_anew
from tmca_core.cli import main
from tmca_core.errors import AuditInvalid

CLAIM = of_one_step(1.0, 1e-5)


def gaussian(trace: float, sigma: float, size: int = 6) -> Step:
    def step(member: bool) -> np.ndarray:
        noise = np.random.default_rng(secrets.randbits(128)).normal(0, sigma, size)
        noise[0] += trace * member
        return noise

    return step


def trace(member: bool) -> np.ndarray:
    return member * np.eye(6)[0]


def report_of(step: Step, folder: Path, runs: int = 300, quiet: Step | None = None) -> Report:
    return conduct(of_step(step, CLAIM, runs=runs, beta=0.05, quiet=quiet), folder)


def test_an_honest_step_passes_and_half_the_noise_fails(tmp_path: Path) -> None:
    assert report_of(gaussian(1.0, 1.0), tmp_path / "a", quiet=trace).verdict == "PASS"
    failed = report_of(gaussian(1.0, 0.5), tmp_path / "b")
    assert failed.verdict == "FAIL" and 1 < failed.evidence["target"].bounds[0].value < 2
    assert report_of(gaussian(2.0, 1.0), tmp_path / "c").verdict == "FAIL"


def test_a_step_without_its_quiet_twin_never_passes(tmp_path: Path) -> None:
    lost = report_of(gaussian(1.0, 0.4, size=4000), tmp_path / "a", runs=100)  # far too little noise, and pilots that do not find the trace
    assert lost.verdict == "NO POWER" and lost.exit_code == 5 and "--quiet" in lost.sentence
    assert lost.evidence["target"].bounds[0].value < 1 and lost.evidence["target"].bounds[0].powerful


def test_a_quiet_twin_of_another_step_is_invalid(tmp_path: Path) -> None:
    other = report_of(gaussian(0.0, 1.0), tmp_path, quiet=trace)  # its canary leaves no trace, or elsewhere than it is said to
    assert other.verdict == "INVALID" and "--quiet is not this step" in other.sentence


def test_a_leak_elsewhere_does_not_pass_where_noise_hides_what_the_quiet_twin_shows(tmp_path: Path) -> None:
    def step(sigma: float) -> Step:
        honest = gaussian(0.0, sigma)
        return lambda member: honest(member) + 50 * sigma * member * np.eye(6)[1]

    for sigma, runs in ((1.0, 40), (8.0, 400)):
        claim, folder = of_one_step(sigma, 1e-5), tmp_path / f"{sigma}"
        found = [conduct(of_step(step(sigma), claim, runs=runs, beta=0.05, quiet=trace), folder / str(k)) for k in range(6)]
        assert sum(report.verdict == "PASS" for report in found) <= 1  # each once in a hundred
        assert all("along its trace" in report.sentence for report in found if report.verdict == "INVALID")
    enough = conduct(of_step(gaussian(1.0, 8.0), of_one_step(8.0, 1e-5), runs=5000, beta=0.05, quiet=trace), tmp_path / "honest")
    assert enough.verdict == "PASS"


def test_a_stated_epsilon_is_not_taken_for_a_gaussian_mechanisms(tmp_path: Path) -> None:
    def laplace(scale: float) -> Step:
        return lambda member: np.array([member + np.random.default_rng(secrets.randbits(128)).laplace(0, scale)])

    def verdict(scale: float, folder: Path) -> Report:
        return conduct(of_step(laplace(scale), of_epsilon(1.0, 1e-5), runs=500, beta=0.05, quiet=lambda m: np.array([float(m)])), folder)

    found = [verdict(1.1, tmp_path / str(k)) for k in range(4)]  # truly 0.91: at 1 a four-hundredth of the audits fail by their β
    assert [report.verdict for report in found] == ["PASS"] * 4
    bounds = [report.evidence["target"].bounds[0] for report in found]
    assert all(bound.measure == "ε" and bound.value < 1 < bound.attainable for bound in bounds) and max(bound.value for bound in bounds) > 0
    told = [report.evidence["target"].figures["for information, μ if the mechanism were Gaussian, at least"] for report in found]
    assert max(told) > 0.3  # each by itself is below once in twenty-five, as its threshold comes from pilots
    assert verdict(0.4, tmp_path / "leak").verdict == "FAIL"  # truly 2.5


def test_too_few_runs_are_no_power_and_never_reassuring(tmp_path: Path) -> None:
    report = report_of(gaussian(1.0, 1.0), tmp_path, runs=8, quiet=trace)
    assert report.verdict == "NO POWER" and report.exit_code == 5 and "could have passed the claim" in report.sentence


def test_noise_that_comes_again_is_found(tmp_path: Path) -> None:
    def same(member: bool) -> np.ndarray:
        return np.random.default_rng(0).normal(size=6) + member

    state = np.random.default_rng(0)  # goes on from call to call: only a copy of the process shows it

    def going_on(member: bool) -> np.ndarray:
        return state.normal(size=6) + member * np.eye(6)[0]

    assert "equal number for number" in report_of(same, tmp_path / "a").sentence
    assert "two draws under one seed cancel" in report_of(going_on, tmp_path / "b").sentence
    assert report_of(going_on, tmp_path / "b").exit_code == 4


def fresh() -> np.random.Generator:
    return np.random.default_rng(secrets.randbits(128))


def test_noise_of_pythons_own_generator_is_found() -> None:
    random.seed(0)
    assert "two draws under one seed cancel" in str(repeated(lambda: np.array([random.gauss(0, 1) for _ in range(4)])))


def test_only_the_operating_systems_part_of_the_noise_counts() -> None:
    state = np.random.default_rng(0)

    def release() -> np.ndarray:  # of the claimed size, and half of it is left to whoever knows the seed
        return 0.5 * fresh().normal(size=300) + 0.75**0.5 * state.normal(size=300)

    assert repeated(release) is None
    assert str(too_small(release, 1.0, [("a", 300)], 0.01)).startswith("the noise of all tensors is 0.")


def test_noise_that_comes_again_in_some_numbers_only_is_found() -> None:
    state = np.random.default_rng(0)

    def mostly_seeded() -> np.ndarray:
        return np.append(state.normal(size=450), fresh().normal())

    def one_seeded() -> np.ndarray:
        return np.append(fresh().normal(size=450), state.normal())

    assert "at least 450 of a release's 451 numbers" in str(repeated(mostly_seeded))
    assert "at least 1 of a release's 451 numbers" in str(repeated(one_seeded))
    assert "two draws under one seed cancel" in str(repeated(lambda: np.sign(state.normal(size=200))))  # noise of few values
    assert repeated(lambda: np.append(fresh().normal(size=450), 3.0)) is None  # a count that is public
    for _ in range(3):
        assert repeated(lambda: np.sign(fresh().normal(size=50))) is None
        assert repeated(lambda: np.float64(fresh().random(4) < 0.9)) is None


def test_noise_is_called_too_small_by_two_looks_at_one_tensor() -> None:
    made = multiprocessing.Value("i", 0)  # releases, which copies of the process make

    def noise(*scales: tuple[float, float]) -> str | None:
        """Tensors of a hundred numbers whose noise has these scales in the first look, and the last of them in every later one."""
        made.value = 0

        def release() -> np.ndarray:
            look = made.value // (2 * DRAWS)
            made.value += 1
            return np.concatenate([scale * fresh().normal(size=100) for scale in scales[min(look, len(scales) - 1)]])

        return too_small(release, 1.0, [("a", 100), ("b", 100)], 0.005)

    assert noise((1.0, 1.0)) is None
    assert str(noise((1.2, 0.7))).startswith("the noise of b is 0.") and made.value == 4 * DRAWS
    assert "all tensors" in str(noise((0.85, 0.85)))
    assert noise((1.0, 0.7), (1.3, 1.3)) is None and made.value == 4 * DRAWS
    assert noise((1.25, 0.8), (0.8, 1.25)) is None  # another tensor than before


def test_flowers_own_noise_fails(tmp_path: Path) -> None:
    from flwr.supercore.differential_privacy import add_gaussian_noise_inplace

    def step(member: bool) -> list[np.ndarray]:
        update = [np.array([float(member), 0.0]), np.zeros((2, 2))]
        add_gaussian_noise_inplace(update, 1.0)
        return update

    report = report_of(step, tmp_path)
    assert report.verdict == "FAIL" and "generator with a seed" in report.sentence


def test_a_step_that_cannot_be_compared_is_invalid(tmp_path: Path) -> None:
    sizes = iter([*[3] * 50, *range(4, 10_000)])
    assert report_of(lambda member: np.random.default_rng().normal(size=next(sizes)), tmp_path / "a").verdict == "INVALID"
    assert report_of(lambda member: np.full(3, np.nan), tmp_path / "b").verdict == "INVALID"
    assert as_vector({"b": [1, 2], "a": np.eye(2)}).tolist() == [1, 0, 0, 1, 1, 2]


def write(path: Path, rows: Iterable[Iterable[object]], *columns: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["score", "member", *columns], *rows])
    return path


def command(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[int, dict[str, object]]:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "mechanism", "--out", str(out), "--json", *map(str, arguments)])
    return int(stop.value.code or 0), json.loads(capsys.readouterr().out or "{}")


def drawn(trace: float, count: int = 600, arm: str = "target") -> list[list[object]]:
    rng = np.random.default_rng(3)
    return [[rng.normal(trace * (i % 2)), i % 2, rng.normal(60, 9), arm] for i in range(count)]


def test_scores_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores").mkdir()
    write(tmp_path / "scores" / "a.csv", drawn(0.9), "covariate:age", "arm")
    write(tmp_path / "scores" / "b.csv", drawn(0.9, 200), "covariate:age", "arm")
    code, found = command(capsys, tmp_path / "alone", "--scores", tmp_path / "scores", "--noise", 1)
    assert code == 5 and found["verdict"] == "NO POWER" and "add rows whose arm is 'positive'" in str(found["sentence"])
    write(tmp_path / "scores" / "c.csv", drawn(0.0, arm="positive"), "covariate:age", "arm")
    code, found = command(capsys, tmp_path / "out", "--scores", tmp_path / "scores", "--noise", 1)
    assert code == 5 and found["verdict"] == "INVALID" and "positive control" in str(found["sentence"])  # an attack that sees nothing
    write(tmp_path / "scores" / "c.csv", drawn(9.0, arm="positive"), "covariate:age", "arm")
    code, found = command(capsys, tmp_path / "all", "--scores", tmp_path / "scores", "--noise", 1)
    assert code == 0 and found["verdict"] == "PASS" and found["scores"]["members"] == 200  # the other half chose the threshold
    assert found["figures"]["distribution check"] == "passed, by covariate:age"
    write(tmp_path / "wide.csv", drawn(3.0), "covariate:age", "arm")
    code, found = command(capsys, tmp_path / "wide", "--scores", tmp_path / "wide.csv", "--noise", 1, "--threshold", 1.5)
    assert code == 4 and found["verdict"] == "FAIL" and found["registered"]["threshold_from"] == "given"
    assert command(capsys, tmp_path / "eps", "--scores", tmp_path / "wide.csv", "--epsilon", 2)[0] == 4


@pytest.mark.parametrize(
    ("rows", "says"),
    (
        ([[1.0, i % 2] for i in range(60)], "tied"),
        ([[i, i % 2] for i in range(12)], "too few"),
        ([["nan" if i == 3 else i, i % 2] for i in range(60)], "not finite"),
        ([["x" if i == 3 else i, i % 2] for i in range(60)], "line 5"),
        ([[i, "perhaps"] for i in range(60)], "'member'"),
        ([[i % 7, i % 2, 60 + 9 * (i % 2) + i % 5] for i in range(200)], "different distributions"),
    ),
)
def test_scores_from_which_nothing_follows(rows: list[list[object]], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.csv", rows, *(["covariate:age"] if len(rows[0]) > 2 else []))
    code, found = command(capsys, tmp_path / "out", "--scores", path, "--noise", 1)
    assert code == 5 and found["verdict"] == "INVALID" and says in str(found["sentence"]) and not found["bounds"]
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == found and (tmp_path / "out" / "audit.html").exists()


def test_covariates_that_differ_only_together_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, rows = np.random.default_rng(1), []
    for i in range(400):
        shared = rng.normal(0, 1)
        rows.append([rng.normal(), i % 2, shared + rng.normal(0, 0.05) + 0.05 * (2 * (i % 2) - 1), shared])
    path = write(tmp_path / "s.csv", rows, "covariate:a", "covariate:b")
    code, found = command(capsys, tmp_path / "out", "--scores", path, "--noise", 1)
    assert code == 5 and "covariates together" in str(found["sentence"])


@pytest.mark.parametrize(
    "arguments", (("--step", "x"), ("--step", "json:nothing", "--noise", "1"), ("--scores", "none.csv", "--noise", "1"))
)
def test_wrong_options_are_errors(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "mechanism", "--out", str(tmp_path), *arguments])
    assert stop.value.code == 2


def test_memberships_dealt_anew_leave_nobody_without_a_counterpart() -> None:
    two = Scores(np.arange(20.0), np.arange(20.0), ["a"] * 20, ["b"] * 20)
    assert all(len(anew.members) and len(anew.others) for anew in (dealt_anew(two) for _ in range(40)))
    with pytest.raises(AuditInvalid, match="one patient"):
        dealt_anew(Scores(np.arange(20.0), np.arange(20.0), ["a"] * 20, ["a"] * 20))


def test_auc_by_hand_and_memberships_dealt_anew() -> None:
    assert area(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == (0.5 + 1 + 1 + 1) / 4
    scores = Scores(np.arange(40.0) + 100, np.arange(40.0), [f"p{i // 4}" for i in range(40)], [f"q{i // 4}" for i in range(40)])
    assert scores.auc == 1.0 and scores.auc_interval() == (1.0, 1.0)
    assert scores.rate_at(0.1) == 1.0 and scores.rate_at(0.01) is None and scores.rate_at(0.001) is None
    lows = [dealt_anew(scores).auc_interval()[0] for _ in range(8)]
    assert min(lows) < 0.5
    anew = dealt_anew(scores)
    assert anew.member_groups is not None and anew.other_groups is not None
    assert not set(anew.member_groups) & set(anew.other_groups) and len(anew.members) + len(anew.others) == 80
