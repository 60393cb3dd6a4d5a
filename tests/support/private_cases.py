"""Cases, networks and streams for tests of private training."""

from __future__ import annotations

import hashlib
from functools import cache

import torch
from torch import Tensor, nn

from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import load_sites
from tmca_core.config import Config, parse
from tmca_core.networks import Network, Output, build_network
from tmca_core.networks.interface import Auxiliary
from tmca_core.privacy.gradients import CaseLosses, Drawn, training_losses
from tmca_core.privacy.training import draw, patients_of
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch
from tmca_core.training.centralised import build_pipeline, concatenate

CPU = torch.device("cpu")
SMALL = {
    "phantom.sites": 1, "phantom.cases": 24, "data.image_size": 32, "network.width": 32, "tmca.share": 1.0, "training.threads": 1,
    "privacy.enabled": True, "privacy.noise_multiplier": 1.0,
}  # fmt: skip


@cache
def some_cases() -> CaseTensors:
    """Two dozen phantom cases at 32 pixels; some patients have several."""
    return concatenate([site.train for site in load_sites(parse(SMALL)).values()])


class Known:
    """A stream that gives the same bytes in every run of the tests."""

    def __init__(self, name: str = "") -> None:
        self.name, self.count = name, 0

    def read(self, size: int) -> bytes:
        self.count += 1
        return hashlib.shake_128(f"{self.name}{self.count}".encode()).digest(size)


def ready(patients: int, **settings: object) -> tuple[Network, Drawn, CaseLosses, Config]:
    """A network about to train, the first patients drawn, and their losses."""
    cases = some_cases()
    config = parse(SMALL | settings)
    network = build_network(config).train()
    network.ready(CPU)
    drawn = draw(cases, patients_of(cases)[:patients], build_pipeline(network, config), config, CPU, Known())
    return network, drawn, training_losses(config.training, 0.5, coin=7), config


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
    """Cases with images of one grey value each, for `Line`."""
    images = torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 32, 32).clone()
    n = len(means)
    ones, kinds = torch.ones(n, 2, dtype=torch.bool), torch.ones(n, 2, dtype=torch.int64)
    text = TextBatch(kinds, None, ones, torch.zeros(n, 6), kinds, torch.zeros(n), torch.arange(n))
    return Batch(images, torch.zeros_like(images), text)


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
