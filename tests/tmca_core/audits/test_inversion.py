"""What one update gives back, and what keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import tiny
from tmca_core.audits.conduct import conduct
from tmca_core.audits.inversion import ROWS, Setting, inversion, setting_of
from tmca_core.audits.page import render
from tmca_core.audits.rehearsal import Subject, subject_of
from tmca_core.audits.taken import RATE, Victim, psnr, recover, ssim, update_of, victim_of
from tmca_core.errors import NotApplicable
from tmca_core.losses.segmentation import dice_cross_entropy
from tmca_core.training.batches import prepare_images

SMALL = ["data.image_size=32", "phantom.sites=1", "phantom.cases=12", "network.width=16", "network.heads=2"]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(None, tiny(tmp_path_factory.mktemp("cache"), phantom__sites=1))


@pytest.fixture(scope="module")
def victim(subject: Subject) -> Victim:
    return victim_of(subject, 32, 4)


def test_the_update_is_the_projects_own_a_step_down_the_gradient(victim: Victim) -> None:
    found = update_of(victim, Setting())
    victim.network.load_state_dict(victim.start)
    case = victim.cases.subset([0])
    logits = victim.network(prepare_images(case.images), victim.pipeline.encode([case.cases[0].text])).logits
    loss = dice_cross_entropy(logits, case.masks.float()).mean()
    names = [name for name, _ in victim.network.named_parameters()]
    gradients = torch.autograd.grad(loss, list(victim.network.parameters()))
    length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
    for name, gradient in zip(names, gradients, strict=True):
        assert torch.allclose(found[name], -RATE * gradient / max(1.0, length), atol=2e-6)


def test_a_plain_update_gives_film_and_words_away_and_a_private_one_does_not(victim: Victim) -> None:
    plain, private = (recover(victim, update_of(victim, ROWS[name]), ROWS[name], 220) for name in ("plain", "private, σ = 0.1"))
    assert plain.psnr >= 30 and plain.ssim > 0.9 and plain.recall == 1.0 and plain.words > 3
    assert private.psnr <= victim.guess + 1 and private.ssim < 0.3 and private.recall <= 2 / private.words


def test_measures_by_hand() -> None:
    truth = torch.linspace(-1, 1, 256).view(1, 16, 16)
    assert psnr(truth + 0.02, truth) == pytest.approx(40.0, abs=1e-4)  # 20 log10(2 / 0.02)
    waves = torch.sin(2 * torch.pi * torch.arange(16) / 7).expand(1, 16, 16)  # every window's mean is 0
    assert ssim(truth, truth) == pytest.approx(1.0) and -1 < ssim(-waves, waves) < -0.99


def test_a_run_is_attacked_under_its_own_protection(subject: Subject, tmp_path: Path) -> None:
    assert setting_of(subject) == Setting()
    private = subject_of(None, tiny(tmp_path, privacy__enabled=True, privacy__noise_multiplier=0.7, federation__compression="int8"))
    assert setting_of(private) == Setting(noise=0.7, compression="int8")
    secure = subject_of(None, tiny(tmp_path, federation__secure=True))
    assert setting_of(secure).cases == 3
    sums = update_of(victim_of(secure, 32, 4), setting_of(secure))
    alone = update_of(victim_of(secure, 32, 4), replace(setting_of(secure), cases=1))
    assert any(not torch.allclose(sums[name], alone[name]) for name in sums)


def test_an_attack_too_weak_for_the_film_says_nothing_of_it(tmp_path: Path) -> None:
    private = [*SMALL, "phantom.cases=30", "privacy.enabled=true", "privacy.noise_multiplier=1"]
    report = conduct(inversion(iterations=1, only=True, assignments=private), tmp_path)
    film, words = report.evidence["positive"].bounds
    assert words.exceeds and not film.exceeds
    assert report.verdict == "INVALID" and "was not flagged by film from one update" in report.sentence


def test_a_training_in_one_place_sends_nothing_to_invert(subject: Subject) -> None:
    with pytest.raises(NotApplicable, match="sends no update"):
        setting_of(replace(subject, arm="pooled"))


@pytest.mark.slow
def test_the_whole_audit_and_its_pictures(tmp_path: Path) -> None:
    report = conduct(inversion(iterations=220, only=True, assignments=SMALL), tmp_path / "plain")
    assert report.verdict == "FAIL" and "film from one update" in report.sentence
    assert "data:image/png;base64," in render([report]) and report.evidence["target"].bounds[0].value >= 30
    private = [*SMALL, "phantom.cases=30", "privacy.enabled=true", "privacy.noise_multiplier=1"]
    assert conduct(inversion(iterations=220, only=True, assignments=private), tmp_path / "private").verdict == "PASS"
