"""float32 products on the CPU through oneDNN, which is twice as fast as MKL on AMD's processors and as fast on Intel's.

PyTorch sends `F.linear` to MKL; oneDNN's kernel it knows only under the name that its compiler uses, `mkldnn::_linear_pointwise`.
That has no derivative, no batching rule and no export, so it is called only inside autograd functions that bring their own
derivative, and only where `usable` says so. Results are the same to rounding.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def usable(x: Tensor) -> bool:
    """float32 on the CPU, and nothing (autocast, torch.func, tracing, export) that has to see PyTorch's own operators."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and _present()
    )


@cache
def _present() -> bool:
    """This PyTorch was built with oneDNN, and has its operator as `product` calls it: it is PyTorch's own and may change."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        ones = torch.ones(1, 2, dtype=torch.float32, device="cpu")
        return product(ones, ones, ones[0, :1]).tolist() == [[3.0]]
    except (AttributeError, RuntimeError, TypeError):  # not there, or not called like this
        return False


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) times b (N, K) transposed, plus bias (N,): (M, N). No derivative of its own."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """gradient (rows, out) transposed times x (rows, in): (out, in).

    oneDNN wants the longer side last. Turning the result round costs a copy of it, which pays where rows outnumber `out`.
    """
    out, width = gradient.shape[1], x.shape[1]
    if out > width and len(x) > out:
        return product(x.t(), gradient.t()).t()
    return product(gradient.t(), x.t())
