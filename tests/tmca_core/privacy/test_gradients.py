"""Patients' gradients: engines against one backward pass a case, clipping by hand, and what must be caught before training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import load_sites
from tmca_core.config import Config, parse
from tmca_core.errors import PolicyRefusal, PrivacyError
from tmca_core.networks import NETWORKS, Network, Output, build_network
from tmca_core.networks.interface import Auxiliary
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, clipped_sum, flatten, pick, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.selftest import insist, measure
from tmca_core.privacy.training import draw, fit_privately, noisy_mean, patients_of, refuse_uncovered
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch
from tmca_core.training.centralised import build_pipeline, concatenate

CPU = torch.device("cpu")
SMALL = {
    "phantom.sites": 1, "phantom.cases": 24, "data.image_size": 32, "network.width": 32, "tmca.share": 1.0, "training.threads": 1,
    "privacy.enabled": True, "privacy.noise_multiplier": 1.0,
}  # fmt: skip


class Known:
    """A stream that gives the same bytes in every run of the tests."""

    def __init__(self, name: str = "") -> None:
        self.name, self.count = name, 0

    def read(self, size: int) -> bytes:
        self.count += 1
        return hashlib.shake_128(f"{self.name}{self.count}".encode()).digest(size)


@pytest.fixture(scope="module")
def cases() -> CaseTensors:
    return concatenate([site.train for site in load_sites(parse(SMALL)).values()])


def ready(cases: CaseTensors, patients: int, **settings: object) -> tuple[Network, Drawn, CaseLosses, Config]:
    config = parse(SMALL | settings)
    network = build_network(config).train()
    network.ready(CPU)
    drawn = draw(cases, patients_of(cases)[:patients], build_pipeline(network, config), config, CPU, Known())
    return network, drawn, training_losses(config.training, 0.5, coin=7), config


@pytest.mark.parametrize("name", NETWORKS.names())
def test_gradients_of_every_network_are_those_of_one_backward_pass_a_case(name: str, cases: CaseTensors) -> None:
    network, drawn, losses, _ = ready(cases, 4, **{"network.name": name})
    found = measure(network, drawn, losses, 1.0, engine=ENGINES["vmap"], chunk=3)
    assert found.gradient_error < 1e-5 and found.coupling < 1e-5
    assert found.influence <= 1.0001


@pytest.mark.parametrize("encoder", ("convnext-tiny", "efficientnet-lite0"))
def test_gradients_of_every_image_encoder_are_too_with_drop_path_or_without(encoder: str, cases: CaseTensors) -> None:
    network, drawn, losses, _ = ready(cases, 2, **{"network.name": "guide", "network.image_encoder": encoder})
    found = measure(network, drawn, losses, 1.0, engine=ENGINES["vmap"], chunk=2)
    assert found.gradient_error < 1e-5 and found.coupling < 1e-5


class Line(Network):
    """logits = a · mean(image) + b everywhere: gradients that can be worked out by hand."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.a, self.b = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        value = self.a * images.mean((1, 2, 3)) + self.b
        return Output(value[:, None, None, None].expand(-1, 1, *images.shape[-2:]))


def of_line(network: Network, batch: Batch) -> Tensor:
    """Loss = its logit: gradient (mean of the image, 1)."""
    return network(batch.images, batch.text).logits.mean((1, 2, 3))


def line_batch(*means: float) -> Batch:
    images = torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 32, 32).clone()
    n = len(means)
    ones, kinds = torch.ones(n, 2, dtype=torch.bool), torch.ones(n, 2, dtype=torch.int64)
    text = TextBatch(kinds, None, ones, torch.zeros(n, 6), kinds, torch.zeros(n), torch.arange(n))
    return Batch(images, torch.zeros_like(images), text)


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


def adversaries(batch: Batch) -> Iterator[Batch]:
    """Records made to move the sum as far as they can."""
    for scale in (0.0, 1.0, 1e6, 1e30):
        for mask in (0.0, 1.0):
            rng = torch.Generator().manual_seed(int(mask) + 3)
            images = scale * torch.randn(batch.images.shape, generator=rng)
            yield Batch(images, torch.full_like(batch.masks, mask), batch.text)
    yield Batch(torch.full_like(batch.images, torch.nan), batch.masks, batch.text)
    yield Batch(torch.full_like(batch.images, torch.inf), batch.masks, batch.text)


def test_no_patient_moves_the_sum_by_more_than_the_clip(cases: CaseTensors) -> None:
    network, drawn, losses, _ = ready(cases, 3, **{"network.name": "tmca-ssa"})
    one = pick(drawn.batch, slice(0, 1))
    others = pick(drawn.batch, slice(int(drawn.counts[0]), len(drawn.batch)))
    for clip in (1e-3, 0.5):
        base, _ = clipped_sum(network, Drawn(others, drawn.counts[1:]), losses, clip, engine=ENGINES["vmap"], chunk=8)
        for bad in adversaries(one):
            pairs = zip(_parts(bad.text), _parts(others.text), strict=True)
            text = TextBatch(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]
            both = Batch(torch.cat([bad.images, others.images]), torch.cat([bad.masks, others.masks]), text)
            counts = torch.cat([torch.tensor([1]), drawn.counts[1:]])
            moved, _ = clipped_sum(network, Drawn(both, counts), losses, clip, engine=ENGINES["vmap"], chunk=8)
            assert float((flatten(moved) - flatten(base)).norm()) <= 1.0001 * clip


def _parts(text: TextBatch) -> tuple[Tensor | None, ...]:
    return (text.ids, text.features, text.mask, text.zones, text.kinds, text.certainty, text.identity)


class Coupled(Line):
    """`coupling` says how the cases of a batch, or of earlier batches, enter each other's losses, all declared decomposable."""

    def __init__(self, coupling: str) -> None:
        super().__init__()
        self.coupling = coupling
        self.norm = nn.BatchNorm1d(1)
        self.memory = torch.zeros(0)

    def auxiliary(self, output: Output, masks: Tensor) -> dict[str, Auxiliary]:
        values = output.logits.mean((1, 2, 3)) + self.a
        if self.coupling == "contrast":
            scores = -((values[:, None] - values[None]) ** 2) / 0.07 + values[None]
            return {"coupled": Auxiliary(-scores.log_softmax(1).diagonal())}
        if self.coupling == "statistics":
            shared = (values - values.mean()) / (values.var(correction=0) + 1e-3).sqrt()
            return {"coupled": Auxiliary(shared + values)}
        self.memory, before = torch.cat([self.memory, values.detach()]), self.memory
        return {"coupled": Auxiliary(values * before.sum())}


@pytest.mark.parametrize("coupling", ("contrast", "statistics", "memory"))
def test_losses_that_couple_patients_are_caught_though_they_declare_otherwise(coupling: str) -> None:
    network = Coupled(coupling).train()
    nn.init.constant_(network.a, 0.5)
    drawn = Drawn(line_batch(0.1, 0.4, -0.3, 0.8), torch.ones(4, dtype=torch.int64))
    losses = training_losses(parse({}).training, 1.0, coin=1)
    with pytest.raises(PrivacyError, match=r"changes with the other cases|wrong by"):
        insist(network, drawn, losses, 1.0, engine=ENGINES["loop"], chunk=4)


def test_an_engine_that_is_wrong_is_caught() -> None:
    def doubled(network: Network, batch: Batch, losses: CaseLosses) -> dict[str, Tensor]:
        return {name: 2 * gradient for name, gradient in ENGINES["loop"](network, batch, losses).items()}

    with pytest.raises(PrivacyError, match="wrong by"):
        insist(Line(), Drawn(line_batch(1.0, 2.0), torch.tensor([1, 1])), of_line, 1.0, engine=doubled, chunk=2)


def test_settings_that_couple_patients_are_refused_and_say_what_to_do(cases: CaseTensors) -> None:
    config = parse(SMALL | {"network.name": "tmca", "tmca.alignment": "batch"})
    with pytest.raises(PolicyRefusal, match=r"tmca\.alignment=bank"):
        refuse_uncovered(build_network(config), config)
    network = Coupled("statistics")
    with pytest.raises(PolicyRefusal, match="BatchNorm"):
        refuse_uncovered(network, parse(SMALL))


def test_a_patients_cases_are_augmented_without_regard_to_the_others(cases: CaseTensors) -> None:
    config = parse(SMALL)
    network = build_network(config)
    pipeline, everyone = build_pipeline(network, config), patients_of(cases)
    together = draw(cases, everyone[:3], pipeline, config, CPU, Known("a"))
    first = draw(cases, everyone[:1], pipeline, config, CPU, Known("a"))
    count = int(first.counts[0])
    torch.testing.assert_close(together.batch.images[:count], first.batch.images, atol=0, rtol=0)
    views = draw(cases, everyone[:1], pipeline, config.with_values({"privacy.views": 3}), CPU, Known("a"))
    assert int(views.counts[0]) == 3 * count


def test_noise_has_the_size_that_was_accounted_and_the_divisor_is_the_public_one() -> None:
    sums = {"w": torch.zeros(200_000), "v": torch.zeros(10, 10)}
    released = noisy_mean(sums, Mechanism(noise_multiplier=2.0, clip=0.5, sample_rate=0.1, expected=8.0, steps=1), Known())
    assert released["w"].std().item() == pytest.approx(2.0 * 0.5 / 8.0, rel=0.01)
    assert abs(released["w"].mean().item()) < 5 * 0.125 / 200_000**0.5
    assert released["v"].shape == (10, 10)


def test_empty_draws_take_a_step_of_noise_alone(cases: CaseTensors) -> None:
    plain = {"training.optimizer": "sgd", "training.learning_rate": 1.0, "training.weight_decay": 0.0, "training.warmup": 0.0}
    config = parse(SMALL | plain | {"network.name": "guide", "training.schedule": "constant", "federation.rounds": 1})
    network = build_network(config)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    mechanism = Mechanism(noise_multiplier=1.0, clip=1.0, sample_rate=0.0, expected=4.0, steps=2)
    pipeline = build_pipeline(network, config)
    result = fit_privately(network, cases, pipeline, config, mechanism, round=1, site="a", state=None, device=CPU, stream=Known())
    moved = torch.cat([(parameter.detach() - before[name]).flatten() for name, parameter in network.named_parameters()])
    assert result.steps == 2
    assert moved.std().item() == pytest.approx(2**0.5 / 4, rel=0.02)


def test_without_noise_to_speak_of_and_everybody_drawn_it_trains(cases: CaseTensors) -> None:
    config = parse(SMALL | {"network.name": "guide", "federation.rounds": 2, "augmentation.noise": 0.0})
    network = build_network(config)
    pipeline = build_pipeline(network, config)
    mechanism = Mechanism(noise_multiplier=1e-6, clip=1.0, sample_rate=1.0, expected=float(cases.patients), steps=6)
    drawn = draw(cases, patients_of(cases), pipeline, config, CPU, Known("x"))
    losses = training_losses(config.training, 1.0, coin=1)
    state, values = None, [float(losses(network, drawn.batch).mean())]
    for round in (1, 2):
        result = fit_privately(network, cases, pipeline, config, mechanism, round=round, site="a", state=state, device=CPU, stream=Known())
        state = result.state
        values.append(float(losses(network, drawn.batch).mean()))
    assert values[2] < values[0] - 0.05
    assert result.loss != result.loss  # not a number: it is no release
