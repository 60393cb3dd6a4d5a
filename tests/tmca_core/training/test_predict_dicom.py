"""`tmca predict` on a film of a hospital: the DICOM SEG holds the very mask that the PNG shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from films import film, pixels
from PIL import Image

from tmca_core.cases.images import read_image
from tmca_core.cases.resize import resize_image
from tmca_core.cases.segments import read_segments
from tmca_core.cli import main
from tmca_core.config import parse
from tmca_core.networks import build_network
from tmca_core.run import Checkpoint, Run
from tmca_core.training.batches import prepare_images
from tmca_core.training.commands import load_model
from tmca_core.training.evaluation import inference

highdicom = pytest.importorskip("highdicom")


def tmca(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A network of two targets that has learnt nothing."""
    config = parse(
        {"data.image_size": 32, "data.targets": "opacity,left-lung", "data.cache_dir": str(tmp_path / "cache"), "network.width": 16}
    )
    made = Run.create(tmp_path / "run", config)
    torch.manual_seed(1)
    made.save_checkpoint(Checkpoint(1, build_network(config).state_dict(), {}))
    return made


def test_segments_are_the_masks_of_the_png(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = film(tmp_path / "film.dcm", pixels(3, (90, 70)))
    _, network, pipeline = load_model(run.folder, [])
    small = torch.from_numpy(resize_image(read_image(tmp_path / "film.dcm", 1), 32))[None, None]
    with inference(network):
        logits = network(prepare_images(small), pipeline.encode(["Opacity on the left."])).logits
    middle = f"evaluation.threshold={float(logits.sigmoid().median())}"  # as it begins, a network sees next to nothing
    asked = ("predict", run.folder, "--dicom", tmp_path / "film.dcm", "--report", "Opacity on the left.", "--json", "--set", middle)
    code, out, err = tmca(capsys, *asked, "--out", tmp_path / "m.png")
    assert code == 0, err
    shares = {name: found["area_share"] for name, found in json.loads(out)["targets"].items()}
    code, out, err = tmca(capsys, *asked, "--out", tmp_path / "m.dcm")
    assert code == 0, err
    told = json.loads(out)
    assert {name: found["area_share"] for name, found in told["targets"].items()} == shares
    assert {found["mask"] for found in told["targets"].values()} == {str(tmp_path / "m.dcm")}
    drawn = read_segments(tmp_path / "m.dcm")
    assert drawn.film == source.SOPInstanceUID and list(drawn.masks) == ["opacity", "left-lung"]
    for name, mask in drawn.masks.items():
        png = np.asarray(Image.open(tmp_path / f"m-{name}.png"))
        assert png.shape == mask.shape == (90, 70)
        np.testing.assert_array_equal(mask, png // 255)
    assert 0 < sum(shares.values()) < 2  # the comparison is of something
    version = highdicom.seg.segread(tmp_path / "m.dcm").SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    assert "+" in version and len(version.partition("+")[2]) == 16


def test_a_mask_without_the_person(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = film(tmp_path / "film.dcm")
    asked = ("predict", run.folder, "--dicom", tmp_path / "film.dcm", "--without-person", "--out", tmp_path / "m.dcm")
    code, _, err = tmca(capsys, *asked)
    assert code == 0, err
    assert read_segments(tmp_path / "m.dcm").film == source.SOPInstanceUID
    assert b"Krawczyk" not in (tmp_path / "m.dcm").read_bytes()


def test_a_mask_of_nothing_is_an_empty_segment(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "film.dcm")
    code, _, err = tmca(
        capsys,
        "predict",
        run.folder,
        "--dicom",
        tmp_path / "film.dcm",
        "--out",
        tmp_path / "m.dcm",
        "--set",
        "evaluation.threshold=0.999999",
    )
    assert code == 0, err
    drawn = read_segments(tmp_path / "m.dcm")
    assert len(drawn.masks) == 2 and not any(mask.any() for mask in drawn.masks.values())


def test_what_is_no_film_cannot_have_a_segmentation(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(pixels().astype(np.uint8)).save(tmp_path / "a.png")
    code, _, err = tmca(capsys, "predict", run.folder, "--image", tmp_path / "a.png", "--out", tmp_path / "m.dcm")
    assert code == 2 and "is no DICOM image" in err and not (tmp_path / "m.dcm").exists()
    code, _, err = tmca(capsys, "predict", run.folder, "--image", tmp_path / "a.png", "--out", tmp_path / "m.nii")
    assert code == 2 and ".png or .dcm" in err
