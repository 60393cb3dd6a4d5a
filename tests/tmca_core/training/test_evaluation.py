from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.config import EvaluationSettings
from tmca_core.networks.interface import Network, Output
from tmca_core.training.evaluation import evaluate, inference, predict_logits
from tmca_core.training.metrics import COUNTERFACTUALS
from tmca_core.training.scores import WITHOUT_REPORT, CaseScore, TargetScore, combine, site_summary, summarise

SIZE = 32
CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(batch_size=2)


class Words:
    """A text batch that carries its words."""

    def __init__(self, texts):
        self.texts = texts

    def to(self, device):
        return self


class Pipeline:
    def __init__(self):
        self.seen = []

    def encode(self, texts):
        self.seen += texts
        return Words(texts)


class BrightSide(Network):
    """Marks bright pixels on the side that the report names; on both sides without a report."""

    def __init__(self, uses_text=True):
        super().__init__(None)
        self.uses_text = uses_text
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, images, text):
        assert not torch.is_grad_enabled() and not self.training
        logits = self.dropout(torch.where(images > 0, 4.0, -4.0))
        for i, words in enumerate(text.texts if self.uses_text else []):
            if "left" in words.lower():
                logits[i, :, :, : SIZE // 2] = -4.0
            if "right" in words.lower():
                logits[i, :, :, SIZE // 2 :] = -4.0
        return Output(logits)


def films() -> CaseTensors:
    """Four films with a bright 4 × 4 square in either half; the report names one of them."""
    image = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    image[8:12, 4:8] = image[8:12, 24:28] = 255
    cases, masks = [], []
    for k, side in enumerate(["left", "right", "left", "right"]):
        text = f"Opacity in the {side} lung."
        cases.append(Case(f"c{k}", f"p{k // 2}", ("a", "b")[k // 2], Path("x"), (Path("y"),), text, text, "patient"))
        mask = (image > 0).to(torch.uint8)
        mask[:, : SIZE // 2] *= side == "right"
        mask[:, SIZE // 2 :] *= side == "left"
        masks.append(mask[None])
    return CaseTensors(cases, image.expand(4, 1, SIZE, SIZE), torch.stack(masks))


def test_a_network_that_reads_loses_everything_when_the_sides_are_swapped():
    scores = evaluate(BrightSide(), films(), Pipeline(), settings=SETTINGS, device=CPU)
    assert [s.case_id for s in scores] == ["c0", "c1", "c2", "c3"]
    for score in scores:
        assert (score.intersection, score.predicted, score.truth) == (16, 16, 16)
        assert (score.dice, score.iou, score.hd95, score.laterality_error, score.laterality_floor) == (1, 1, 0, 0, 0)
        assert score.counterfactual == {"swapped": 0.0, "shuffled": 0.0, "empty": pytest.approx(2 / 3)}
        assert score.loss is not None and 0 < score.loss < 1


def test_a_network_that_does_not_read_is_found_out_and_costs_one_pass():
    pipeline = Pipeline()
    scores = evaluate(BrightSide(uses_text=False), films(), pipeline, settings=SETTINGS, device=CPU, loss=None)
    for score in scores:
        assert score.dice == pytest.approx(2 / 3)
        assert score.counterfactual == dict.fromkeys(COUNTERFACTUALS, score.dice)
        assert score.laterality_error == 0.5
        assert score.loss is None
    assert len(pipeline.seen) == 4


def test_what_is_not_asked_for_is_not_measured():
    pipeline = Pipeline()
    scores = evaluate(BrightSide(), films(), pipeline, settings=SETTINGS, device=CPU, counterfactual=False, hd95=False)
    assert [(s.hd95, s.counterfactual) for s in scores] == [(None, {})] * 4
    assert len(pipeline.seen) == 4
    assert summarise(scores, bootstrap=0, seed=0)["counterfactual"] == {}


def test_batches_do_not_change_scores():
    one = evaluate(BrightSide(), films(), Pipeline(), settings=EvaluationSettings(batch_size=1), device=CPU)
    all_at_once = evaluate(BrightSide(), films(), Pipeline(), settings=EvaluationSettings(batch_size=64), device=CPU)
    assert one == all_at_once


def test_threshold_is_a_probability():
    strict = EvaluationSettings(threshold=0.99)  # the network's sigmoid(4) is 0.982
    scores = evaluate(BrightSide(), films(), Pipeline(), settings=strict, device=CPU)
    assert [s.predicted for s in scores] == [0] * 4
    summary = summarise(scores, bootstrap=0, seed=0)["final"]
    assert summary["one_sided"] == {"cases": 4, "empty_predictions": 4}
    assert (summary["laterality_error"], summary["laterality_error_pooled"]) == (0.0, None)
    assert (summary["hd95_px"], summary["dice_image"]) == (None, 0.0)


@pytest.mark.parametrize("training", [True, False])
def test_the_networks_mode_is_restored(training):
    network = BrightSide().train(training)
    evaluate(network, films(), Pipeline(), settings=SETTINGS, device=CPU)
    assert network.training is training
    with pytest.raises(RuntimeError), inference(network):
        raise RuntimeError
    assert network.training is training


def test_predict_logits_with_texts_of_ones_own():
    logits = predict_logits(BrightSide(), films(), ["right"] * 4, Pipeline(), batch_size=3, device=CPU)
    assert logits.shape == (4, 1, SIZE, SIZE)
    assert not (logits[..., SIZE // 2 :] > 0).any()
    with pytest.raises(ValueError, match="4 cases, 1 texts"):
        predict_logits(BrightSide(), films(), ["right"], Pipeline(), batch_size=3, device=CPU)
    assert predict_logits(BrightSide(), films().subset([]), [], Pipeline(), batch_size=3, device=CPU).shape == (0, 1, SIZE, SIZE)


# --- summaries --------------------------------------------------------------------------------------
def score(site="a", patient="p", intersection=5, predicted=10, truth=10, **changes) -> CaseScore:
    total = predicted + truth
    values = {
        "case_id": "c",
        "dice": 2 * intersection / total if total else 1.0,
        "iou": intersection / (total - intersection) if total - intersection else 1.0,
        "hd95": 2.0,
        "laterality_error": 0.0,
        "laterality_floor": 0.0,
        "loss": 1.0,
        "counterfactual": {"swapped": 0.1, "shuffled": 0.2, "empty": 0.3},
    }
    return CaseScore(patient_id=patient, site=site, intersection=intersection, predicted=predicted, truth=truth, **(values | changes))


def test_summary_by_hand():
    scores = [
        score("a", "p1", 10, 10, 10, hd95=0.0),
        score("a", "p2", 0, 10, 30, hd95=None, laterality_error=0.5, laterality_floor=0.1),
        score("b", "p1", 0, 0, 0, laterality_error=None, laterality_floor=None),
    ]
    result = summarise(scores, bootstrap=100, seed=0)
    final = result["final"]
    assert final["dice_image"] == pytest.approx(2 / 3)
    assert final["dice_pooled"] == pytest.approx(20 / 60)
    assert final["iou_pooled"] == pytest.approx(10 / 50)
    assert (final["hd95_px"], final["hd95_undefined"]) == (1.0, 1)
    assert (final["laterality_error"], final["laterality_error_pooled"], final["laterality_floor"]) == (0.25, 0.25, 0.05)
    assert (final["cases"], final["patients"], final["worst_site"]) == (3, 3, "a")
    assert final["empty_masks"] == {"truth": 1, "predicted": 1, "both": 1}
    assert final["per_site"]["a"]["dice_image"] == 0.5 and final["per_site"]["a"]["ci95"] == [0.0, 1.0]
    assert final["per_site"]["b"]["ci95"] is None and final["per_site"]["b"]["laterality_error"] is None
    counter = result["counterfactual"]
    assert {k: counter[k] for k in ("true", "swapped", "shuffled", "empty")} == pytest.approx(
        {"true": 2 / 3, "swapped": 0.1, "shuffled": 0.2, "empty": 0.3}
    )
    assert counter["one_sided"] == {"cases": 2, "true": 0.5, "swapped": pytest.approx(0.1)}


def test_nothing_to_summarise():
    result = summarise([], bootstrap=10, seed=0)
    assert result["final"]["dice_image"] is None and result["final"]["worst_site"] is None and result["counterfactual"] == {}
    final, _ = combine({"a": site_summary([score()], bootstrap=0, seed=0), "idle": site_summary([], bootstrap=10, seed=0)})
    assert final["worst_site"] == "a" and final["per_site"]["idle"]["dice_image"] is None and final["dice_image"] == 0.5


def test_site_summaries_are_flat_finite_numbers():
    summary = site_summary([score(hd95=None, laterality_error=None, loss=None)], bootstrap=10, seed=0)
    assert all(type(value) is float and np.isfinite(value) for value in summary.values())


scores_of_cases = st.lists(
    st.builds(
        lambda site, patient, both, only_p, only_t, error, hd95, swapped: score(
            site,
            patient,
            both,
            both + only_p,
            both + only_t,
            laterality_error=error,
            laterality_floor=None if error is None else 0.0,
            hd95=hd95,
            counterfactual={"swapped": swapped, "shuffled": 0.2, "empty": 0.0},
        ),
        st.sampled_from("abc"),
        st.sampled_from(["p1", "p2", "p3"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.none() | st.floats(0, 1),
        st.none() | st.floats(0, 100),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=30,
)


@given(scores_of_cases)
@settings(max_examples=150, deadline=None)
def test_combined_sites_equal_the_naive_figures_over_all_cases(scores):
    sites = {s.site for s in scores}
    summaries = {site: site_summary([s for s in scores if s.site == site], bootstrap=20, seed=1) for site in sites}
    final, counter = combine(summaries)
    pooled = summarise(scores, bootstrap=20, seed=1)

    def mean(values):
        present = [v for v in values if v is not None]
        return sum(present) / len(present) if present else None

    i, p, t = (sum(getattr(s, name) for s in scores) for name in ("intersection", "predicted", "truth"))
    naive = {
        "dice_image": mean(s.dice for s in scores),
        "iou_image": mean(s.iou for s in scores),
        "hd95_px": mean(s.hd95 for s in scores),
        "laterality_error": mean(s.laterality_error for s in scores),
        "dice_pooled": 2 * i / (p + t) if p + t else 1.0,
        "iou_pooled": i / (p + t - i) if p + t - i else 1.0,
        "cases": len(scores),
        "patients": len({(s.site, s.patient_id) for s in scores}),
    }
    for key, value in naive.items():
        expected = None if value is None else pytest.approx(value, rel=1e-12, abs=1e-12)
        assert final[key] == expected and pooled["final"][key] == expected
    assert counter["swapped"] == pytest.approx(mean(s.counterfactual["swapped"] for s in scores))
    assert counter["one_sided"]["true"] == pytest.approx(mean(s.dice for s in scores if s.laterality_error is not None))
    assert final["per_site"].keys() == sites
    assert final["per_site"] == pooled["final"]["per_site"]
    assert final["worst_site"] == min(sorted(sites), key=lambda site: final["per_site"][site]["dice_image"])


# --- several targets, missing reports -------------------------------------------------------------------
class TwoThresholds(Network):
    """First target: pixels above the mean; second: dark corners never, so nothing at all. Reads no report."""

    uses_text = False

    def __init__(self):
        super().__init__(None)

    def forward(self, images, text):
        return Output(torch.cat([torch.where(images > 0, 4.0, -4.0), torch.full_like(images, -4.0)], 1))


def two_target_films() -> CaseTensors:
    """c0: both squares true, second target present; c1: one square true, second target absent, no report."""
    found = films().subset([0, 1])
    masks = torch.zeros(2, 2, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 0] = (found.images[0, 0] > 0).to(torch.uint8)
    masks[1, 0] = found.masks[1, 0]
    masks[0, 1, 8:12, 4:12] = 1  # 32 pixels, of which 16 are in the first target too
    cases = [found.cases[0], replace(found.cases[1], report="", text="", patient_id="q", site="b")]
    return CaseTensors(cases, found.images, masks)


def test_two_targets_by_hand():
    first, second = evaluate(TwoThresholds(), two_target_films(), Pipeline(), settings=SETTINGS, device=CPU)
    a, b = first.targets
    assert (a.intersection, a.predicted, a.truth, a.dice, a.iou, a.hd95) == (32, 32, 32, 1.0, 1.0, 0.0)
    assert (b.intersection, b.predicted, b.truth, b.dice, b.iou, b.hd95) == (0, 0, 32, 0.0, 0.0, None)
    assert (first.dice, first.iou, first.hd95) == (0.5, 0.5, 0.0)  # of the targets that have a distance
    assert (first.intersection, first.predicted, first.truth) == (32, 32, 48)  # of the unions
    assert (first.laterality_error, first.laterality_floor) == (0.5, 2 / 3)  # "left": the image's right half is meant
    a, b = second.targets
    assert (a.dice, b.dice, b.iou, b.hd95) == (pytest.approx(2 / 3), 1.0, 1.0, 0.0)  # absent and not predicted
    assert second.dice == pytest.approx((2 / 3 + 1) / 2) and second.laterality_error is None
    assert (first.without_report, second.without_report) == (False, True)
    assert second.counterfactual == dict.fromkeys(COUNTERFACTUALS, second.dice)

    final = summarise([first, second], bootstrap=0, seed=0, targets=("squares", "band"))["final"]
    assert final["dice_image"] == pytest.approx((0.5 + 5 / 6) / 2)
    squares, band = final["per_target"]["squares"], final["per_target"]["band"]
    assert squares["dice_image"] == pytest.approx(5 / 6) and squares["dice_pooled"] == pytest.approx(2 * 48 / (64 + 48))
    assert (band["dice_image"], band["dice_pooled"], band["iou_image"], band["iou_pooled"], band["hd95_px"]) == (0.5, 0.0, 0.5, 0.0, 0.0)
    assert band["empty_masks"] == {"truth": 1, "predicted": 2} and squares["empty_masks"] == {"truth": 0, "predicted": 0}
    assert final["dice_pooled"] == pytest.approx(squares["dice_pooled"] / 2)
    assert final["iou_pooled"] == pytest.approx((48 / 64) / 2)
    assert final["per_site"]["a"]["dice_pooled"] == 0.5 and final["per_site"]["b"]["dice_pooled"] == pytest.approx((2 / 3 + 1) / 2)
    assert "without_report" not in final  # of one patient


def test_batches_do_not_change_scores_of_several_targets():
    one = evaluate(TwoThresholds(), two_target_films(), Pipeline(), settings=EvaluationSettings(batch_size=1), device=CPU)
    assert one == evaluate(TwoThresholds(), two_target_films(), Pipeline(), settings=SETTINGS, device=CPU)
    logits = predict_logits(TwoThresholds(), two_target_films(), ["", ""], Pipeline(), batch_size=1, device=CPU)
    assert logits.shape == (2, 2, SIZE, SIZE)
    assert predict_logits(TwoThresholds(), two_target_films().subset([]), [], Pipeline(), batch_size=1, device=CPU).shape[:2] == (0, 2)


def test_one_target_says_nothing_new():
    scores = evaluate(BrightSide(), films(), Pipeline(), settings=SETTINGS, device=CPU)
    assert all(s.targets == () and not s.without_report for s in scores)
    assert summarise(scores, bootstrap=20, seed=0) == summarise(scores, bootstrap=20, seed=0, targets=("lesion",))
    assert not {"per_target", "without_report"} & summarise(scores, bootstrap=0, seed=0, targets=("lesion",))["final"].keys()


def test_without_report_is_told_only_where_there_are_both_kinds():
    def told(*silent: bool):
        scores = [score(patient=str(i), without_report=s, dice=i / 10) for i, s in enumerate(silent)]
        return summarise(scores, bootstrap=0, seed=0)["final"].get("without_report")

    assert told(*[False] * 10) is None and told(*[True] * 10) is None
    assert told(*[True] * 5, *[False] * 5) == {"cases": 5, "sites": 1, "dice_image": pytest.approx(0.2)}


def test_of_few_patients_without_report_a_site_says_nothing():
    def sent(silent: int, others: int, films: int = 1):
        scores = [score(patient=str(i // films), without_report=i < silent, dice=i / 20) for i in range(silent + others)]
        return site_summary(scores, bootstrap=0, seed=0)

    assert not set(WITHOUT_REPORT) & (sent(4, 9).keys() | sent(9, 4).keys() | sent(8, 8, films=2).keys())
    for silent, others in ((5, 5), (5, 0), (9, 8)):
        assert sent(silent, others)["without_report_cases"] == silent
    sites = {"few": sent(1, 9), "some": sent(5, 5), "most": sent(10, 5)}
    found = combine(sites)[0]["without_report"]
    assert found == {"cases": 15, "sites": 2, "dice_image": pytest.approx((0 + 1 + 2 + 3 + 4 + 45) / 20 / 15)}


@given(st.lists(st.tuples(st.sampled_from("ab"), *[st.integers(0, 30)] * 6, st.booleans()), min_size=1, max_size=24))
@settings(max_examples=60, deadline=None)
def test_sites_of_several_targets_combine_to_the_naive_figures(rows):
    def one(both, p, t):
        d = 2 * both / (2 * both + p + t) if both + p + t else 1.0
        return TargetScore(both, both + p, both + t, d, d / (2 - d), None if d == 0 else 1.0)

    scores = []
    for i, (site, *numbers, silent) in enumerate(rows):
        pair = (one(*numbers[:3]), one(*numbers[3:]))
        mean = (pair[0].dice + pair[1].dice) / 2
        scores.append(score(site, f"p{i}", targets=pair, without_report=silent, dice=mean))
    final, _ = combine(
        {site: site_summary([s for s in scores if s.site == site], bootstrap=0, seed=0) for site in {s.site for s in scores}}, ("x", "y")
    )
    pooled = []
    for k, name in enumerate(("x", "y")):
        i, p, t = (sum(getattr(s.targets[k], field) for s in scores) for field in ("intersection", "predicted", "truth"))
        pooled.append(2 * i / (p + t) if p + t else 1.0)
        assert final["per_target"][name]["dice_pooled"] == pytest.approx(pooled[-1])
        assert final["per_target"][name]["dice_image"] == pytest.approx(np.mean([s.targets[k].dice for s in scores]))
    assert final["dice_pooled"] == pytest.approx(np.mean(pooled))
    telling = {}
    for site in {s.site for s in scores}:
        silent = [s.dice for s in scores if s.site == site and s.without_report]
        others = sum(s.site == site and not s.without_report for s in scores)
        if len(silent) >= 5 and (others == 0 or others >= 5):
            telling[site] = silent
    silent = [value for values in telling.values() for value in values]
    if 0 < len(silent) < len(scores):
        assert final["without_report"] == {"cases": len(silent), "sites": len(telling), "dice_image": pytest.approx(np.mean(silent))}
    else:
        assert "without_report" not in final
