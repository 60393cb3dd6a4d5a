import json
from typing import Any

import pytest
import torch

from simulations.bench import dp
from tmca_core.cli import main
from tmca_core.config import parse
from tmca_core.privacy.gradients import by_loop, trainable


def run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "dp", *options, "--json"])
    assert stop.value.code == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_figures_and_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All but memory, which takes a process a kind."""
    monkeypatch.setattr(dp, "in_fresh_process", lambda work, settings, kind: float(len(kind)))
    value = run(capsys, "--batch", "3", "--size", "32", "--repeats", "1")
    figures, ratios = value["figures"], value["ratios"]
    assert (value["name"], value["repeats"]) == ("dp", 1)
    assert {"time", "memory", "opacus_hooks_time", "opacus_ghost_time"} <= set(ratios)
    assert ratios["time"] == pytest.approx(figures["vmap.seconds"] / figures["plain.seconds"])
    assert ratios["memory"] == len("vmap") / len("plain")
    assert ratios["opacus_ghost_memory"] == len("opacus_ghost") / len("plain")
    for kind in ("vmap", "opacus_hooks_contiguous", "opacus_ghost_contiguous"):
        assert figures[f"{kind}.gradient_error"] < 1e-4
        assert figures[f"{kind}.largest_clipped_norm_over_clip"] == pytest.approx(1, abs=1e-4)
    # As they come, on maps in channels_last memory:
    assert figures["opacus_hooks.gradient_error"] > 0.5 and figures["opacus_ghost.gradient_error"] > 0.01
    assert figures["opacus_ghost.largest_clipped_norm_over_clip"] > 1.01


def test_opacus_is_measured_on_the_same_function_with_nearly_all_parameters() -> None:
    config = parse({"data.image_size": 32, "training.batch_size": 2, "training.device": "cpu"})
    whole, layered = dp.Subject("plain", config), dp.Subject("opacus_hooks", config)
    batch = whole.drawn.batch
    with torch.no_grad():
        torch.testing.assert_close(layered.losses(layered.network, batch), whole.losses(whole.network, batch), rtol=1e-5, atol=1e-6)
    before, after = (sum(p.numel() for p in trainable(subject.network).values()) for subject in (whole, layered))
    assert 0 < before - after < 0.01 * before
    true, found = by_loop(whole.network, batch, whole.losses), by_loop(layered.network, batch, layered.losses)
    for name in ("head.weight", "image.encoder.stages.0.layers.0.dwconv.weight"):
        torch.testing.assert_close(found[name], true[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [dp.PLAIN, dp.OURS, *dp.OPACUS])
def test_every_kind_of_step_trains_and_leaves_no_hook(kind: str) -> None:
    subject = dp.Subject(kind, parse({"data.image_size": 32, "training.batch_size": 2, "training.device": "cpu"}))
    before = {name: parameter.detach().clone() for name, parameter in trainable(subject.network).items()}
    subject.step()
    assert any(not torch.equal(parameter, before[name]) for name, parameter in trainable(subject.network).items())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in subject.network.modules())
    assert not any("grad_sample" in parameter.__dict__ for parameter in subject.network.parameters())


@pytest.mark.slow
def test_a_private_step_takes_two_and_a_half_times_the_memory_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    value = run(capsys, "--repeats", "1")
    assert 20 < value["figures"]["plain.peak_mb"] < 1000  # the network's gradients and the optimiser's state alone are 20 MB
    assert value["ratios"]["memory"] <= 2.5
