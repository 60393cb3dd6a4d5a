import json
import math

import pytest
import torch

from simulations.bench import reference, step
from tmca_core.cli import main
from tmca_core.config import Config, parse
from tmca_core.networks import NETWORKS
from tmca_core.networks.tmca import Tmca
from tmca_core.text.wordpiece import WordPieceEncoder

SMALL_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 2600}
SMALL_CONVNEXT = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}


def test_the_reference_has_the_published_size() -> None:
    """43.2 M trained of 152.7 M; the state, tables of positions included, is 638 MB."""
    with torch.device("meta"):
        network = reference.Reference(WordPieceEncoder())
    counts = {True: 0, False: 0}
    for parameter in network.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts[True] / 1e6 == pytest.approx(43.2, abs=0.05)
    assert sum(counts.values()) / 1e6 == pytest.approx(152.7, abs=0.05)
    assert sum(t.nbytes for t in network.state_dict().values()) / 1e6 == pytest.approx(638, abs=1)


def test_figures_and_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every network on a small reference; memory is taken in this process, so that the small shapes hold there too."""
    monkeypatch.setattr(reference, "BERT_BASE", SMALL_BERT)
    monkeypatch.setattr(reference, "CONVNEXT_TINY", SMALL_CONVNEXT)
    monkeypatch.setattr(step, "_memory", lambda config, name: step._peak(config.flat(), name))
    names = NETWORKS.names()
    options = ["--encoder", "convnext-mini", "--size", "64", "--batch", "2", "--threads", "1", "--repeats", "1", "--json"]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "step", *options])
    assert stop.value.code == 0
    value = json.loads(capsys.readouterr().out)
    figures, ratios = value["figures"], value["ratios"]
    assert (value["name"], value["repeats"]) == ("step", 1)
    for name in ["reference", *names]:
        for key in ("seconds_per_image", "forward_seconds_per_image", "peak_rss_mb", "shared_bytes", "state_bytes"):
            assert figures[f"{name}.{key}"] > 0
        parts = sum(
            figures.get(f"{name}.{part}_seconds_per_image", 0) for part in ("image_encoder", "text", "losses", "optimiser", "decoder")
        )
        assert parts == pytest.approx(figures[f"{name}.seconds_per_image"])
    assert "guide.uncached_seconds_per_image" in figures and "unet.uncached_seconds_per_image" not in figures
    for name in names:
        for key in ("time", "forward", "memory"):
            assert math.isfinite(ratios[f"{name}.{key}_over_reference"]) and ratios[f"{name}.{key}_over_reference"] > 0
    expected = figures["guide.seconds_per_image"] / figures["reference.seconds_per_image"]
    assert ratios["guide.time_over_reference"] == pytest.approx(expected)  # one repeat: the median is that round
    shared = figures["guide.shared_bytes"] / figures["reference.state_bytes"]
    assert ratios["guide.shared_over_reference_state"] == pytest.approx(shared)


def test_a_trainable_text_encoder_is_a_part_of_the_step() -> None:
    settings = {"network.width": 16, "network.max_tokens": 24, "data.image_size": 32, "training.batch_size": 2, "training.device": "cpu"}
    subject = step.Subject("guide", step.parse(settings))
    assert "uncached_" not in subject.work and {"text_", "image_encoder_", "losses_"} <= set(subject.work)
    before = [p.detach().clone() for p in subject.network.parameters()]
    subject.work["text_"]()
    subject.work["losses_"]()
    assert all(torch.equal(p, q) for p, q in zip(before, subject.network.parameters(), strict=True))
    subject.work[""]()
    assert any(not torch.equal(p, q) for p, q in zip(before, subject.network.parameters(), strict=True))


def small(**more: object) -> Config:
    return parse({"network.width": 16, "data.image_size": 32, "training.batch_size": 2, "training.device": "cpu"} | more)


def test_a_step_is_timed_with_the_contrast_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name, settings, expected in (
        ("tmca", {"tmca.share": 0.25}, [True, False]),
        ("tmca", {"tmca.alignment": "off"}, [False]),
        ("guide", {}, [False]),
    ):
        subject = step.Subject(name, small(**settings))
        monkeypatch.setattr(step, "timed", lambda work: work() or (5.0 if taken[-1] else 1.0))
        taken.clear()

        def work(subject: step.Subject = subject) -> None:
            taken.append("words" in subject.network(subject.batch.images, subject.batch.text).hidden)

        assert step.expected_seconds(work, subject.network) == (0.25 * 5 + 0.75 if len(expected) == 2 else 1)
        assert taken == expected
        again = getattr(subject.network, "tmca", None)
        assert again is None or again == subject.config.tmca
        for _ in range(2):
            step.expected_seconds(lambda subject=subject: taken.append(False) or subject.work["losses_"](), subject.network)
        assert ["words" in answer.output.hidden for answer in subject.answers.values()] == expected


@pytest.mark.parametrize("name", ["tmca", "tmca-ssa"])
def test_the_peak_is_that_of_steps_with_the_contrast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    contrast = Tmca._contrast
    monkeypatch.setattr(
        Tmca, "_contrast", lambda self, hidden, level, target: levels.append(level) or contrast(self, hidden, level, target)
    )
    assert step._peak(small().flat(), name)["peak_rss_mb"] > 0
    assert levels == [0, 1, 2, 3] * 3


def test_the_peak_stays_when_memory_is_given_back() -> None:
    now = step.resident("VmRSS")
    block = torch.ones(60_000_000)  # 240 MB
    assert step.resident("VmRSS") - now == pytest.approx(240, abs=20)
    del block
    assert step.resident("VmRSS") - now < 20
    assert step.resident("VmHWM") - now > 220


def test_wrong_options_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["step", "--networks", "guide,alexnet"], "unknown network 'alexnet'"),
        (["federation", "--size", "224"], "No such option"),
        (["step", "--encoder", "resnet", "--text-encoder", "wordpiece"], "unknown image encoder 'resnet'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *arguments])
        assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.slow
def test_guide_holds_and_shares_less_than_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "step", "--networks", "guide", "--threads", "1", "--repeats", "2", "--json"])
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    assert min(ratios["guide.time_over_reference"], ratios["guide.forward_over_reference"]) > 0
    assert ratios["guide.memory_over_reference"] < 0.7
    assert ratios["guide.shared_over_reference_state"] < 0.25
