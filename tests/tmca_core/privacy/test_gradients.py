"""Patients' gradients: engines against one backward pass a case, clipping by hand, and what must be caught before training."""

from __future__ import annotations

import pytest
import torch
from private_cases import CPU, SMALL, Coupled, Known, Line, line_batch, of_line, ready, some_cases
from torch import Tensor, nn

from tmca_core.config import parse
from tmca_core.errors import PolicyRefusal, PrivacyError
from tmca_core.networks import NETWORKS, Network, Output, build_network
from tmca_core.networks.encoders import IMAGE_ENCODERS
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, clipped_sum, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.selftest import insist, measure
from tmca_core.privacy.training import draw, fit_privately, noisy_mean, patients_of, refuse_uncovered
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch
from tmca_core.training.centralised import build_pipeline


@pytest.mark.parametrize("name", NETWORKS.names())
def test_gradients_of_every_network_are_those_of_one_backward_pass_a_case(name: str) -> None:
    network, drawn, losses, _ = ready(4, **{"network.name": name})
    found = measure(network, drawn, losses, 1.0, engine=ENGINES["vmap"], chunk=3)
    assert found.gradient_error < 1e-5 and found.coupling < 1e-5
    assert found.influence <= 1.0001


def test_gradients_of_the_small_image_encoder_with_random_weights_are_too() -> None:
    _agree("guide", "efficientnet-lite0")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS.names())
@pytest.mark.parametrize("name", ("guide", "tmca-ssa"))
def test_gradients_with_every_image_encoder_are_too(name: str, encoder: str) -> None:
    _agree(name, encoder)


def _agree(name: str, encoder: str) -> None:
    network, drawn, losses, _ = ready(2, **{"network.name": name, "network.image_encoder": encoder})
    found = measure(network, drawn, losses, 1.0, engine=ENGINES["vmap"], chunk=2)
    assert found.gradient_error < 1e-5 and found.coupling < 1e-5
    assert found.influence <= 1.0001


@pytest.mark.parametrize("engine", ("vmap", "loop"))
@pytest.mark.parametrize("chunk", (1, 2, 3, 100))
def test_each_patients_mean_is_clipped_and_not_each_case(engine: str, chunk: int) -> None:
    # Patients: (3, 1) alone, norm √10; (0, 1) and (8, 1), mean (4, 1), norm √17; (0, 1), norm 1, not clipped by C = 2.
    drawn = Drawn(line_batch(3.0, 0.0, 8.0, 0.0), torch.tensor([1, 2, 1]))
    sums, norms = clipped_sum(Line(), drawn, of_line, 2.0, engine=ENGINES[engine], chunk=chunk)
    torch.testing.assert_close(norms, torch.tensor([10.0, 17.0, 1.0]).double().sqrt())
    assert sums["a"].item() == pytest.approx(3 * 2 / 10**0.5 + 4 * 2 / 17**0.5)
    assert sums["b"].item() == pytest.approx(2 / 10**0.5 + 2 / 17**0.5 + 1)


def test_a_patient_whose_gradient_is_not_finite_counts_as_nothing() -> None:
    drawn = Drawn(line_batch(3.0, float("nan"), float("inf"), 1e30), torch.tensor([1, 1, 1, 1]))
    sums, norms = clipped_sum(Line(), drawn, of_line, 1.0, engine=ENGINES["vmap"], chunk=4)
    assert norms.isinf().tolist() == [False, True, True, False]
    assert sums["a"].item() == pytest.approx(3 / 10**0.5 + 1)


class Wide(Network):
    """logits = ⟨w, image⟩ everywhere, so that w's gradient is the image: 12,288 numbers, and of v the first 48."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        # Parameters in another than the standard memory layout must make no difference.
        self.w = nn.Parameter(torch.zeros(3, 64, 64).permute(1, 2, 0).contiguous().permute(2, 0, 1))
        self.v = nn.Parameter(torch.zeros(3, 4, 4))

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        value = (self.w * images).sum((1, 2, 3)) + (self.v * images[:, :, :4, :4]).sum((1, 2, 3))
        return Output(value[:, None, None, None].expand(-1, 1, *images.shape[-2:]))


@pytest.mark.parametrize("engine", ("vmap", "loop"))
def test_long_gradients_are_clipped_by_norms_in_float64(engine: str) -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3, 1e25]).view(4, 1, 1, 1)
    few = line_batch(0.0, 0.0, 0.0, 0.0)
    drawn = Drawn(Batch(images, few.masks, few.text), torch.tensor([1, 1, 1, 1]))
    sums, norms = clipped_sum(Wide(), drawn, of_line, 2.0, engine=ENGINES[engine], chunk=3)
    flat = torch.cat([images.flatten(1), images[:, :, :4, :4].flatten(1)], 1).double()
    length = flat.square().sum(1).sqrt()
    torch.testing.assert_close(norms, length, rtol=1e-12, atol=0)
    expected = (flat * (2.0 / length).clamp_max(1.0)[:, None]).sum(0)
    torch.testing.assert_close(torch.cat([sums["w"].flatten(), sums["v"].flatten()]).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", (1, 2, 8))
def test_a_case_that_is_not_finite_costs_its_own_patient_and_no_other(chunk: int) -> None:
    # Patients: (3, 1); (NaN, 1) and (1, 1); (0, 1) and (8, 1), mean (4, 1).
    drawn = Drawn(line_batch(3.0, float("nan"), 1.0, 0.0, 8.0), torch.tensor([1, 2, 2]))
    sums, norms = clipped_sum(Line(), drawn, of_line, 2.0, engine=ENGINES["vmap"], chunk=chunk)
    assert norms.isinf().tolist() == [False, True, False]
    assert sums["a"].item() == pytest.approx(3 * 2 / 10**0.5 + 4 * 2 / 17**0.5)


@pytest.mark.parametrize("value", (1e30, 1e35, 1e37, 3e38))
def test_the_longest_gradients_are_clipped_or_dropped_but_never_longer_than_the_clip(value: float) -> None:
    """3·10³⁸ has the norm 3·10⁴⁰: float32 holds the factor 3·10⁻⁴⁴ with an error of some per cent."""
    few = line_batch(0.0, 0.0)
    drawn = Drawn(
        Batch(torch.full((2, 3, 64, 64), value) * torch.tensor([1.0, 0.7]).view(2, 1, 1, 1), few.masks, few.text), torch.ones(2).long()
    )
    for patient in (0, 1):
        one = drawn.without(1 - patient)
        assert one is not None
        sums, norms = clipped_sum(Wide(), one, of_line, 1e-3, engine=ENGINES["vmap"], chunk=2)
        length = float(torch.cat([sums["w"].flatten(), sums["v"].flatten()]).double().norm())
        assert length == pytest.approx(0.0 if norms.isinf().item() else 1e-3, rel=1e-5)


def test_an_engine_that_is_wrong_is_caught() -> None:
    def doubled(network: Network, batch: Batch, losses: CaseLosses) -> dict[str, Tensor]:
        return {name: 2 * gradient for name, gradient in ENGINES["loop"](network, batch, losses).items()}

    with pytest.raises(PrivacyError, match="wrong by"):
        insist(Line(), Drawn(line_batch(1.0, 2.0), torch.tensor([1, 1])), of_line, 1.0, engine=doubled, chunk=2)


def test_settings_that_couple_patients_are_refused_and_say_what_to_do() -> None:
    config = parse(SMALL | {"network.name": "tmca", "tmca.alignment": "batch"})
    with pytest.raises(PolicyRefusal, match=r"tmca\.alignment=bank"):
        refuse_uncovered(build_network(config), config)
    network = Coupled("statistics")
    with pytest.raises(PolicyRefusal, match="BatchNorm"):
        refuse_uncovered(network, parse(SMALL))


def test_a_patients_cases_are_augmented_without_regard_to_the_others() -> None:
    config = parse(SMALL)
    network = build_network(config)
    pipeline, everyone = build_pipeline(network, config), patients_of(some_cases())
    together = draw(some_cases(), everyone[:3], pipeline, config, CPU, Known("a"))
    first = draw(some_cases(), everyone[:1], pipeline, config, CPU, Known("a"))
    count = int(first.counts[0])
    torch.testing.assert_close(together.batch.images[:count], first.batch.images, atol=0, rtol=0)
    views = draw(some_cases(), everyone[:1], pipeline, config.with_values({"privacy.views": 3}), CPU, Known("a"))
    assert int(views.counts[0]) == 3 * count


def test_noise_has_the_size_that_was_accounted_and_the_divisor_is_the_public_one() -> None:
    sums = {"w": torch.zeros(200_000), "v": torch.zeros(10, 10)}
    released = noisy_mean(sums, Mechanism(noise_multiplier=2.0, clip=0.5, sample_rate=0.1, expected=8.0, steps=1), Known())
    assert released["w"].std().item() == pytest.approx(2.0 * 0.5 / 8.0, rel=0.01)
    assert abs(released["w"].mean().item()) < 5 * 0.125 / 200_000**0.5
    assert released["v"].shape == (10, 10)


def test_empty_draws_take_a_step_of_noise_alone() -> None:
    plain = {"training.optimizer": "sgd", "training.learning_rate": 1.0, "training.weight_decay": 0.0, "training.warmup": 0.0}
    config = parse(SMALL | plain | {"network.name": "guide", "training.schedule": "constant", "federation.rounds": 1})
    network = build_network(config)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    mechanism = Mechanism(noise_multiplier=1.0, clip=1.0, sample_rate=0.0, expected=4.0, steps=2)
    pipeline = build_pipeline(network, config)
    result = fit_privately(network, some_cases(), pipeline, config, mechanism, round=1, site="a", state=None, device=CPU, stream=Known())
    moved = torch.cat([(parameter.detach() - before[name]).flatten() for name, parameter in network.named_parameters()])
    assert result.steps == 2
    assert moved.std().item() == pytest.approx(2**0.5 / 4, rel=0.02)


def test_without_noise_to_speak_of_and_everybody_drawn_it_trains() -> None:
    config = parse(SMALL | {"network.name": "guide", "federation.rounds": 2, "augmentation.noise": 0.0})
    network = build_network(config)
    pipeline = build_pipeline(network, config)
    mechanism = Mechanism(noise_multiplier=1e-6, clip=1.0, sample_rate=1.0, expected=float(some_cases().patients), steps=6)
    drawn = draw(some_cases(), patients_of(some_cases()), pipeline, config, CPU, Known("x"))
    losses = training_losses(config.training, 1.0, coin=1)
    state, values = None, [float(losses(network, drawn.batch).mean())]
    for round in (1, 2):
        result = fit_privately(
            network, some_cases(), pipeline, config, mechanism, round=round, site="a", state=state, device=CPU, stream=Known()
        )
        state = result.state
        values.append(float(losses(network, drawn.batch).mean()))
    assert values[2] < values[0] - 0.05
    assert result.loss != result.loss  # not a number: it is no release
