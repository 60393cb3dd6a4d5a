"""Opacus's ghost clipping under the mechanism audit: right on contiguous inputs, wrong on channels_last ones (Opacus 1.6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tmca_core.audits.claims import of_one_step
from tmca_core.audits.conduct import Report, conduct
from tmca_core.audits.foreign import of_step
from tmca_core.privacy.randomness import SecureStream, gaussian

CLIP, SIZE = 0.01, 32


class Block(nn.Module):
    """A ConvNeXt block whose depthwise kernel is trained."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout
        self.stem, self.deep = nn.Conv2d(1, 8, 4, stride=4), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.wide, self.narrow, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        for module in (self.stem, self.norm, self.wide, self.narrow, self.head):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).contiguous(memory_format=self.layout)
        deep = self.deep(x)
        if self.layout == torch.contiguous_format:  # a permutation sends permuted gradients back: there is none here
            return self.head((x + nn.functional.gelu(deep)).mean((2, 3)))
        y = self.norm(deep.permute(0, 2, 3, 1).flatten(1, 2))
        x = x.permute(0, 2, 3, 1).flatten(1, 2) + self.narrow(nn.functional.gelu(self.wide(y)))
        return self.head(x.mean(1))


def report_of(layout: torch.memory_format, folder: Path) -> Report:
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block, images = Block(layout), torch.randn(4, 1, SIZE, SIZE) * torch.tensor([1.0, 1.0, 1.0, 5.0]).view(-1, 1, 1, 1)
    start, labels, stream = block.deep.weight.detach().clone(), torch.tensor([0, 1, 0, 1]), SecureStream()

    def without_noise(canary: bool) -> Tensor:
        """(392,): one step of Opacus in units of its clip."""
        with torch.no_grad():
            block.deep.weight.copy_(start)
        module = GradSampleModuleFastGradientClipping(block, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum")
        plain = torch.optim.SGD([block.deep.weight, block.deep.bias], lr=1 / CLIP)
        optimizer = DPOptimizerFastGradientClipping(
            plain, noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=1, loss_reduction="sum"
        )
        criterion = DPLossFastGradientClipping(module, optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum")
        drawn = 4 if canary else 3
        criterion(module(images[:drawn]), labels[:drawn]).backward()
        optimizer.step()
        module.remove_hooks()
        return (start - block.deep.weight.detach()).flatten()

    sums = {member: without_noise(member).double().numpy() for member in (True, False)}

    def step(canary: bool) -> np.ndarray:
        return sums[canary] + gaussian(start.numel(), stream)

    audit = of_step(step, of_one_step(1.0, 1e-5), runs=150, beta=0.05, quiet=lambda canary: sums[canary], clip=1.0)
    return conduct(audit, folder)


@pytest.mark.slow
def test_ghost_clipping_on_channels_last_fails_and_on_contiguous_inputs_passes(tmp_path: Path) -> None:
    passed = report_of(torch.contiguous_format, tmp_path / "contiguous")
    assert passed.verdict == "PASS", passed.sentence
    failed = report_of(torch.channels_last, tmp_path / "channels_last")
    assert failed.verdict == "FAIL" and failed.evidence["target"].bounds[0].exceeds and "clips" in failed.sentence
