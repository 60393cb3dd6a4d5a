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
from tmca_core.run import Run
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
    cases = [Case(f"c{k}", f"p{k}", "a", Path("x"), Path("y"), text, text, "patient") for k, text in enumerate(texts)]
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
