"""`tmca evaluate` chooses its cases as it says, and `tmca predict` sees an image as training does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tmca_core.cases.case import Case
from tmca_core.cases.decode import decode
from tmca_core.cases.manifest import read_manifest
from tmca_core.cli import main
from tmca_core.config import Config, parse
from tmca_core.errors import ManifestError, WeightsError
from tmca_core.networks import build_network
from tmca_core.run import Checkpoint, Run
from tmca_core.training.centralised import build_pipeline
from tmca_core.training.evaluation import predict_logits
from tmca_core.training.selection import select_cases, splits_of_run

SIDE = 32
HEADER = "case_id,patient_id,site,image,mask,report,laterality"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return parse(
        {
            "data.image_size": SIDE,
            "data.cache_dir": str(tmp_path_factory.mktemp("cache")),
            "network.width": 16,
            "evaluation.bootstrap": 20,
        }
    )


@pytest.fixture
def run(tmp_path: Path, config: Config) -> Run:
    """A run's folder with a network that has learnt nothing, which trained on a, b and chose with c."""
    made = Run.create(tmp_path / "run", config)
    torch.manual_seed(0)
    made.save_checkpoint(Checkpoint(1, build_network(config).state_dict(), {}))
    made.write_json("splits.json", {"s": {"a": "train", "b": "train", "c": "val", "d": "test"}})
    return made


def manifest(folder: Path, splits: dict[str, str] | None = None, shape: tuple[int, int] = (48, 80), ids: str = "abcdef") -> Path:
    """One case a letter, each of its own patient, noise as images: nothing that a wrong filter would leave alike."""
    rng = np.random.default_rng(0)
    lines = [HEADER + (",split" if splits else "")]
    for name in ids:
        mask = np.zeros(shape, np.uint8)
        mask[shape[0] // 4 : shape[0] // 2, shape[1] * 5 // 8 : shape[1] * 7 // 8] = 255
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(mask).save(folder / f"{name}-mask.png")
        line = f"{name},p{name},s,{name}.png,{name}-mask.png,Consolidation in the left upper zone.,patient"
        lines.append(line + (f",{splits[name]}" if splits else ""))
    (folder / "cases.csv").write_text("\n".join(lines))
    return folder / "cases.csv"


def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def evaluated(folder: Path) -> str:
    return "".join(line.split(",")[0] for line in (folder / "cases.csv").read_text().splitlines()[1:])


def test_by_default_what_the_run_learned_from_is_left_out(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    table = manifest(tmp_path)
    code, out, err = tmca(
        capsys, "evaluate", run.folder / "checkpoints" / "round-001", "--manifest", table, "--out", tmp_path / "e", "--json"
    )
    assert code == 0 and "warning" not in err
    assert evaluated(tmp_path / "e") == "def"  # its test case, and two that it never met
    summary = json.loads(out)
    assert summary["cases"] == 3
    assert summary["split"] == {"train": 0, "val": 0, "test": 1, "none": 2, "left_out": 3, "seen_in_training": 0}
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == summary


@pytest.mark.parametrize(("split", "cases", "seen"), [("all", "abcdef", 3), ("train", "ab", 2), ("val", "c", 1), ("test", "d", 0)])
def test_what_is_asked_for_is_evaluated_and_cases_of_training_are_named(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str], split: str, cases: str, seen: int
) -> None:
    table = manifest(tmp_path)
    code, out, err = tmca(capsys, "evaluate", run.folder, "--manifest", table, "--out", tmp_path / "e", "--split", split, "--json")
    assert code == 0 and evaluated(tmp_path / "e") == cases
    assert json.loads(out)["split"]["seen_in_training"] == seen
    warnings = [line for line in err.splitlines() if "trained on" in line]
    assert len(warnings) == bool(seen)
    if seen:
        assert warnings[0].startswith(f"warning: {seen} of the {len(cases)} cases")


def test_a_split_column_decides(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    splits = dict(zip("abcdef", ("train", "test", "train", "val", "test", "train"), strict=True))
    code, out, err = tmca(capsys, "evaluate", run.folder, "--manifest", manifest(tmp_path, splits), "--out", tmp_path / "e")
    assert code == 0 and evaluated(tmp_path / "e") == "be"
    assert "2 cases evaluated: 2 test; 4 others left out" in out
    assert "warning: 1 of the 2 cases" in err  # the column says test of a case that this run trained on


def test_a_run_that_keeps_no_splits_is_measured_on_all_and_says_that_it_cannot_tell(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.folder / "splits.json").unlink()
    code, out, _ = tmca(capsys, "evaluate", run.folder, "--manifest", manifest(tmp_path), "--out", tmp_path / "e", "--json")
    assert code == 0 and json.loads(out)["split"] == {
        "train": 0, "val": 0, "test": 0, "none": 6, "left_out": 0, "seen_in_training": None
    }  # fmt: skip


def test_nothing_to_evaluate_is_a_mistake_that_names_the_way_out(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    table = manifest(tmp_path, ids="abc")
    code, _, err = tmca(capsys, "evaluate", run.folder, "--manifest", table, "--out", tmp_path / "e")
    assert code == 2 and "none of the 3 cases with a mask is an unseen or test case (2 train, 1 val)" in err and "--split all" in err
    assert not (tmp_path / "e").exists()
    (run.folder / "splits.json").write_text("[]")
    with pytest.raises(WeightsError, match="is unknown"):
        splits_of_run(run.folder)


def case(name: str, patient: str = "", split: str = "") -> Case:
    return Case(name, patient or name, "s", Path("i"), (Path("m"),), "t", "t", "patient", split)  # type: ignore[arg-type]


def test_a_new_film_of_a_trained_patient_is_not_unseen() -> None:
    cases = [case("a1", "a"), case("a2", "a"), case("b1", "b")]
    assert select_cases(cases, {"a1": "train"}).indices == [2]
    assert select_cases(cases, {"a1": "train"}, "all").counts["seen_in_training"] == 2
    assert select_cases(cases, {}).indices == [0, 1, 2] and select_cases(cases, None).indices == [0, 1, 2]


def test_val_that_the_run_drew_from_the_column_s_train_is_val() -> None:
    cases = [case("a", split="train"), case("b", split="train"), case("c", split="test")]
    known = {"a": "train", "b": "val", "c": "test"}
    assert [select_cases(cases, known, name).indices for name in ("train", "val", "test")] == [[0], [1], [2]]  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="nothing to measure"):
        select_cases([], None)


@pytest.mark.parametrize("shape", [(48, 80), (20, 25), (37, 33)])
@pytest.mark.parametrize("laterality", ["patient", "image"])
def test_predict_sees_a_case_as_evaluate_does(
    tmp_path: Path, run: Run, config: Config, capsys: pytest.CaptureFixture[str], shape: tuple[int, int], laterality: str
) -> None:
    first = read_manifest(manifest(tmp_path, shape=shape, ids="a")).cases[0]
    if laterality == "image":
        first = replace(first, text="Consolidation in the right upper zone.")
    data, _ = decode([first], size=SIDE, channels=1, cache_dir=None)
    saved = run.last_checkpoint()
    assert saved is not None
    network = build_network(config)
    network.load_state_dict({**network.state_dict(), **saved.weights})
    device = torch.device("cpu")
    small = predict_logits(network, data, [first.text], build_pipeline(network, config), batch_size=1, device=device)
    logits = torch.nn.functional.interpolate(small, size=shape, mode="bilinear", align_corners=False)[0, 0]
    threshold = round(float(torch.sigmoid(logits.median())), 6)  # so that the mask of an untrained network has a shape
    expected = (logits > math.log(threshold / (1 - threshold))).numpy()
    assert 0.2 < expected.mean() < 0.8
    code, out, err = tmca(
        capsys, "predict", run.folder, "--image", first.image, "--report", first.report, "--laterality", laterality,
        "--out", tmp_path / "new" / "mask.png", "--set", f"evaluation.threshold={threshold}", "--json",
    )  # fmt: skip
    assert code == 0, err
    mask = np.asarray(Image.open(tmp_path / "new" / "mask.png"))
    np.testing.assert_array_equal(mask, expected.astype(np.uint8) * 255)
    assert json.loads(out)["area_share"] == pytest.approx(expected.mean())


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.png.gz"])
def test_a_mask_is_png_or_dicom_or_nothing(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = manifest(tmp_path, ids="a")
    code, out, err = tmca(capsys, "predict", run.folder, "--image", table.parent / "a.png", "--report", "r", "--out", tmp_path / name)
    assert code == 2 and "ends in .png" in err and out == ""
    assert not (tmp_path / name).exists()
