"""`tmca data`: what is printed where, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tmca_core.cases import commands
from tmca_core.cases.phantom import image_only_ceiling
from tmca_core.cli import main
from tmca_core.config import PhantomSettings


def manifest(folder: Path, *, bad: bool = False, laterality: str = "") -> Path:
    lines = ["case_id,patient_id,image,mask,report"]
    for i in range(6):
        mask = np.zeros((40, 40), np.uint8)
        mask[5:20, 25:38] = 255  # the patient's left
        Image.fromarray(mask // 2 + i).save(folder / f"{i}.png")
        Image.fromarray(mask).save(folder / f"m{i}.png")
        lines.append(f"c{i},p{i},{i}.png,m{i}.png,Left lung.")
    if bad:
        lines += ["c6,p6,none.png,,Left lung.", "c7,p7,0.png,m0.png,"]
    (folder / "cases.csv").write_text("\n".join(lines))
    if laterality:
        (folder / "manifest.toml").write_text(f'laterality = "{laterality}"')
    return folder / "cases.csv"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_good_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "check", manifest(tmp_path), "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["cases"], found["patients"], found["sites"], found["skipped"]) == (6, 6, {"all": 6}, [])
    assert found["laterality"] == {"declared": None, "measured": "patient", "agreement": 1.0, "one_sided_cases": 6}
    code, out, _ = run(capsys, "check", manifest(tmp_path))
    assert code == 0 and "6 cases of 6 patients; 0 of 6 rows skipped" in out
    assert "laterality: declared nothing, measured patient (100.0% of 6 one-sided cases)" in out


def test_bad_rows_are_all_listed_and_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, bad=True)
    code, out, err = run(capsys, "check", path)
    assert code == 2 and "row 8, column 'image': there is no file" in out and "row 9, column 'report': is empty" in out
    assert "2 of 8 rows skipped" in out and "error: " in err and "2 of 8 rows cannot be used" in err and "Traceback" not in err
    code, out, err = run(capsys, "check", path, "--json")
    assert code == 2 and [skip["row"] for skip in json.loads(out)["skipped"]] == [8, 9] and "row 8, column 'image'" in err
    code, out, err = run(capsys, "check", path, "--json", "--on-bad-case", "skip")
    assert (code, err) == (0, "") and len(json.loads(out)["skipped"]) == 2


def test_a_wrong_laterality_is_refused_with_the_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, laterality="image")
    code, out, err = run(capsys, "check", path, "--json")
    found = json.loads(out)
    assert code == 2 and "declares 'image' but 6 of 6 one-sided reports agree with PATIENT sides (100.0 %)" in found["error"]
    assert "--trust-laterality" in err and found["laterality"]["declared"] == "image"
    code, out, _ = run(capsys, "check", path, "--json", "--trust-laterality")
    assert code == 0 and "error" not in json.loads(out)
    (tmp_path / "manifest.toml").unlink()
    assert run(capsys, "check", path, "--laterality", "image")[0] == 2
    assert run(capsys, "check", path, "--laterality", "patient")[0] == 0


def test_an_unusable_table_still_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "check", tmp_path / "none.csv", "--json")
    assert code == 2 and "cannot read the manifest" in err
    assert json.loads(out)["error"] in err and json.loads(out)["cases"] == 0
    (tmp_path / "latin.csv").write_bytes("case_id,patient_id,image,report\nc,p,i,d\xe9j\xe0\n".encode("latin-1"))
    code, out, err = run(capsys, "check", tmp_path / "latin.csv")
    assert code == 2 and out == "" and "row 2, column 'report'" in err and len(err.splitlines()) == 1


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check")[0] == 2
    assert run(capsys, "check", "x.csv", "--on-bad-case", "ignore")[0] == 2


def test_phantom_passes_its_own_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "phantom", tmp_path / "p", "--sites", 2, "--cases", 12, "--size", 64, "--json")
    written = json.loads(out)
    assert code == 0 and written["cases"] == 24 and written["skipped"] == 0
    measured = image_only_ceiling(PhantomSettings(sites=2, cases=12), size=64)
    assert written["image_only_ceiling"] == {"best": measured.best, "union": measured.union}
    code, out, _ = run(capsys, "check", written["manifest"], "--json", "--size", 64)
    assert code == 0 and len(json.loads(out)["sites"]) == 2


@pytest.mark.parametrize(("most", "sites", "cases"), [(200, 3, 10), (20, 3, 6), (8, 2, 4)])
def test_phantom_says_what_the_image_alone_allows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int, sites: int, cases: int
) -> None:
    monkeypatch.setattr(commands, "CEILING_CASES", most)
    code, out, _ = run(capsys, "phantom", tmp_path / "p", "--sites", 3, "--cases", 10, "--size", 32, "--seed", 4, "--shift", 0)
    measured = image_only_ceiling(PhantomSettings(sites=sites, cases=cases, seed=4, shift=0.0), size=32)
    last = out.strip().splitlines()[-1]
    assert code == 0 and f"can reach here: {measured.best:.2f};" in last
    assert f"give {measured.union:.2f} ({sites * cases} cases)" in last


@pytest.mark.parametrize("layout", ["lvit", "languide", "sgseg", "prolearn"])
def test_every_layout_converts_to_a_manifest_that_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str) -> None:
    source = Path(__file__).parents[3] / "../shared/data/layouts" / layout
    if not source.exists():
        pytest.skip("the development data are not here")
    code, out, _ = run(capsys, "convert", layout, next(source.iterdir()), tmp_path / "out", "--json")
    assert code == 0
    code, out, _ = run(capsys, "check", json.loads(out)["manifest"], "--json")
    assert code == 0 and json.loads(out)["cases"] == 12
