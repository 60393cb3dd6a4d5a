"""What one patient can do to the clipped sum: hundreds of random and hostile patients removed, and couplings that this finds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from private_cases import Coupled, Line, line_batch, ready
from torch import Tensor

from tmca_core.config import parse
from tmca_core.errors import PrivacyError
from tmca_core.networks import Network
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, Engine, clipped_sum, flatten, in_their_batch, pick, training_losses
from tmca_core.privacy.selftest import insist
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch

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
    network, drawn, losses, _ = ready(4, **contrast)
    others = pick_patients(drawn, 0, 3)
    tried = iter([pick_patients(drawn, 3, 4)])  # the first patient has no target, which leaves a film out of the contrast
    with torch.random.fork_rng(devices=[]):
        assert largest_influence(network, losses, tried, others, engine=in_their_batch)[0] > 1.01
        with pytest.raises(PrivacyError, match="changes with the other cases"):
            insist(network, drawn, losses, 1.0, engine=ENGINES["vmap"], chunk=8)
