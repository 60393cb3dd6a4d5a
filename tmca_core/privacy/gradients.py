"""Patients' gradients, clipped and summed: the one place where records turn into what noise is added to.

Legend: B cases, P patients drawn. A patient's gradient is the mean of the gradients of its cases (and their views).
"""

from __future__ import annotations

import warnings
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

TINY = torch.finfo(torch.float32).tiny
WIDE = 4096
"""Numbers of a patient's row from which its norm is taken by itself: below, the calls would cost more than a copy."""


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

    In float32 whatever the device offers: in bfloat16 a gradient changes by half a per cent with the chunk that it is computed in.
    """
    settings = settings.model_copy(update={"precision": "fp32"})

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
        with warnings.catch_warnings():
            # Attention is looped over: as fast as products and a softmax, which could be mapped, and without weights of N × N.
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented the batching rule")
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


@ENGINES.register("opacus")
def by_opacus(network: Network, batch: Batch, losses: CaseLosses) -> Gradients:
    """Opacus's hooks, for the networks that they can take; kept for comparison, `vmap` is faster and takes all."""
    from tmca_core.privacy.opacus_hooks import gradients_by_hooks  # opacus takes a second to import

    return gradients_by_hooks(network, batch, losses)


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

    Norms are taken in float64 over all trainable parameters together. A patient with a gradient that is not finite, or too long to be
    scaled, counts as 0.

    Args:
        clip: C > 0.
        chunk: cases whose gradients are held at once.

    Returns:
        (sums by parameter name, float32; norms (P,) float64 before clipping, infinite where a patient counts as 0).
    """
    sums = {name: torch.zeros(p.shape, dtype=p.dtype, device=p.device) for name, p in trainable(network).items()}
    norms = []
    for group in drawn.groups(chunk):
        means = {name: mean.reshape(len(mean), -1) for name, mean in _patient_means(network, group, losses, engine, chunk).items()}
        norm = torch.stack([_squares(rows) for rows in means.values()]).sum(0).sqrt()
        factor = (clip / norm.clamp_min(1e-300)).clamp_max(1.0)
        # Also out: beyond some 10³⁷ clips float32 holds the factor with a few bits only, and what is clipped could be longer than C.
        finite = torch.isfinite(norm) & (factor >= TINY)
        norms.append(torch.where(finite, norm, torch.inf))
        factor, every = torch.where(finite, factor, 0.0), bool(finite.all())
        for name in list(means):
            rows = means.pop(name)
            # A NaN times 0 is a NaN: what is not finite is taken out before.
            kept = rows if every else torch.where(finite[:, None], rows, 0.0)
            sums[name].view(-1).addmv_(kept.t(), factor.to(kept.dtype))
    return sums, torch.cat(norms)


def flatten(gradients: Gradients) -> Tensor:
    """All gradients as one float64 vector."""
    return torch.cat([gradient.detach().flatten().double() for gradient in gradients.values()])


def _squares(rows: Tensor) -> Tensor:
    """Squared lengths (P,) float64 of rows (P, N)."""
    if rows.shape[1] < WIDE:
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    else:  # of a whole tensor torch sums in float64 as it reads; along a dimension it makes a float64 copy first, which takes longer
        lengths = torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in rows])
    return lengths.square()


def _patient_means(network: Network, group: Drawn, losses: CaseLosses, engine: Engine, chunk: int) -> Gradients:
    """Mean gradients (P, *shape) of a group's patients."""
    if len(group.batch) == len(group.counts):
        return engine(network, group.batch, losses)
    owner = torch.repeat_interleave(torch.arange(len(group.counts)), group.counts)
    means: Gradients = {}
    for begin in range(0, len(group.batch), chunk):
        part = slice(begin, begin + chunk)
        found = engine(network, pick(group.batch, part), losses)
        for name, gradient in found.items():
            share = gradient / group.counts[owner[part]].to(gradient).view(-1, *[1] * (gradient.dim() - 1))
            if name not in means:
                means[name] = torch.zeros(len(group.counts), *gradient.shape[1:], dtype=gradient.dtype, device=gradient.device)
            # Added row by row: in a product with a matrix of shares a NaN would spread to the other patients, a NaN times 0 being one.
            means[name].index_add_(0, owner[part].to(gradient.device), share)
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
