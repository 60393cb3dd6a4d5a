"""Measurements in a process of their own, and a network that exchanges more than it computes with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmca_core.config import Config
from tmca_core.networks import NETWORKS
from tmca_core.networks.interface import Network, Output
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch

PADDED, IDLE = "padded-unet", "idly-padded-unet"
TENSORS = 10


class PaddedUNet(Network):
    """`unet` beside many more parameters, which are exchanged and aggregated as all are.

    Args:
        trained: they reach the logits by their mean, so that the optimiser has them all to move; else no image reaches them, and
            exchanging them is all that they cost.
    """

    uses_text = False

    def __init__(self, config: Config, text_encoder: TextEncoder, parameters: int, trained: bool) -> None:
        super().__init__(text_encoder)
        self.inner = NETWORKS["unet"](config, text_encoder)
        self.padding = nn.ParameterList([nn.Parameter(torch.zeros(parameters // TENSORS)) for _ in range(TENSORS)])
        self.trained = trained

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`; the report is ignored."""
        output: Output = self.inner(images, text)
        if not self.trained:
            return output
        return Output(output.logits + torch.stack([part.mean() for part in self.padding]).sum())


def register_padded(parameters: int) -> None:
    """Make `PADDED` and `IDLE` with so many more parameters known to this process, which is a measurement's own."""
    for name in {PADDED, IDLE} - set(NETWORKS.names()):
        NETWORKS.register(name)(partial(PaddedUNet, parameters=parameters, trained=name == PADDED))


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(*arguments)` in a new Python process, so that neither memory nor caches of an earlier measurement are in it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def resident(field: str) -> float:
    """Memory of this process now (VmRSS) or at its highest (VmHWM), MB of 10⁶ bytes.

    getrusage's figure begins with that of the process that started this one, so it cannot be used in a child.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(status[field].split()[0]) * 1024 / 1e6
