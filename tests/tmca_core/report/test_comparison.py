"""Runs side by side: grouping, mean and deviation by hand, and a page that fetches nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tmca_core.cli import main
from tmca_core.config import parse
from tmca_core.errors import ConfigError
from tmca_core.report.comparison import as_markdown, cell, compare, runs_below, write_comparison
from tmca_core.run import Run


def made(folder: Path, dice: float, pooled: float | None = 0.8, suspects: tuple[str, ...] = (), **values: Any) -> Run:
    run = Run.create(folder, parse({key.replace("__", "."): value for key, value in values.items()}))
    run.write_json(
        "run.json",
        {
            "final": {"dice_image": dice, "per_site": {"a": {"dice_image": dice + 0.1}, "b": {"dice_image": dice - 0.1}}},
            "counterfactual": {"swapped": 0.1},
            "baselines": {"pooled": pooled, "local": {"a": 0.5, "b": 0.3} if pooled else {}},
            "bytes": {"up_per_site_round": 1_000_000, "down_per_site_round": 2_000_000},
            "seconds": {"total": 60.0},
            "faults": [],
            "suspects": [{"site": site, "reason": "swapped"} for site in suspects],
        },
    )
    return run


def four(folder: Path) -> list[Run]:
    return [
        made(folder / f"{algorithm}-{seed}", dice, federation__algorithm=algorithm, seed=seed)
        for algorithm, seed, dice in (("fedavg", 0, 0.6), ("fedavg", 1, 0.7), ("fedprox", 0, 0.5), ("fedprox", 1, 0.5))
    ]


def test_rows_by_what_differs_with_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    first, second = compare(four(tmp_path))
    assert (first.label, second.label) == ("algorithm=fedavg", "algorithm=fedprox")
    assert first.seeds == [0, 1]
    assert first.mean("dice") == pytest.approx(0.65)
    assert first.deviation("dice") == pytest.approx(0.1 / 2**0.5)
    assert first.mean("worst") == pytest.approx(0.55)
    # a: 0.7 - 0.5 and 0.8 - 0.5; b: 0.5 - 0.3 and 0.6 - 0.3
    assert first.mean("gain") == pytest.approx((0.2 + 0.3) / 2)
    assert first.mean("least_gain") == pytest.approx(0.25)
    assert first.mean("pooled_share") == pytest.approx(0.65 / 0.8)
    assert second.deviation("dice") == 0
    assert cell(first, "dice") == "0.650 ± 0.071"
    assert cell(first, "gain") == "+0.250 ± 0.071"
    assert cell(first, "pooled_share") == "81.2 % ± 8.8 %".replace(" % ±", " ±")
    assert cell(first, "bytes_up") == "1.00 MB"


def test_folders_and_cache_are_no_difference_and_missing_baselines_are_dashes(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "a", 0.6, pooled=None, simulation__baselines=False, data__cache_dir="/x"),
        made(tmp_path / "b", 0.8, pooled=None, seed=3),
    ]
    (row,) = compare(runs)
    assert (row.label, row.seeds) == ("all runs", [0, 3])
    assert cell(row, "pooled_share") == cell(row, "gain") == "–"
    assert "Of pooled" not in as_markdown([row])


def test_equal_last_names_are_told_apart(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"{k}", 0.5, phantom__sites=2 + k, partition__sites=3 + k) for k in range(2)]
    assert [row.label for row in compare(runs)] == ["phantom.sites=2, partition.sites=3", "phantom.sites=3, partition.sites=4"]


def test_the_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    runs = [*four(tmp_path), made(tmp_path / "bad", 0.2, suspects=("<b>ghent</b>",), federation__algorithm="fedbn")]
    page, _ = write_comparison(runs, tmp_path)
    text = page.read_text()
    assert "algorithm=fedavg reaches the highest Dice: 0.650 ± 0.071" in text
    assert "&lt;b&gt;ghent&lt;/b&gt;" in text and "<b>ghent" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text) and "http" not in text.replace("http-equiv", "")
    values = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert values[0]["settings"] == {"federation.algorithm": "fedavg"} and values[0]["dice"]["values"] == [0.6, 0.7]
    assert (tmp_path / "comparison.md").read_text().count("\n") == 5


def test_the_command_takes_runs_or_a_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four(tmp_path / "runs")
    (tmp_path / "runs" / "notes").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "runs"), "--json"])
    value = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and value["runs"] == 4
    assert Path(value["comparison"]) == tmp_path / "runs" / "comparison.html"
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "runs" / "fedavg-0"), str(tmp_path / "runs" / "fedprox-0"), "--out", str(tmp_path / "two")])
    assert stop.value.code == 0 and (tmp_path / "two" / "comparison.md").exists()


def test_folders_without_runs_and_unfinished_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run and holds none"):
        runs_below([tmp_path])
    Run.create(tmp_path / "new", parse({}))
    with pytest.raises(ConfigError, match="none of these runs has ended"):
        compare(runs_below([tmp_path]))
    (tmp_path / "new" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        compare(runs_below([tmp_path]))
