"""Patients' gradients, clipped and summed: the one place where records turn into what noise is added to.

Legend: B cases, P patients drawn. A patient's gradient is the mean of the gradients of its cases (and their views).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tmca_core.config import TrainingSettings
from tmca_core.networks.interface import Network
from tmca_core.registry import Registry
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch
from tmca_core.training.loop import case_losses

Gradients = dict[str, Tensor]

CaseLosses = Callable[[Network, Batch], Tensor]
"""Losses (B,) of a batch; a case's value may not depend on the others."""

Engine = Callable[[Network, Batch, CaseLosses], Gradients]
"""Gradients of every case's own loss: name → (B, *shape), for trainable parameters."""

ENGINES: Registry[Engine] = Registry("private gradient engine")


@dataclass(frozen=True)
class Drawn:
    """The cases of the patients that a step draws.

    Attributes:
        batch: B ≥ 1 cases, those of one patient side by side.
        counts: (P,) int64, cases of each patient, all ≥ 1, in the order of `batch`.
    """

    batch: Batch
    counts: Tensor

    def groups(self, cases: int) -> Iterator[Drawn]:
        """Runs of whole patients with at most `cases` cases together; a patient with more is a run by itself."""
        first = begin = size = 0
        counts = self.counts.tolist()
        for index, count in enumerate(counts):
            if size and size + count > cases:
                yield self._between(begin, begin + size, first, index)
                first, begin, size = index, begin + size, 0
            size += count
        yield self._between(begin, begin + size, first, len(counts))

    def without(self, patient: int) -> Drawn | None:
        """The same draw without its `patient`-th patient; None where no other is left."""
        if len(self.counts) == 1:
            return None
        keep = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts) != patient
        index = keep.nonzero()[:, 0]
        return Drawn(pick(self.batch, index), torch.cat([self.counts[:patient], self.counts[patient + 1 :]]))

    def _between(self, begin: int, end: int, first: int, last: int) -> Drawn:
        return Drawn(pick(self.batch, slice(begin, end)), self.counts[first:last])


def pick(batch: Batch, index: Tensor | slice) -> Batch:
    """Some cases of a batch."""
    text = batch.text
    first = (None if tokens is None else tokens[index] for tokens in (text.ids, text.features))
    rest = (part[index] for part in (text.mask, text.zones, text.kinds, text.certainty, text.identity))
    return Batch(batch.images[index], batch.masks[index], TextBatch(*first, *rest))  # type: ignore[arg-type]


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def training_losses(settings: TrainingSettings, progress: float, coin: int) -> CaseLosses:
    """Segmentation and auxiliary losses of a training step.

    Args:
        progress: share of all steps done.
        coin: seeds what the network itself draws in this step. It is public and the same for every patient, so that no patient's
            gradient depends on who else was drawn, or on how the draw was split up.
    """

    def losses(network: Network, batch: Batch) -> Tensor:
        torch.default_generator.manual_seed(coin)
        if batch.images.is_cuda:
            torch.cuda.manual_seed(coin)
        return case_losses(network, batch, settings, progress)

    return losses


@ENGINES.register("vmap")
def by_vmap(network: Network, batch: Batch, losses: CaseLosses) -> Gradients:
    """`torch.func.vmap` over `grad` of a functional call of one case (privacy.md: for a convolution network about 2.5 plain steps)."""
    if len(batch) == 1:  # nothing to map over; torch 2.13's GroupNorm refuses a map over one when maps are of one pixel
        return by_loop(network, batch, losses)
    text = batch.text
    tokens = text.ids if text.ids is not None else text.features
    assert tokens is not None
    objective = _Objective(network, losses)
    parameters = {f"network.{name}": parameter.detach() for name, parameter in trainable(network).items()}
    frozen = text.ids is None

    def of_one(parameters: Mapping[str, Tensor], image: Tensor, mask: Tensor, tokens: Tensor, *report: Tensor) -> Tensor:
        first = (None, tokens[None]) if frozen else (tokens[None], None)
        one = Batch(image[None], mask[None], TextBatch(*first, *(part[None] for part in report)))
        value: Tensor = torch.func.functional_call(objective, parameters, (one,))  # type: ignore[arg-type]
        return value[0]

    rest = (text.mask, text.zones, text.kinds, text.certainty, text.identity)
    mapped = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, *[0] * 8), randomness="same")
    network.vectorised = True
    try:
        found = mapped(parameters, batch.images, batch.masks, tokens, *rest)
    finally:
        network.vectorised = False
    return {name.removeprefix("network."): gradient for name, gradient in found.items()}


@ENGINES.register("loop")
def by_loop(network: Network, batch: Batch, losses: CaseLosses) -> Gradients:
    """One backward pass a case, the plain way: the oracle of the others."""
    parameters = trainable(network)
    rows = [_backward(network, pick(batch, slice(i, i + 1)), losses, parameters) for i in range(len(batch))]
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def in_their_batch(network: Network, batch: Batch, losses: CaseLosses) -> Gradients:
    """Gradients of every case's loss as computed together with the other cases: those of `by_loop` where losses are decomposable.

    A loss that says so and is not is found by this.
    """
    parameters = trainable(network)
    values = losses(network, batch)
    rows = []
    for i in range(len(batch)):
        found = torch.autograd.grad(values[i], list(parameters.values()), retain_graph=True, allow_unused=True)
        rows.append(_filled(parameters, found))
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def clipped_sum(network: Network, drawn: Drawn, losses: CaseLosses, clip: float, *, engine: Engine, chunk: int) -> tuple[Gradients, Tensor]:
    """Σ over patients of g · min(1, C / ‖g‖) with g the patient's mean gradient.

    Norms are taken in float64 over all trainable parameters together. A patient with a gradient that is not finite counts as 0.

    Args:
        clip: C > 0.
        chunk: cases whose gradients are held at once.

    Returns:
        (sums by parameter name, float32; norms (P,) float64 before clipping, infinite where a gradient was not).
    """
    sums = {name: torch.zeros_like(parameter) for name, parameter in trainable(network).items()}
    norms = []
    for group in drawn.groups(chunk):
        means = _patient_means(network, group, losses, engine, chunk)
        squares = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float64).square() for g in means.values()]
        norm = torch.stack(squares).sum(0).sqrt()
        finite = torch.isfinite(norm)
        norms.append(torch.where(finite, norm, torch.inf))
        factor = torch.where(finite, (clip / norm.clamp_min(1e-300)).clamp_max(1.0), 0.0)
        for name, gradient in means.items():
            # A NaN times 0 is a NaN: what is not finite is taken out before.
            kept = gradient if bool(finite.all()) else torch.where(finite.view(-1, *[1] * (gradient.dim() - 1)), gradient, 0.0)
            sums[name] += torch.tensordot(factor.to(kept.dtype), kept, 1)
    return sums, torch.cat(norms)


def flatten(gradients: Gradients) -> Tensor:
    """All gradients as one float64 vector."""
    return torch.cat([gradient.detach().flatten().double() for gradient in gradients.values()])


def _patient_means(network: Network, group: Drawn, losses: CaseLosses, engine: Engine, chunk: int) -> Gradients:
    """Mean gradients (P, *shape) of a group's patients."""
    if len(group.batch) == len(group.counts):
        return engine(network, group.batch, losses)
    owner = torch.repeat_interleave(torch.arange(len(group.counts)), group.counts)
    means: Gradients = {}
    for begin in range(0, len(group.batch), chunk):
        part = slice(begin, begin + chunk)
        found = engine(network, pick(group.batch, part), losses)
        share = torch.zeros(len(group.counts), len(owner[part]))
        share[owner[part], torch.arange(share.shape[1])] = 1 / group.counts[owner[part]].float()
        for name, gradient in found.items():
            value = torch.tensordot(share.to(gradient), gradient, 1)
            means[name] = means[name] + value if name in means else value
    return means


class _Objective(nn.Module):
    """A network with its losses as one module, which `functional_call` needs."""

    def __init__(self, network: Network, losses: CaseLosses) -> None:
        super().__init__()
        self.network, self.losses = network, losses

    def forward(self, batch: Batch) -> Tensor:
        return self.losses(self.network, batch)


def _backward(network: Network, batch: Batch, losses: CaseLosses, parameters: Mapping[str, Tensor]) -> Gradients:
    return _filled(parameters, torch.autograd.grad(losses(network, batch).mean(), list(parameters.values()), allow_unused=True))


def _filled(parameters: Mapping[str, Tensor], found: tuple[Tensor | None, ...]) -> Gradients:
    """Gradients by name, 0 for parameters that the loss does not reach."""
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}
