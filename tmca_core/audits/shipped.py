"""The private step as it is shipped, made callable: one call of `fit_privately` with one step in which everybody is drawn.

What is released is read off the weights, before and after, as anybody outside of the hospital could. Nothing of the step is replaced:
draws, gradients, clipping, noise and the optimiser are those of training. The settings that an audit needs are plain settings: SGD whose
learning rate undoes the division by C and b, no augmentation, auxiliary losses at full weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tmca_core.cases.case import CaseTensors
from tmca_core.config import Config
from tmca_core.errors import AuditInvalid
from tmca_core.networks.interface import Network, Output
from tmca_core.privacy import gradients, selftest, training
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.randomness import Stream
from tmca_core.text.encoders import build_text_encoder
from tmca_core.text.features import TextBatch, TextPipeline

OTHERS, CASES = 3, 2  # patients beside the canary, and cases of each
CANARY = "\x7fcanary"  # patient id: sorts after those of real patients
NEXT_TO_NOTHING = 1e-9  # noise multiplier with which a step's sum is read
BITES = 1e-6  # a tight clip over the canary's gradient: whatever is left unclipped stands out a million times

UNCLIPPED = 1e30  # a clip that nothing reaches

Vector = NDArray[np.float64]

_PLAIN = {
    "training.optimizer": "sgd", "training.weight_decay": 0.0, "training.warmup": 0.0, "training.schedule": "constant",
    "training.ema": 0.0, "federation.rounds": 10, "tmca.share": 1.0, "augmentation.flip": 0.0, "augmentation.rotate": 0.0,
    "augmentation.scale": 0.0, "augmentation.shift": 0.0, "augmentation.gain": 0.0, "augmentation.noise": 0.0,
    "augmentation.no_report": 0.0,
}  # fmt: skip


class Replayed:
    """Bytes that are the same in every replay: for reading off noise-free sums of two neighbours under one coin, never for a release."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        self._count += 1
        return hashlib.shake_128(f"{self._name}/{self._count}".encode()).digest(size)


class Small(Network):
    """A network of some 500 numbers with the kinds of tensor that real ones have, so that a step takes milliseconds."""

    uses_text = False

    def __init__(self, config: Config) -> None:
        super().__init__(build_text_encoder(config.network))
        targets = len(config.data.target_names)
        self.down = nn.Conv2d(config.data.channels, 6, 4, stride=4)
        self.norm = nn.GroupNorm(2, 6)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, targets, 1)

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`; the report is ignored."""
        hidden = nn.functional.gelu(self.norm(self.down(images)))
        hidden = hidden + nn.functional.gelu(self.middle(hidden))
        return Output(nn.functional.interpolate(self.head(hidden), size=images.shape[-2:], mode="nearest"))


@dataclass(frozen=True)
class Shipped:
    """A site's private step.

    Attributes:
        network: at the weights that every step starts from.
        pipeline: of its reports.
        config: of the run; what an audit needs otherwise is set here.
        others: cases of the patients beside the canary.
        clip: C.
        start: all tensors of the network before a step.
    """

    network: Network
    pipeline: TextPipeline
    config: Config
    others: CaseTensors
    clip: float
    start: Mapping[str, Tensor]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Trained numbers of every tensor that is released, in order."""
        return {name: parameter.numel() for name, parameter in gradients.trainable(self.network).items()}

    @cached_property
    def plain(self) -> Config:
        """The configuration whose step moves the weights by √d·(S/C + σz)."""
        rate = self.expected / self.clip * math.sqrt(sum(self.sizes.values()))
        return self.config.with_values({**_PLAIN, "training.learning_rate": rate})

    @property
    def expected(self) -> float:
        """b, a public constant: as many as there are patients without the canary."""
        return float(self.others.patients)

    def with_clip(self, clip: float) -> Shipped:
        """The same step with another C."""
        return replace(self, clip=clip)

    def released(self, data: CaseTensors, noise_multiplier: float, stream: Stream | None = None) -> Vector:
        """(d,) float64: what one step on `data` gives away, in units of C: S/C + σz."""
        self.network.load_state_dict(self.start)
        mechanism = Mechanism(noise_multiplier, self.clip, 1.0, self.expected, 1)
        training.fit_privately(
            self.network, data, self.pipeline, self.plain, mechanism,
            round=10, site="audit", state=None, device=torch.device("cpu"), stream=stream,
        )  # fmt: skip
        now = self.network.state_dict()
        moved = [self.start[name].double().flatten() - now[name].double().flatten() for name in self.sizes]
        return torch.cat(moved).numpy() / math.sqrt(sum(self.sizes.values()))

    def uncovered(self) -> list[str]:
        """Tensors that the last step moved although they do not train: they would leave without noise."""
        now = self.network.state_dict()
        return [name for name, before in self.start.items() if name not in self.sizes and not torch.equal(before, now[name])]

    def sum_of(self, data: CaseTensors) -> Vector:
        """(d,): S/C without noise to speak of, under one and the same coin for all data."""
        return self.released(data, NEXT_TO_NOTHING, Replayed("coin"))

    def lengths(self, record: CaseTensors) -> dict[str, float]:
        """Length of one patient's gradient before clipping, by tensor."""
        self.network.load_state_dict(self.start)
        losses = gradients.training_losses(self.plain.training, 0.9, 1)
        engine, chunk = gradients.ENGINES[self.config.privacy.engine], self.config.privacy.chunk
        sums, _ = gradients.clipped_sum(self.network, self._drawn(record), losses, UNCLIPPED, engine=engine, chunk=chunk)
        return {name: float(gradient.double().norm()) for name, gradient in sums.items()}

    def self_test(self, data: CaseTensors) -> selftest.Findings:
        """Gradients of single cases against one backward pass a case, and against the loss as computed in its batch."""
        self.network.load_state_dict(self.start)
        engine = gradients.ENGINES[self.config.privacy.engine]
        losses = gradients.training_losses(self.plain.training, 0.9, 1)
        return selftest.measure(self.network, self._drawn(data), losses, self.clip, engine=engine, chunk=self.config.privacy.chunk)

    def _drawn(self, data: CaseTensors) -> gradients.Drawn:
        self.network.train()
        self.network.ready(torch.device("cpu"))
        rows = training.patients_of(data)
        one = self.plain.with_values({"privacy.views": 1})
        return training.draw(data, rows, self.pipeline, one, torch.device("cpu"), Replayed("coin"))


def shipped_step(config: Config, *, small: bool) -> Shipped:
    """The step of a configuration, on a few training patients of its first site that has enough.

    Args:
        small: with `Small` in the place of the configured network.

    Raises:
        AuditInvalid: no site has enough training patients.
        PolicyRefusal: the configuration cannot be private.
    """
    from tmca_core.networks import build_network
    from tmca_core.seeds import stream
    from tmca_core.training.centralised import build_pipeline

    config = config.with_values({"training.device": "cpu"})
    others = _some_patients(config)
    if small:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, "audit"))
            network: Network = Small(config)
    else:
        network = build_network(config)
    training.refuse_uncovered(network, config)
    network.ready(torch.device("cpu"))
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return Shipped(network, build_pipeline(network, config), config, others, config.privacy.clip, start)


@lru_cache(maxsize=2)
def _some_patients(config: Config) -> CaseTensors:
    """A few training patients of the first site that has enough; kept, since audits of one run ask for them again and again."""
    from tmca_core.cases.sites import load_sites

    for site in load_sites(config).values():
        patients = training.patients_of(site.train)
        if len(patients) >= OTHERS:
            return site.train.subset([row for rows in patients[:OTHERS] for row in rows[:CASES]])
    raise AuditInvalid(f"no site has {OTHERS} training patients: there is nothing to hide a canary among.")


def with_record(others: CaseTensors, record: CaseTensors) -> CaseTensors:
    """The neighbour that has one patient more."""
    return CaseTensors([*others.cases, *record.cases], torch.cat([others.images, record.images]), torch.cat([others.masks, record.masks]))


def adversaries(others: CaseTensors) -> dict[str, CaseTensors]:
    """Patients made to move a step as far as they can, by name; each has more cases than the others."""
    film, mask, case = others.images[:1], others.masks[:1], others.cases[0]
    side = torch.arange(film.shape[-1]) % 2 == 0
    board = (side[:, None] ^ side[None, :]).to(torch.uint8).expand_as(film)
    static = torch.randint(0, 256, film.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    films = {"film": film, "negative": 255 - film, "black": torch.zeros_like(film), "checkerboard": 255 * board, "static": static}
    masks = {"all": torch.ones_like(mask), "none": torch.zeros_like(mask), "inverted": 1 - mask}
    texts = {"its report": case.text, "sides exchanged": _exchanged(case.text), "no report": ""}
    kinds = [
        ("film", "all", "sides exchanged"), ("film", "inverted", "its report"), ("film", "none", "no report"),
        ("negative", "all", "no report"), ("black", "all", "its report"), ("black", "none", "its report"),
        ("checkerboard", "all", "sides exchanged"), ("checkerboard", "none", "its report"), ("static", "all", "its report"),
        ("static", "none", "sides exchanged"),
    ]  # fmt: skip
    found = {}
    for picture, target, text in kinds:
        twice = [replace(case, case_id=f"{CANARY}-{k}", patient_id=CANARY, text=texts[text]) for k in range(CASES + 1)]
        size = (CASES + 1, 1, 1, 1)
        found[f"{picture}, mask {target}, {text}"] = CaseTensors(twice, films[picture].repeat(size), masks[target].repeat(size))
    return found


def _exchanged(text: str) -> str:
    from tmca_core.text.sides import swap_sides

    return swap_sides(text)
