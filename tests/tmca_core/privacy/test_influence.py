"""What one patient can do to the clipped sum: hundreds of random and hostile patients removed, and couplings that this finds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from private_cases import CPU, SMALL, Coupled, Line, line_batch, ready, some_cases
from torch import Tensor, nn

from tmca_core.config import parse
from tmca_core.errors import PrivacyError
from tmca_core.networks import NETWORKS, Network, Output, build_network
from tmca_core.networks.interface import Auxiliary
from tmca_core.networks.tmca import Tmca
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, Engine, clipped_sum, flatten, in_their_batch, pick, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.selftest import COINS, check_site, insist
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch
from tmca_core.training.centralised import build_pipeline

SCALES = (0.0, 1e-30, 1e-3, 1.0, 1e3, 1e6, 1e15, 1e30, 3e38)
FINITE = ("noise", "flat", "spike", "stripes")
PATTERNS = (*FINITE, "one NaN", "one infinity", "all NaN")
MASKS = ("none", "all", "one pixel", "noise", "halves")


def patients(pool: Batch, count: int) -> Iterator[Drawn]:
    """Patients with one to three cases each, made to move the sum as far as they can; of any patterns, sizes and reports."""
    rng = torch.Generator().manual_seed(5)

    def one_of(choices: tuple[str, ...] | tuple[float, ...]) -> object:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    for _ in range(count):
        cases = int(torch.randint(1, 4, (), generator=rng))
        rows = torch.randint(len(pool), (cases,), generator=rng)
        base = pick(pool, rows)
        patterns = PATTERNS if float(torch.rand((), generator=rng)) < 0.3 else FINITE
        images = torch.stack([_image(base.images[0].shape, one_of(patterns), one_of(SCALES), rng) for _ in range(cases)])
        masks = torch.stack([_mask(base.masks[0].shape, one_of(MASKS), rng) for _ in range(cases)])
        yield Drawn(Batch(images, masks, base.text), torch.tensor([cases]))


def _image(shape: torch.Size, pattern: object, scale: object, rng: torch.Generator) -> Tensor:
    assert isinstance(scale, float)
    image = scale * torch.randn(shape, generator=rng).clamp(-1, 1)
    if pattern == "flat":
        image = torch.full(shape, scale)
    elif pattern == "stripes":
        image[..., ::2] = -scale
    elif pattern == "all NaN":
        image = torch.full(shape, math.nan)
    elif pattern != "noise":
        place = tuple(int(torch.randint(side, (), generator=rng)) for side in shape)
        image[place] = {"spike": 1e6 * min(scale, 1e30), "one NaN": math.nan, "one infinity": math.inf}[str(pattern)]
    return image


def _mask(shape: torch.Size, mask: object, rng: torch.Generator) -> Tensor:
    truth = torch.zeros(shape)
    if mask == "all":
        truth += 1
    elif mask == "one pixel":
        truth[..., 3, 5] = 1
    elif mask == "noise":
        truth = (torch.rand(shape, generator=rng) < 0.5).float()
    elif mask == "halves":
        truth[..., : shape[-1] // 2] = 1
    return truth


def together(*draws: Drawn) -> Drawn:
    """The patients of all."""
    parts = zip(*([d.batch.text.ids, d.batch.text.features, *_rest(d.batch.text)] for d in draws), strict=True)
    text = TextBatch(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]
    images, masks = (torch.cat(tensors) for tensors in zip(*((d.batch.images, d.batch.masks) for d in draws), strict=True))
    return Drawn(Batch(images, masks, text), torch.cat([d.counts for d in draws]))


def _rest(text: TextBatch) -> tuple[Tensor, ...]:
    return (text.mask, text.zones, text.kinds, text.certainty, text.identity)


def largest_influence(network: Network, losses: CaseLosses, tried: Iterator[Drawn], others: Drawn, *, engine: Engine) -> tuple[float, int]:
    """Largest ‖S with the patient − S without‖ / C over the patients, for a small C and a large one; and how many were not clipped away."""
    largest, counted = 0.0, 0
    clips = (1e-3, 0.5)
    without = [flatten(clipped_sum(network, others, losses, clip, engine=engine, chunk=8)[0]) for clip in clips]
    for number, patient in enumerate(tried):
        # First, in the middle and last: where a patient stands must not matter.
        first = (pick_patients(others, 0, 1), patient, pick_patients(others, 1, 2)) if number % 3 == 1 else (patient, others)
        drawn = together(*(reversed(first) if number % 3 == 2 else first))
        found, _ = clipped_sum(network, drawn, losses, clips[number % 2], engine=engine, chunk=8)
        moved = float((flatten(found) - without[number % 2]).norm()) / clips[number % 2]
        assert math.isfinite(moved)
        largest, counted = max(largest, moved), counted + (moved > 0.5)
    return largest, counted


def pick_patients(drawn: Drawn, first: int, last: int) -> Drawn:
    ends = [0, *drawn.counts.cumsum(0).tolist()]
    return Drawn(pick(drawn.batch, slice(ends[first], ends[last])), drawn.counts[first:last])


def _bounded(name: str, engine: str, count: int) -> None:
    network, drawn, losses, _ = ready(2, **{"network.name": name})
    with torch.random.fork_rng(devices=[]):
        largest, counted = largest_influence(network, losses, patients(drawn.batch, count), drawn, engine=ENGINES[engine])
    assert largest <= 1.0001
    assert largest > 0.999 and counted > count / 3  # else nobody was clipped, and nothing was tried


@pytest.mark.parametrize(("name", "engine"), [("guide", "vmap"), ("unet", "opacus")])
def test_no_patient_moves_the_sum_by_more_than_the_clip(name: str, engine: str) -> None:
    _bounded(name, engine, 24)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine"), [("tmca-ssa", "vmap"), ("unet", "opacus")])
def test_none_of_hundreds_of_hostile_patients_does(name: str, engine: str) -> None:
    _bounded(name, engine, 240)


@pytest.mark.parametrize("coupling", ("contrast", "statistics", "memory"))
def test_the_same_test_finds_losses_that_couple_patients(coupling: str) -> None:
    network = Coupled(coupling).train()
    torch.nn.init.constant_(network.a, 0.5)
    others = Drawn(line_batch(0.1, 0.4, -0.3), torch.ones(3, dtype=torch.int64))
    losses = training_losses(parse({}).training, 1.0, coin=1)
    tried = (Drawn(line_batch(value), torch.tensor([1])) for value in (0.8, -2.0, 5.0, 0.3))
    assert largest_influence(network, losses, tried, others, engine=in_their_batch)[0] > 1.01


@pytest.mark.parametrize("coupling", ("", "contrast", "statistics", "memory"))
def test_and_so_does_the_self_test_before_training(coupling: str) -> None:
    network: Network = Coupled(coupling).train() if coupling else Line().train()
    drawn = Drawn(line_batch(0.1, 0.4, -0.3, 0.8), torch.ones(4, dtype=torch.int64))
    losses = training_losses(parse({}).training, 1.0, coin=1)
    if not coupling:
        assert insist(network, drawn, losses, 1.0, engine=ENGINES["loop"], chunk=4).influence <= 1.0001
        return
    torch.nn.init.constant_(network.a, 0.5)
    with pytest.raises(PrivacyError, match=r"changes with the other cases|wrong by"):
        insist(network, drawn, losses, 1.0, engine=ENGINES["loop"], chunk=4)


def test_the_contrast_within_a_batch_of_the_real_network_is_found_by_both() -> None:
    contrast = {"network.name": "tmca", "tmca.alignment": "batch", "tmca.temperature": 0.07, "tmca.share": 1.0}  # in every step
    network, drawn, losses, _ = ready(6, **contrast)
    others = pick_patients(drawn, 0, 3)
    tried = (pick_patients(drawn, k, k + 1) for k in range(3, 6))
    with torch.random.fork_rng(devices=[]):
        assert largest_influence(network, losses, tried, others, engine=in_their_batch)[0] > 1.01
        with pytest.raises(PrivacyError, match="changes with the other cases"):
            insist(network, drawn, losses, 1.0, engine=ENGINES["vmap"], chunk=8)


class Undeclared(Tmca):
    """`tmca` under a name that nothing else knows, whose contrast says that it is decomposable."""

    def auxiliary(self, output: Output, masks: Tensor) -> dict[str, Auxiliary]:
        return {name: replace(loss, decomposable=True) for name, loss in super().auxiliary(output, masks).items()}


@pytest.mark.parametrize(("kind", "says"), [(Tmca, "'alignment' declares"), (Undeclared, "changes with the other cases")])
def test_a_coupling_loss_of_some_steps_only_is_found_before_training(kind: type[Tmca], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"other-{kind.__name__}"
    monkeypatch.setattr(NETWORKS, "_factories", dict(NETWORKS._factories))  # given back afterwards, without it
    NETWORKS.register(name)(kind)
    config = parse(SMALL | {"network.name": name, "tmca.alignment": "batch", "tmca.share": 0.25})
    network = build_network(config)
    mechanism = Mechanism(noise_multiplier=1.0, clip=1e-3, sample_rate=0.1, expected=2.0, steps=1)
    with pytest.raises(PrivacyError, match=says):
        check_site(network, some_cases(), build_pipeline(network, config), config, mechanism, CPU)


def test_the_self_test_throws_both_sides_of_nearly_any_coin() -> None:
    with torch.random.fork_rng(devices=[]):
        low, high = (float(torch.rand((), generator=torch.Generator().manual_seed(coin))) for coin in COINS)
    assert low < 0.001 and high > 0.99


class Deep(Line):
    """nn.MultiheadAttention over pixels, and a residual branch that drop-path leaves out in half of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.branch = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.embed, self.out = nn.Conv2d(1, 8, 8, stride=8), nn.Linear(8, 1)

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        kept = (torch.rand(()) < 0.5).to(x) * 2 if self.training else 1.0
        value = self.out((x + kept * self.branch(x)).mean(1))
        return Output(value[:, :, None, None].expand(-1, 1, *images.shape[-2:]) + 0 * (self.a + self.b))


def test_attention_and_drop_path_have_the_gradients_of_one_pass_a_case() -> None:
    torch.manual_seed(0)
    network, images = Deep().train(), torch.randn(5, 1, 32, 32)
    few = line_batch(*[0.0] * 5)
    drawn = Drawn(Batch(images, few.masks, few.text), torch.tensor([2, 1, 2]))
    for coin in COINS:
        losses = training_losses(parse({}).training, 1.0, coin)
        found = insist(network, drawn, losses, 1e-3, engine=ENGINES["vmap"], chunk=3)
        assert found.gradient_error < 1e-5 and found.influence <= 1.0001
    gradients = [ENGINES["vmap"](network, drawn.batch, training_losses(parse({}).training, 1.0, coin)) for coin in COINS]
    assert gradients[0]["branch.weight"].abs().sum() > 0 and gradients[1]["branch.weight"].abs().sum() == 0
