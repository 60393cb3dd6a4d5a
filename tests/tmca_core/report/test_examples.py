import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.config import EvaluationSettings, parse
from tmca_core.networks.interface import Network, Output
from tmca_core.report.content import gather
from tmca_core.report.examples import choose_examples, png, write_examples
from tmca_core.report.html import write_report
from tmca_core.report.picture import write_picture
from tmca_core.run import Run
from tmca_core.text.features import TextPipeline
from tmca_core.text.wordpiece import WordPieceEncoder
from tmca_core.training.evaluation import evaluate
from tmca_core.training.scores import CaseScore

CPU = torch.device("cpu")


def score(k, dice, swapped=None, patient=None) -> CaseScore:
    side = None if swapped is None else 0.0
    counter = {} if swapped is None else {"swapped": swapped}
    return CaseScore(f"c{k:02d}", patient or f"p{k}", "a", 5, 10, 10, dice, dice, None, side, side, None, counter)


def test_best_median_worst_and_the_clearest_swaps():
    scores = [score(k, k / 10) for k in range(7)]  # the sided cases' Dice is above all of these
    scores += [score(7, 0.95, 0.1), score(8, 0.9, 0.5), score(9, 0.8, 0.7), score(10, 0.9, 0.2, patient="p7"), score(11, 0.99)]
    chosen = choose_examples(scores, 6)
    assert chosen[:3] == [(11, "best"), (6, "median"), (0, "worst")]  # of 12 cases, place 5 from the top
    assert chosen[3:] == [(7, "counterfactual"), (8, "counterfactual"), (9, "counterfactual")]  # c10 is of c07's patient
    assert choose_examples(scores, 10)[:6] == [(11, "best"), (7, "best"), (6, "median"), (5, "median"), (0, "worst"), (1, "worst")]


def test_few_cases_none_twice():
    assert choose_examples([], 6) == []
    assert choose_examples([score(0, 0.5, 0.1)], 6) == [(0, "best")]
    assert choose_examples([score(0, 0.5)], 0) == []
    for count in range(12):
        chosen = choose_examples([score(k, k / 10, 0.0 if k % 2 else None) for k in range(8)], count)
        assert len(chosen) == len({i for i, _ in chosen}) <= count
        assert count < 1 or chosen[0] == (7, "best")
        assert count < 6 or len(chosen) >= 6


class Words:
    def __init__(self, texts):
        self.texts = texts

    def to(self, device):
        return self

    @staticmethod
    def encode(texts):
        return Words(texts)


class Halves(Network):
    """Marks the named half."""

    def __init__(self):
        super().__init__(None)

    def forward(self, images, text):
        logits = torch.full_like(images[:, :1], -3.0)
        for i, words in enumerate(text.texts):
            logits[i, :, :, 16:] += 6.0 * ("left" in words)
            logits[i, :, :, :16] += 6.0 * ("right" in words)
        return Output(logits)


@pytest.mark.parametrize("channels", [1, 3])
def test_written_examples_are_what_the_report_reads(tmp_path, channels):
    run = Run.create(tmp_path, parse({}))
    texts = ["Opacity in the left lung.", "Opacity in the right lung.", "An opacity."]
    cases = [Case(f"c{k}", f"p{k}", "a", Path("x"), (Path("y"),), text, text, "patient") for k, text in enumerate(texts)]
    masks = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    masks[0, :, :, 16:] = masks[1, :, :, :16] = masks[2] = 1
    images = torch.randint(0, 256, (3, channels, 32, 32), dtype=torch.uint8)
    data = CaseTensors(cases, images, masks)
    settings = EvaluationSettings(examples=6)
    network, pipeline = Halves(), Words([])
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "099-image.png").write_bytes(b"of an earlier run")
    scores = evaluate(network, data, pipeline, settings=settings, device=CPU)
    write_examples(run, network, data, scores, pipeline, settings, CPU)

    entries = json.loads((tmp_path / "examples" / "index.json").read_text())["examples"]
    assert [(e["case_id"], e["kind"]) for e in entries] == [("c0", "best"), ("c1", "median"), ("c2", "worst")]
    left = entries[0]
    assert (left["report"], left["swapped_report"]) == ("Opacity in the left lung.", "Opacity in the right lung.")
    assert (left["dice"], left["dice_swapped"]) == (1.0, 0.0)
    files = {what: np.asarray(Image.open(tmp_path / "examples" / name)) for what, name in left["files"].items()}
    assert (files["image"].reshape(32, 32, channels) == images[0].permute(1, 2, 0).numpy()).all()
    assert (files["truth"] == files["prediction"]).all() and set(np.unique(files["truth"])) == {0, 255}
    assert (files["swapped"] == 255 - files["truth"]).all()
    assert len(list((tmp_path / "examples").glob("*.png"))) == 12
    content = gather(run)
    assert len(content.films) == 3 and not content.remarks


class Pointing(Network):
    """Marks the half of the first side named, with every map that a network may return; the second target is the other half."""

    def __init__(self, targets=1):
        super().__init__(WordPieceEncoder())
        self.targets = targets

    def forward(self, images, text):
        count, length = len(images), text.mask.shape[1]
        named = torch.stack([(text.kinds == 5).any(1), (text.kinds == 6).any(1)], 1)  # the patient's left, right
        half = torch.zeros(count, 1, 8, 8)
        half[..., 4:] = named[:, :1, None, None]
        half[..., :4] = named[:, 1:, None, None]
        large = torch.nn.functional.interpolate(half, size=images.shape[-2:])
        mass = half / half.sum((2, 3), keepdim=True).clamp_min(1)
        fine = mass * (text.kinds > 0)[:, :, None, None]
        coarse = mass * torch.tensor([1, 0, 1, 1])[None, :, None, None] * torch.cat([named[:, :1], named[:, :1], named], 1)[..., None, None]
        maps = {"enhancement/4": half, "enhancement/8": half[..., ::2, ::2], "guidance": half, "plan/fine": fine, "plan/coarse": coarse}
        assert fine.shape == (count, length, 8, 8)
        return Output(torch.cat([large * 6 - 3, 3 - large * 6][: self.targets], 1), maps)


def explained_run(folder, *, targets="", phrases="locational,descriptive,diagnostic"):
    """A run of `Pointing` on two sided cases and one without a side, written and reported."""
    config = parse({"data.targets": targets, "network.phrases": phrases})
    run, names = Run.create(folder, config), config.data.target_names
    texts = ["Hazy opacity, left lung.", "Patchy consolidation of the right lung.", "Normal."]
    cases = [Case(f"c{k}", f"p{k}", "a", Path("x"), (Path("y"),), text, text, "patient") for k, text in enumerate(texts)]
    masks = torch.zeros(3, len(names), 32, 32, dtype=torch.uint8)
    masks[0, 0, :, 16:] = masks[1, 0, :, :16] = 1
    if len(names) > 1:
        masks[:, 1] = 1 - masks[:, 0]
    data = CaseTensors(cases, torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8), masks)
    network = Pointing(len(names))
    pipeline = TextPipeline(network.text_encoder, None, phrase_kinds=config.network.phrase_kinds)
    settings = EvaluationSettings(examples=6)
    scores = evaluate(network, data, pipeline, settings=settings, device=CPU)
    write_examples(run, network, data, scores, pipeline, settings, CPU)
    return run, json.loads((folder / "examples" / "index.json").read_text())["examples"], write_report(run).read_text(encoding="utf-8")


def test_a_network_with_maps_is_explained(tmp_path):
    _, entries, page = explained_run(tmp_path)
    left = next(e for e in entries if e["case_id"] == "c0")
    assert [(w["text"], w["side"], w["kind"]) for w in left["maps"]["words"]] == [
        ("Hazy", "", 2), ("opacity", "", 2), ("left", "left", 5), ("lung", "", 5),
    ]  # fmt: skip
    assert all(w["half_area"] == 0.25 for w in left["maps"]["words"]) and left["maps"]["words"][2]["side_share"] == 1.0
    assert [p["kind"] for p in left["maps"]["phrases"]] == ["descriptive", "left"]
    assert np.asarray(Image.open(tmp_path / "examples" / left["files"]["words"])).shape == (4 * 8, 8)
    assert {"enhancement/4", "enhancement/8", "guidance", "phrases"} <= set(left["files"])
    for words in (
        "Why the mask is where it is",
        "<strong>“left”</strong> Half of its weight lies on 25 % of the film. 100 % of it lies on the patient&#39;s left.",
        "100 % of the predicted mask lies inside of the line",
        "What lies right",
        "map over the image with the outline of the predicted mask.",
    ):
        assert words in page.replace("\N{NO-BREAK SPACE}", " "), words


def test_phrases_that_are_not_read_have_no_words(tmp_path):
    _, entries, _ = explained_run(tmp_path, phrases="locational")
    left = next(e for e in entries if e["case_id"] == "c0")
    assert [w["text"] for w in left["maps"]["words"]] == ["left", "lung"]


def test_a_network_without_maps_shows_nothing_new(tmp_path):
    run = Run.create(tmp_path, parse({}))
    case = Case("c00", "p0", "a", Path("x"), (Path("y"),), "Left lung.", "Left lung.", "patient")
    data = CaseTensors([case], torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    write_examples(run, Halves(), data, [score(0, 0.5)], Words([]), EvaluationSettings(), CPU)
    assert "Why the mask is" not in write_report(run).read_text(encoding="utf-8")
    assert len(list((tmp_path / "examples").glob("*.png"))) == 4


def test_several_targets_have_their_own_files_and_colours(tmp_path):
    run, entries, page = explained_run(tmp_path, targets="near,far")
    assert all(e["targets"] == ["near", "far"] for e in entries)
    left = next(e for e in entries if e["case_id"] == "c0")
    near, far = (np.asarray(Image.open(tmp_path / "examples" / left["files"][f"prediction/{t}"])) for t in ("near", "far"))
    assert (near[:, 16:] == 255).all() and (near[:, :16] == 0).all() and (far == 255 - near).all()
    for words in (
        'class="truth t0"',
        'class="prediction t1"',
        '<g class="edge"><use href="#film-000-prediction-0">',
        "of near, far.",
        "dashed: true mask",
    ):
        assert words in page.replace("\N{NO-BREAK SPACE}", " "), words
    (content,) = [gather(run)]
    assert all(len(film.paths["truth"]) == len(film.masks["truth"]) == 2 for film in content.films) and not content.remarks


def test_the_picture_draws_every_target(tmp_path):
    run, entries, _ = explained_run(tmp_path / "run", targets="near,far")
    for entry in entries:
        entry["kind"] = "counterfactual"
    run.write_json("examples/index.json", {"examples": entries})
    assert write_picture(run, tmp_path / "p.png").stat().st_size > 1000


def test_masks_that_are_not_the_targets_are_refused(tmp_path):
    run = Run.create(tmp_path, parse({"data.targets": "a,b"}))
    data = CaseTensors([], torch.zeros(0, 1, 32, 32, dtype=torch.uint8), torch.zeros(0, 1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="names a, b"):
        write_examples(run, Halves(), data, [], Words([]), EvaluationSettings(), CPU)


def test_no_examples_asked_for(tmp_path):
    run = Run.create(tmp_path, parse({}))
    data = CaseTensors([], torch.zeros(0, 1, 32, 32, dtype=torch.uint8), torch.zeros(0, 1, 32, 32, dtype=torch.uint8))
    write_examples(run, Halves(), data, [], Words([]), EvaluationSettings(examples=0), CPU)
    assert json.loads((tmp_path / "examples" / "index.json").read_text()) == {"examples": []}


def test_scores_of_other_cases_are_refused(tmp_path):
    run = Run.create(tmp_path, parse({}))
    data = CaseTensors([], torch.zeros(0, 1, 32, 32, dtype=torch.uint8), torch.zeros(0, 1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="do not belong"):
        write_examples(run, Halves(), data, [score(0, 0.5)], Words([]), EvaluationSettings(), CPU)


def test_png_keeps_pixels():
    import io

    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    read = np.asarray(Image.open(io.BytesIO(png(pixels))))
    assert (read == pixels.permute(1, 2, 0).numpy()).all()
