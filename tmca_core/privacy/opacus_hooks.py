"""Gradients of single cases by Opacus's hooks on layers, for networks whose trained layers it can all see.

A hook keeps what a layer was given and the gradient of what it gave, and works out each case's gradient from the two. Four things go
wrong with that unseen, and are refused by name here:

- Opacus 1.6.0 reads the input of a convolution by the strides of contiguous memory, whatever its own are: gradients of maps in
  channels_last or permuted memory are off by 100 %, without an error. So both are brought into standard memory first.
- A layer whose weights others use, past its `forward`, has no gradient at all.
- A layer that is not given one row a case (positions of an image, a public bank), or is used twice, has another's.
- A layer that holds others besides parameters of its own, or keeps buffers.

And the sum over cases is held against the gradient that autograd finds in the same pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn

from tmca_core.errors import PrivacyError
from tmca_core.networks.interface import Network
from tmca_core.privacy.gradients import CaseLosses, Gradients, trainable
from tmca_core.training.batches import Batch

TOLERANCE = 1e-3
"""Largest ‖Σ over cases − gradient‖ of a tensor, over the length of all cases' gradients (float32 rounding gives 1e-6)."""
BEYOND = 1e30
"""Gradients so long may overflow as they are added up; clipping looks after them."""
LEFT_ON_LAYERS = ("activations", "max_batch_len", "ft_compute_sample_grad")


def gradients_by_hooks(network: Network, batch: Batch, losses: CaseLosses) -> Gradients:
    """See `tmca_core.privacy.gradients.Engine`. `network` is in training mode, and without hooks again afterwards.

    Raises:
        PrivacyError: Opacus cannot take a layer, or takes it wrongly; which one, and what to do.
    """
    _refuse_unseen(network)
    parameters = trainable(network)
    hooks = _Hooks(network, len(batch))
    try:
        with warnings.catch_warnings():
            # Said of the first layer, whose input is an image and needs no gradient.
            warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed with respect to module outputs")
            whole = torch.autograd.grad(losses(network, batch).sum(), list(parameters.values()), allow_unused=True)
        rows: Gradients = {}
        for (name, parameter), gradient in zip(parameters.items(), whole, strict=True):
            found = getattr(parameter, "grad_sample", None)
            if gradient is not None and found is None:
                raise _refusal(name.rpartition(".")[0], "is passed by: its weights are used, and its forward is not called")
            rows[name] = torch.zeros(len(batch), *parameter.shape).to(parameter) if gradient is None else found
        _insist_on_sums(rows, {name: g for name, g in zip(parameters, whole, strict=True) if g is not None})
        return rows
    finally:
        hooks.cleanup()
        for layer in network.modules():
            for attribute in LEFT_ON_LAYERS:
                layer.__dict__.pop(attribute, None)


class _Hooks(GradSampleHooks):  # type: ignore[misc]  # opacus is not typed
    """Opacus's hooks, which look at what they are given."""

    def __init__(self, network: nn.Module, cases: int) -> None:
        self._cases = cases
        self._names = {layer: name for name, layer in network.named_modules()}
        super().__init__(network, loss_reduction="sum", strict=False)

    def capture_activations_hook(self, module: nn.Module, forward_input: Sequence[Any], _forward_output: Any) -> None:
        """Keep what a layer was given, one row a case."""
        for what in (*forward_input, _forward_output):
            if len(forward_input) != 1 or not isinstance(what, Tensor) or what.dim() == 0 or len(what) != self._cases:
                raise _refusal(self._names[module], "takes or gives something else than one tensor with a row a case")
        if getattr(module, "activations", None):
            raise _refusal(self._names[module], "is used twice in one pass")
        super().capture_activations_hook(module, list(forward_input), _forward_output)

    def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
        """See `in_standard_memory`."""
        return in_standard_memory(*super().rearrange_grad_samples(**given))


def in_standard_memory(activations: Sequence[Tensor], backprops: Tensor) -> tuple[list[Tensor], Tensor]:
    """Both sides of a layer's gradient with the strides that Opacus takes for granted."""
    # Not contiguous(): maps of one pixel or one channel count as contiguous with any strides, and keep them.
    standard = [tensor.clone(memory_format=torch.contiguous_format) for tensor in (*activations, backprops)]
    return standard[:-1], standard[-1]


def _refuse_unseen(network: nn.Module) -> None:
    """Refuse trained layers that no hook can take, before anything is computed."""
    for name, layer in network.named_modules():
        own = [key for key, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad]
        if not own:
            continue
        if ".parametrizations." in f".{name}.":
            raise _refusal(name, "computes another layer's weight")
        if type(layer) in GradSampleHooks.GRAD_SAMPLERS:
            continue
        if next(layer.children(), None) is not None:
            raise _refusal(name, f"has parameters of its own ({', '.join(own)}) beside layers that it holds")
        if next(layer.buffers(), None) is not None:
            raise _refusal(name, "keeps buffers, which no noise covers")


def _insist_on_sums(rows: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Refuse gradients of cases that do not add up to the batch's."""
    length = float(torch.stack([torch.linalg.vector_norm(rows[name], dtype=torch.float64) for name in whole]).norm())
    if not length < BEYOND:
        return
    errors = {name: float(torch.linalg.vector_norm(rows[name].sum(0) - whole[name], dtype=torch.float64)) for name in whole}
    worst = max(errors, key=lambda name: errors[name])
    if not all(error <= TOLERANCE * length for error in errors.values()):
        raise _refusal(worst.rpartition(".")[0], f"gets gradients that do not add up to the batch's ({errors[worst]:.2g} off)")


def _refusal(layer: str, reason: str) -> PrivacyError:
    return PrivacyError(
        f"privacy.engine=opacus cannot take this network: its layer '{layer or 'the network itself'}' {reason}. "
        "Set privacy.engine=vmap, which takes every network, or train other layers."
    )
