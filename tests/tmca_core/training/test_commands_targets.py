"""`tmca train`, `evaluate` and `predict` with two targets and some reports missing, from the manifest to the files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import two_targets
from PIL import Image

from tmca_core.cli import main
from tmca_core.training.commands import headline

SETTINGS = {
    "data.targets": "square,bar",
    "data.image_size": 32,
    "data.missing_reports": "use",
    "data.test_fraction": 0.25,
    "network.width": 16,
    "seed": 1,  # of a split that tests films with the bar and without it
    "training.epochs": 12,
    "training.learning_rate": 4e-3,
    "training.batch_size": 4,
    "federation.rounds": 2,
    "augmentation.rotate": 0,
    "evaluation.bootstrap": 0,
    "evaluation.examples": 2,
}


def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_two_targets_are_learnt_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = two_targets.write(tmp_path / "m", cases=12, silent=4)
    told = [part for key, value in {**SETTINGS, "data.cache_dir": tmp_path / "cache"}.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    code, out, err = tmca(capsys, "train", "--manifest", manifest, "--out", run, "--json", *told)
    assert code == 0, err
    final = json.loads(out)["final"]
    assert json.loads((run / "run.json").read_text())["final"] == final
    assert list(final["per_target"]) == ["square", "bar"]
    assert min(figures["dice_image"] for figures in final["per_target"].values()) > 0.5  # both channels learn; measured 0.8 and more
    for key in ("dice_image", "dice_pooled", "iou_image", "iou_pooled"):
        assert final[key] == pytest.approx(np.mean([figures[key] for figures in final["per_target"].values()]))
    assert "without_report" not in final  # of three patients a site there are too few to tell
    assert (run / "report.html").exists()

    code, out, err = tmca(capsys, "evaluate", run, "--manifest", manifest, "--out", tmp_path / "e", "--json")
    assert code == 0, err
    again = json.loads(out)["final"]
    assert again["per_target"] == final["per_target"]
    with (tmp_path / "e" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["dice"]) == pytest.approx((float(row["dice:square"]) + float(row["dice:bar"])) / 2)

    film = manifest.parent / "f" / "a0.png"
    code, out, err = tmca(
        capsys, "predict", run, "--image", film, "--report", "Consolidation in the left lung.", "--out", tmp_path / "p.png", "--json"
    )
    said = json.loads(out)
    assert code == 0 and said["image_only"] is False and said["side"] == "left"
    assert (said["height"], said["width"]) == (48, 48) and not (tmp_path / "p.png").exists()
    for name in ("square", "bar"):
        mask = np.asarray(Image.open(tmp_path / f"p-{name}.png"))
        assert mask.shape == (48, 48) and set(np.unique(mask)) <= {0, 255}
        assert said["targets"][name] == {"mask": str(tmp_path / f"p-{name}.png"), "area_share": pytest.approx((mask > 0).mean())}
    code, without, _ = tmca(capsys, "predict", run, "--image", film, "--out", tmp_path / "q.png", "--json")
    assert code == 0 and json.loads(without)["image_only"] is True
    code, empty, _ = tmca(capsys, "predict", run, "--image", film, "--report", " ", "--out", tmp_path / "q.png")
    assert code == 0 and "from the image alone" in empty


def test_a_federation_gives_the_figures_of_each_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the messages: what a site sends is enough for the same figures as over all cases in one place."""
    manifest = two_targets.write(tmp_path / "m", cases=8, silent=2)
    quick = {"training.epochs": 8, "federation.rounds": 1, "simulation.baselines": False, "simulation.workers": 1, "seed": 2}
    told = [p for k, v in {**SETTINGS, **quick, "data.cache_dir": tmp_path / "cache"}.items() for p in ("--set", f"{k}={str(v).lower()}")]
    run = tmp_path / "run"
    code, out, err = tmca(capsys, "simulate", "--manifest", manifest, "--out", run, "--json", *told)
    assert code == 0, err
    final = json.loads(out)["final"]
    assert json.loads(out)["faults"] == [] and set(final["per_site"]) == {"a", "b"}
    code, out, err = tmca(capsys, "evaluate", run, "--manifest", manifest, "--out", tmp_path / "e", "--json")
    assert code == 0, err
    again = json.loads(out)["final"]
    assert final["per_target"].keys() == {"square", "bar"} and final["cases"] == again["cases"] == 4
    assert final["per_target"] == again["per_target"] and final["per_target"]["square"]["dice_pooled"] > 0
    assert final["dice_pooled"] == again["dice_pooled"]
    for key in ("dice_image", "dice_pooled", "iou_pooled", "hd95_px"):
        assert [final["per_site"][site][key] for site in "ab"] == [again["per_site"][site][key] for site in "ab"]
    assert not {"without_report"} & (final.keys() | again.keys())
    lines = headline({"final": final | {"without_report": {"cases": 7, "sites": 1, "dice_image": 0.25}}}).splitlines()
    assert lines[1].startswith("per target square 0.") and lines[2] == "7 cases without a report 0.250"


def test_a_network_reads_as_many_targets_as_it_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The phantom has one; asking for two is a mistake in the configuration, said before anything is trained."""
    code, _, err = tmca(capsys, "train", "--out", tmp_path / "run", "--set", "data.targets=a,b")
    assert code == 2 and "the phantom has one target" in err and not (tmp_path / "run" / "checkpoints").exists()
