"""The commands as a user types them, on a phantom small enough for a test."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tmca_core.cases.phantom import write
from tmca_core.cli import main

SMALL = [
    "data.image_size=32", "network.width=16", "federation.rounds=2", "training.steps=2", "evaluation.bootstrap=20", "evaluation.examples=4",
]  # fmt: skip


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def tmca(*arguments: str, cache: Path) -> Done:
    """The command in this process (imports are paid once), with its streams and exit code."""
    sets = [part for setting in [*SMALL, f"data.cache_dir={cache}"] for part in ("--set", setting)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([*arguments, *sets])
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Path:
    return write(folder / "data", sites=3, cases=10, seed=1, size=64)


@pytest.fixture(scope="module")
def simulated(folder: Path, manifest: Path) -> tuple[Path, dict]:  # type: ignore[type-arg]
    done = tmca("simulate", "--manifest", str(manifest), "--out", str(folder / "run"), "--json", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder / "run", json.loads(done.stdout)


def test_simulate_leaves_everything_that_the_interface_promises(simulated: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    run, printed = simulated
    assert printed == json.loads((run / "run.json").read_text())
    assert {s["name"] for s in printed["sites"]} == set(printed["final"]["per_site"]) == set(printed["baselines"]["local"])
    assert set(printed["counterfactual"]) >= {"true", "swapped", "shuffled", "empty"}
    assert printed["baselines"]["pooled"] is not None
    assert printed["bytes"]["up_per_site_round"] > 0 and printed["seconds"]["total"] > 0
    assert [p.name for p in sorted((run / "checkpoints").glob("round-*"))][-1] == "round-002"
    page = (run / "report.html").read_text()
    assert len(page) < 5_000_000
    assert 'src="http' not in page and "<link" not in page and "@import" not in page
    splits = json.loads((run / "splits.json").read_text())
    assert sum(len(cases) for cases in splits.values()) == 30


def test_repeating_the_command_repeats_no_work_and_changes_no_figure(
    simulated: tuple[Path, dict],
    folder: Path,
    manifest: Path,  # type: ignore[type-arg]
) -> None:
    run, before = simulated
    done = tmca("simulate", "--manifest", str(manifest), "--out", str(run), "--json", cache=folder / "cache")
    after = json.loads(done.stdout)
    assert after["final"] == before["final"] and after["baselines"] == before["baselines"]
    assert after["resumed_from"] == 2


def test_a_run_is_not_resumed_with_other_cases(simulated: tuple[Path, dict], folder: Path) -> None:  # type: ignore[type-arg]
    other = write(folder / "other", sites=3, cases=8, seed=2, size=64)
    before = (simulated[0] / "config.toml").read_text()
    done = tmca("simulate", "--manifest", str(other), "--out", str(simulated[0]), cache=folder / "cache")
    assert done.returncode == 2 and "other cases" in done.stderr and "Traceback" not in done.stderr
    assert (simulated[0] / "config.toml").read_text() == before


def test_a_run_is_not_resumed_with_other_pixels_under_the_same_names(
    simulated: tuple[Path, dict],  # type: ignore[type-arg]
    folder: Path,
) -> None:
    changed = write(folder / "changed", sites=3, cases=10, seed=1, size=64)
    mask = next(path for path in sorted((folder / "changed" / "masks").glob("*.png")) if max(Image.open(path).get_flattened_data()))
    Image.new("L", Image.open(mask).size).save(mask)
    done = tmca("simulate", "--manifest", str(changed), "--out", str(simulated[0]), cache=folder / "cache")
    assert done.returncode == 2 and "data.json" in done.stderr


def test_nothing_to_be_judged_by_is_said_before_training(folder: Path, manifest: Path) -> None:
    nothing = ("--out", str(folder / "nothing"), "--set", "data.test_fraction=0")
    done = tmca("simulate", "--manifest", str(manifest), *nothing, cache=folder / "cache")
    assert done.returncode == 2 and "no site has a held-out case" in done.stderr
    assert not (folder / "nothing" / "checkpoints").exists()


def test_two_sites_never_share_a_baseline(folder: Path) -> None:
    manifest = write(folder / "spaces", sites=2, cases=10, seed=1, size=64)
    text = manifest.read_text().replace(",phantom-00,", ",A B,").replace(",phantom-01,", ",A-B,")
    manifest.write_text(text)
    done = tmca("simulate", "--manifest", str(manifest), "--out", str(folder / "spaced"), "--json", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (folder / "spaced" / "baselines").iterdir()} == {"pooled.json", "local%3AA%20B.json", "local%3AA-B.json"}


def test_evaluate_and_predict_use_the_model(simulated: tuple[Path, dict], folder: Path, manifest: Path) -> None:  # type: ignore[type-arg]
    run, _ = simulated
    done = tmca("evaluate", str(run), "--manifest", str(manifest), "--out", str(folder / "eval"), "--json", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    splits = json.loads((run / "splits.json").read_text())
    tested = sum(split == "test" for cases in splits.values() for split in cases.values())
    assert summary["cases"] == tested < 30 and summary["skipped"] == []
    assert len((folder / "eval" / "cases.csv").read_text().splitlines()) == tested + 1
    image = next((folder / "data" / "images").glob("*.png"))
    for report in ("Consolidation in the left lower zone.", ""):
        mask = folder / "mask.png"
        done = tmca(
            "predict", str(run / "checkpoints" / "round-001"), "--image", str(image), "--report", report, "--out", str(mask), "--json",
            cache=folder / "cache",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert Image.open(mask).size == Image.open(image).size
        assert set(Image.open(mask).get_flattened_data()) <= {0, 255}


def test_train_pooled_and_one_site_resume_to_the_same_weights(folder: Path, manifest: Path) -> None:
    arguments = ("train", "--manifest", str(manifest), "--site", "phantom-01")
    whole = tmca(*arguments, "--out", str(folder / "whole"), "--json", cache=folder / "cache")
    assert whole.returncode == 0, whole.stderr
    summary = json.loads(whole.stdout)
    assert [s["name"] for s in summary["sites"]] == ["phantom-01"]
    again = tmca(*arguments, "--out", str(folder / "whole"), "--json", cache=folder / "cache")
    assert json.loads(again.stdout)["final"] == summary["final"]
    missing = tmca("train", "--manifest", str(manifest), "--site", "nowhere", "--out", str(folder / "x"), cache=folder / "cache")
    assert missing.returncode == 2 and "phantom-00" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "nowhere", "--manifest", "m.csv", "--out", "x"), "no checkpoint"),
        (("simulate", "--manifest", "nowhere.csv", "--out", "x"), "nowhere.csv"),
        (("predict", "nowhere", "--image", "i.png", "--report", "r", "--out", "m.png"), "no checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = tmca(*arguments, cache=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
