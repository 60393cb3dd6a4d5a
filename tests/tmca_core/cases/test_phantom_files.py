"""The phantom on disk: a manifest that the readers take."""

import csv
import tomllib

import numpy as np
import pytest
from PIL import Image

from tmca_core.cases.manifest import read_manifest
from tmca_core.cases.phantom import generate, write
from tmca_core.config import PhantomSettings
from tmca_core.errors import ConfigError, ManifestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "data"
    assert write(path, sites=4, cases=6, seed=5, size=64) == path / "manifest.csv"
    return path


def test_files_hold_what_memory_holds(folder):
    memory = generate(PhantomSettings(sites=4, cases=6, seed=5), size=64)
    manifest = read_manifest(folder / "manifest.csv", on_bad_case="fail")
    assert len(manifest.cases) == 24 and not manifest.skipped
    assert manifest.declared == {"phantom-00": "patient", "phantom-01": "patient", "phantom-02": "patient", "phantom-03": "image"}
    cases = {
        case.case_id: (case, image, mask)
        for one in memory.values()
        for case, image, mask in zip(one.cases, one.images, one.masks, strict=True)
    }
    for read in manifest.cases:
        case, image, mask = cases[read.case_id]
        assert (read.report, read.text, read.laterality, read.patient_id) == (case.report, case.text, case.laterality, case.patient_id)
        assert dict(read.metadata) == dict(case.metadata)
        assert np.array_equal(np.asarray(Image.open(read.image)), image[0].numpy())
        assert np.array_equal(np.asarray(Image.open(read.masks[0])), mask[0].numpy() * 255)
        assert read.image.relative_to(folder) == case.image and [mask.relative_to(folder) for mask in read.masks] == list(case.masks)


def test_table_and_sidecar(folder):
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case_id", "patient_id", "site", "image", "mask", "report", "laterality", "view", "sex", "age"]
    sidecar = tomllib.loads((folder / "manifest.toml").read_text(encoding="utf-8"))
    assert "seed 5" in sidecar["source"] and "shift 1.0" in sidecar["source"] and sidecar["licence"]


def test_a_folder_with_files_is_refused(folder):
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(ManifestError, match="not an empty folder"):
        write(folder, sites=1, cases=4, seed=0, size=32)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ManifestError):
        write(tmp_path / "x", sites=1, cases=4, seed=0, size=32)
    with pytest.raises(ManifestError, match="cannot write"):
        write(tmp_path / "x" / "y", sites=1, cases=4, seed=0, size=32)


def test_numbers_out_of_bounds_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"phantom\.sites"):
        write(tmp_path / "new", sites=0, cases=4, seed=0)
    with pytest.raises(ConfigError, match="size 8"):
        write(tmp_path / "new", sites=1, cases=4, seed=0, size=8)
    assert not (tmp_path / "new").exists()
