import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tmca_core.cli import main
from tmca_core.config import parse
from tmca_core.errors import ConfigError
from tmca_core.report.html import MOST_ROWS, mark_changes, mean_curve, write_report
from tmca_core.report.picture import write_picture
from tmca_core.run import Run

NASTY = '<script>alert("report")</script>'
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A parsed page; refuses tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.urls, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [value for name, value in attributes if name in ("href", "src", "xlink:href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title", "desc"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def example(folder, k, kind, site="hannover", report="Left lung."):
    rng = np.random.default_rng(k)
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[20:40, 36:56] = 255
    pictures = {
        "image": rng.integers(0, 256, (64, 64), dtype=np.uint8),
        "truth": truth,
        "prediction": np.roll(truth, 2, 0),
        "swapped": truth[:, ::-1],
    }
    files = {}
    for what, pixels in pictures.items():
        files[what] = f"{k:03d}-{what}.png"
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / files[what])
    swapped = report.replace("Left", "Right")
    values = {"case_id": f"case-{k}", "site": site, "report": report, "swapped_report": swapped, "kind": kind}
    return {"id": f"{k:03d}", **values, "dice": 0.9, "dice_swapped": 0.0, "files": files}


def make_run(folder, *, names=("hannover", "usa"), rounds=3, examples=True, **changes) -> Run:
    """A finished two-site federation with every part a report can show; `changes` replace parts of run.json."""
    run = Run.create(folder, parse({"federation.rounds": rounds}))
    for r in range(1, rounds + 1):
        for site in names:
            run.log("site_train", arm="federated", round=r, site=site, loss=1 / r, seconds=1.0, bytes_up=10, bytes_down=10)
            for arm in ("federated", "pooled", f"local:{site}"):
                run.log("site_eval", arm=arm, round=r, site=site, dice_image=0.2 + 0.2 * r, loss=0.3, cases=5)
        run.log("round", arm="federated", round=r, dice_image=0.2 + 0.2 * r, seconds=1.0, completed=list(names), failed={})
    per_site = {s: {"dice_image": 0.8, "ci95": [0.75, 0.85], "dice_pooled": 0.82, "cases": 5, "patients": 3} for s in names}
    summary = {
        "schema": 1,
        "network": "guide",
        "engine": "inprocess",
        "seed": 0,
        "rounds": rounds,
        "sites": [{"name": s, "patients": 9, "train_cases": 20, "val_cases": 5, "test_cases": 5} for s in names],
        "final": {
            "dice_image": 0.8,
            "dice_pooled": 0.82,
            "ci95": [0.77, 0.83],
            "hd95_px": 3.0,
            "laterality_error": 0.02,
            "per_site": per_site,
            "cases": 10,
        },
        "counterfactual": {"true": 0.8, "swapped": 0.1, "shuffled": 0.3, "empty": 0.2},
        "baselines": {"pooled": 0.81, "local": dict.fromkeys(names, 0.7)},
        "bytes": {"up_per_site_round": 1_234_567, "down_per_site_round": 1_234_567, "full_state": 1_300_000},
        "seconds": {"total": 431.2, "training": 350.0},
        "peak_rss_mb": 900.0,
        "privacy": None,
    } | changes
    run.write_json("run.json", {key: value for key, value in summary.items() if value != "absent"})
    if examples:
        (folder / "examples").mkdir()
        kinds = ["best", "median", "worst", "counterfactual"]
        run.write_json("examples/index.json", {"examples": [example(folder / "examples", k, kind) for k, kind in enumerate(kinds)]})
    return run


def page_of(run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_a_finished_federation_shows_everything(tmp_path):
    page = page_of(make_run(tmp_path))
    for words in (
        "Two sites that exchanged only weights reach a Dice of 0.800",
        "0.100 above what they reach alone, and 0.010 below pooling",
        "The mask follows the report.",
        "from 0.800 to 0.100",
        "2.0 %",
        "95 % CI 0.770 to 0.830",
        "+0.100",
        "1.23 MB",
        "7 min 11 s",
        "Every site kept its turn",
        "No case was skipped.",
        "rounds = 3",
    ):
        assert words in page.text, words
    assert page.tags.count("image") == 4 and page.tags.count("use") == 2  # pixels and truth of the swapped pair
    assert page.tags.count("path") > 10 and "mark" in page.tags


def test_the_page_fetches_nothing_and_is_small(tmp_path):
    path = write_report(make_run(tmp_path))
    text = path.read_text(encoding="utf-8")
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in Page(text).urls)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text and "script" not in Page(text).tags
    assert path.stat().st_size < 1_000_000


def test_everything_from_the_run_is_escaped(tmp_path):
    run = make_run(
        tmp_path, sites=(NASTY, "usa"), network=NASTY, skipped=[{"site": NASTY, "row": NASTY, "column": "mask", "reason": NASTY}]
    )
    entries = [example(tmp_path / "examples", k, kind, NASTY, f"Left {NASTY}") for k, kind in enumerate(["best", "counterfactual"])]
    entries[0]["case_id"] = NASTY
    run.write_json("examples/index.json", {"examples": entries})
    run.log("fault", round=1, site=NASTY, reason=NASTY)
    text = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in text.lower() and NASTY in Page(text).text
    assert "script" not in Page(text).tags


def test_a_centralised_run(tmp_path):
    run = make_run(tmp_path, names=("usa",), engine="centralised", arm="pooled", baselines="absent", bytes="absent")
    (tmp_path / "metrics.jsonl").unlink()
    run.log("site_train", arm="pooled", round=1, site="pooled", loss=0.5, seconds=1.0)
    run.log("site_eval", arm="pooled", round=1, site="usa", dice_image=0.5, loss=0.3, cases=5)
    page = page_of(run)
    assert "Trained on all cases in one place" in page.text and "tmca train" in page.text
    assert "Federated" not in page.text and "Gain" not in page.text


def test_a_site_alone_is_reproduced_alone(tmp_path):
    page = page_of(make_run(tmp_path, engine="centralised", arm="local:St. Mary's", baselines="absent"))
    assert "Trained on one site's cases" in page.text
    assert "tmca train config.toml --site 'St. Mary'\"'\"'s' --out another-folder" in page.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baselines": "absent"}, "No local-only models were trained"),
        ({"counterfactual": {}}, "holds no counterfactual reports"),
        ({"counterfactual": None}, "was not measured"),
        ({"sites": None, "final": {"dice_image": 0.5, "per_site": {}}}, "appears when the run has ended"),
        ({"bytes": None, "seconds": None}, "Measured when the run has ended"),
        ({"sites": [{"name": "usa", "skipped": 3}]}, "could not be used: usa 3."),
        ({"final": {"dice_image": 0.5, "laterality_error": None, "hd95_px": None, "ci95": None}}, "no one-sided report"),
        ({"privacy": {"unit": "patient", "epsilon": {"usa": 3.25}, "delta": 1e-5, "accountant": "PLD"}}, "3.250"),
        ({"final": {"dice_image": 0.5, "without_report": {"cases": 3, "dice_image": 0.25}}}, "3 of the test cases reach a Dice of 0.250"),
        ({"final": {"dice_image": 0.5, "per_target": {"left-lung": {"dice_image": 0.75}}}}, "left-lung 0.750 –"),
        ({"counterfactual": {"true": 0.74, "swapped": 0.74}}, "The mask does not follow the report's side."),
        ({"counterfactual": {"true": 0.8, "swapped": 0.5}}, "follows the report in part"),
        ({"counterfactual": {"true": 0.1, "swapped": 0.0}}, "too little for the swap to tell"),
    ],
)
def test_missing_parts_are_said_and_never_crash(tmp_path, changes, said):
    assert said in page_of(make_run(tmp_path, **changes)).text


def test_a_run_that_has_not_ended(tmp_path):
    run = make_run(tmp_path, examples=False)
    (tmp_path / "run.json").unlink()
    assert "This run has not ended: 3 of 3 rounds" in page_of(run).text
    bare = Run.create(tmp_path / "bare", parse({"federation.rounds": 7}))
    page = page_of(bare)
    assert "0 of 7 rounds" in page.text and "holds no examples" in page.text and "holds no validation" in page.text


def test_faults_are_listed_once_although_logged_twice(tmp_path):
    run = make_run(tmp_path)
    run.log("fault", round=2, site="usa", reason="no reply within 30 s")
    run.log("round", arm="federated", round=2, dice_image=0.5, seconds=1.0, completed=["hannover"], failed={"usa": "no reply within 30 s"})
    assert page_of(run).text.count("no reply within 30 s") == 1


def test_damaged_examples_are_left_out_and_said(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "examples" / "000-image.png").write_bytes(b"not a picture")
    (tmp_path / "examples" / "001-truth.png").unlink()
    Image.new("L", (8, 8)).save(tmp_path / "examples" / "002-prediction.png")
    page = page_of(run)
    assert page.tags.count("image") == 1
    assert all(f"Example 00{k} is not shown" in page.text for k in range(3))
    (tmp_path / "examples" / "index.json").write_text("{")
    assert "index.json could not be read" in page_of(run).text


def test_examples_cannot_reach_outside_of_their_folder(tmp_path):
    run = make_run(tmp_path)
    entry = example(tmp_path / "examples", 0, "best")
    entry["files"]["image"] = "../secret.png"
    Image.new("L", (64, 64)).save(tmp_path / "secret.png")
    run.write_json("examples/index.json", {"examples": [entry]})
    page = page_of(run)
    assert "image" not in page.tags and "outside" in page.text


def test_many_sites_rounds_and_large_noisy_examples_stay_below_5_mb(tmp_path):
    sites = [f"site-{k:04d}" for k in range(300)]
    run = make_run(tmp_path, names=sites, rounds=2)
    rng = np.random.default_rng(0)
    shared = example(tmp_path / "examples", 0, "best")
    words = [{"text": f"word{k}", "half_area": 0.1, "side": "", "kind": 2} for k in range(326)]
    shared["maps"] = {
        "words": words,
        "phrases": [{"kind": kind, "half_area": 0.1} for kind in ("descriptive", "diagnostic", "left", "right")],
    }
    sizes = {"guidance": (128, 128), "enhancement/4": (128, 128), "words": (326 * 32, 32), "phrases": (4 * 32, 32)}
    shared["files"] |= {name: f"{name.replace('/', '-')}.png" for name in sizes}
    for name, shape in sizes.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "examples" / shared["files"][name])
    for name in shared["files"].values():
        if (tmp_path / "examples" / name).stem in ("guidance", "enhancement-4", "words", "phrases"):
            continue
        pixels = rng.integers(0, 256, (512, 512), dtype=np.uint8)
        Image.fromarray(pixels if "image" in name else pixels // 128 * 255).save(tmp_path / "examples" / name, compress_level=1)
    entries = [shared | {"id": f"{k:03d}", "kind": "best" if k % 2 else "counterfactual"} for k in range(24)]
    run.write_json("examples/index.json", {"examples": entries})
    path = write_report(run)
    assert path.stat().st_size < 5_000_000
    assert f"The {MOST_ROWS} sites with the lowest Dice of 300" in Page(path.read_text(encoding="utf-8")).text


def test_not_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.toml"):
        write_report(Run(tmp_path))
    run = make_run(tmp_path / "a")
    (run.folder / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*run\.json"):
        write_report(run)


def test_changed_words_are_marked():
    assert mark_changes("Left lung, left base.", "Right lung, right base.") == ("<mark>Right</mark> lung, <mark>right</mark> base.")
    assert mark_changes("a <b>", "c <b>") == "<mark>c</mark> &lt;b&gt;"
    assert mark_changes("", "") == ""


def test_mean_curve_uses_the_rounds_all_have():
    assert mean_curve([[(1, 0.0), (2, 1.0)], [(1, 1.0)], []]) == [(1, 0.5)]
    assert mean_curve([]) == []


def test_published_figures_stand_beside_their_own_kind(tmp_path):
    final = {"dice_image": 0.8123, "iou_image": 0.7001, "dice_pooled": 0.8765, "iou_pooled": 0.7655}
    run = make_run(tmp_path, final=final)
    assert "Beside published" not in page_of(run).text
    (tmp_path / "config.toml").write_text(run.config().with_values({"evaluation.published": "qata-cov19"}).to_toml())
    text = page_of(run).text
    pooled, image = text.partition("Pooled :")[2].split("Per image :")
    assert pooled.index("0.8765 0.7655") < pooled.index("SSA 2025 yes 0.9165 ? –") < pooled.index("FMISeg 2025 yes 0.9122 0.8384")
    assert image.index("0.8123 0.7001") < image.index("LViT 2023 yes 0.8366 0.7511") and "0.9122" not in image
    assert "test splits, input sizes and training data may differ" in text


def test_a_data_set_without_published_figures_says_so(tmp_path, monkeypatch):
    from tmca_core.report import published

    run = make_run(tmp_path)
    (tmp_path / "config.toml").write_text(run.config().with_values({"evaluation.published": "kvasir-seg"}).to_toml())
    monkeypatch.setattr(published, "PUBLISHED", {})
    assert page_of(run).text.count("No published figure on record.") == 2


# --- the picture and the command --------------------------------------------------------------------
def test_picture(tmp_path):
    run = make_run(tmp_path / "run")
    with Image.open(write_picture(run, tmp_path / "out" / "picture.png")) as picture:
        assert picture.width > 3 * 320 and picture.height > 320 and picture.mode == "RGB"
        pixels = np.asarray(picture).reshape(-1, 3).astype(int)
    for outline in ((255, 212, 59), (53, 196, 245), (255, 122, 184)):
        assert (np.abs(pixels - outline).max(1) <= 8).sum() > 50


def test_picture_needs_a_swapped_example(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.examples"):
        write_picture(make_run(tmp_path, examples=False), tmp_path / "p.png")


def run_command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    return stop.value.code, capsys.readouterr()


def test_command(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    code, printed = run_command(capsys, run.folder, "--picture", tmp_path / "p.png", "--json")
    result = json.loads(printed.out)
    assert code == 0 and result["bytes"] == (run.folder / "report.html").stat().st_size
    assert result["picture"] == str(tmp_path / "p.png") and (tmp_path / "p.png").exists()


@pytest.mark.parametrize("arguments", [["no-such-folder"], ["."]])
def test_command_on_what_is_no_run(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, printed = run_command(capsys, *arguments)
    assert code == 2 and "is not a run" in printed.err and "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_check_of_the_data_stands_in_the_report(tmp_path):
    run = make_run(tmp_path)
    assert "before any training" not in page_of(run).text
    rows = [["site", "patients", "no report"], ["hannover", "30", "0%"], ["usa", "–", "<b>12%</b>"]]
    warning = "data check: site 'usa': 41% of its reports mean the other left"
    run.write_json("data_check.json", {"table": rows, "warnings": [warning]})
    page = page_of(run)
    assert "The data, before any training" in page.text and warning in page.text and "No report" in page.text
    assert "<b>12%</b>" in page.text and "b" not in page.tags
    (tmp_path / "data_check.json").write_text("{")
    assert "data_check.json cannot be read" in page_of(run).text
