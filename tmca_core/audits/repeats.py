"""Noise that comes again, or is too small: what two releases of the same data must differ by.

Two draws under one seed cancel: whoever sees both, or knows the seed, takes the noise off. So one release is made in each of two copies
of this process (fork), which share every generator's state; only randomness of the operating system differs between them.
"""

from __future__ import annotations

import math
import os
import pickle
import random
import select
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from tmca_core.audits.scores import Numbers
from tmca_core.errors import AuditInvalid

SECONDS = 120.0  # a release may take in a copy of the process
SAME = 1e-5  # difference of two copies' releases over what it is between calls, below which the noise of a number is one
PAIRS, CHANGES = 24, 16  # of twins, in all of which a number must be equal, and of calls, between so many of which it must change
DRAWS = 8


def repeated(release: Callable[[], Numbers]) -> str | None:
    """The alarm of noise that is drawn again under the same state of the process; None where it is not.

    Every number stands by itself, for one that is left to a generator gives that number away. Fresh continuous noise is out of suspicion
    with the first pair of twins, or the second. Noise of few values, of which two draws are equal with probability p, is called one with
    probability p^24 · P[Bin(24, 1 − p) ≥ 16], below 6e-8 a number whatever p is.
    """
    before = release()
    if all((release() == before).all() for _ in range(PAIRS)):
        return "two releases of the same data are equal number for number: there is no noise, or it comes again at every call"
    changes, width = np.zeros(before.size, int), np.zeros(before.size)
    suspected = np.ones(before.size, bool)
    for _ in range(PAIRS):
        between = np.abs(release() - release())
        width, changes = np.maximum(width, between), changes + (between > 0)
        suspected &= (width > 0) & (np.abs(_in_a_copy(release) - _in_a_copy(release)) <= SAME * width)
        if not suspected.any():
            return None
    if again := int((suspected & (changes >= CHANGES)).sum()):
        whose = "the noise" if again == before.size else f"the noise of at least {again} of a release's {before.size} numbers"
        return (
            f"{whose} comes from a generator with a seed or state in the process, not from the operating system: two copies of the "
            "process released the same, so two draws under one seed cancel, and whoever knows the seed takes the noise off"
        )
    return None


def too_small(release: Callable[[], Numbers], scale: float, sizes: Sequence[tuple[str, int]], error: float) -> str | None:
    """The alarm of noise that is smaller than claimed in some tensor, or in all together; None where it is not.

    Twins' releases (see the module) differ by the operating system's noise alone, √2 of it: what a generator of the process adds,
    which whoever knows its state takes off again, does not count. Under the claim the squares of n differences are at least 2σ²χ²
    with n·d degrees of freedom. Bonferroni over tensors. Two looks, n fresh pairs each, must name the same tensor, each at the root
    of a tensor's share of the error.

    Args:
        scale: claimed standard deviation of every released number.
        sizes: names of the tensors and how many numbers each has, in the order of a release.
        error: probability that noise as claimed is called too small.
    """
    found = _small(release, scale, sizes, error)
    again = _small(release, scale, sizes, error) if found else {}
    for name in found:
        if name in again:
            return f"the noise of {name} is {again[name]:.3g} times the one that is claimed, as far as the operating system gives it"
    return None


def _small(release: Callable[[], Numbers], scale: float, sizes: Sequence[tuple[str, int]], error: float) -> dict[str, float]:
    """Tensors whose noise one look calls too small, and its size in claimed ones."""
    from scipy.stats import chi2

    squares = np.sum([(_in_a_copy(release) - _in_a_copy(release)) ** 2 for _ in range(DRAWS)], axis=0) / (2 * scale**2)
    ends = np.cumsum([size for _, size in sizes])
    parts = [(name, part) for (name, _), part in zip(sizes, np.split(squares, ends[:-1]), strict=True)]
    found = {}
    for name, part in [("all tensors", squares), *parts]:
        freedom = DRAWS * len(part)
        if chi2.cdf(part.sum(), freedom) < math.sqrt(error / (len(parts) + 1)):
            found[name] = float(np.sqrt(part.sum() / freedom))
    return found


def _in_a_copy(release: Callable[[], Numbers]) -> Numbers:
    """One release of a forked copy of this process, the generator of Python's `random` included, which a fork would seed anew."""
    reader, writer = os.pipe()
    state = random.getstate()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            random.setstate(state)
            os.close(reader)
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(1)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(release(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    content, end = b"", time.monotonic() + SECONDS
    with os.fdopen(reader, "rb") as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(pipe.fileno(), 1 << 20)
            if not part:
                break
            content += part
        else:
            os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise AuditInvalid("a release in a copy of the process failed or took too long, so that seeded noise could not be looked for.")
    return np.asarray(pickle.loads(content), np.float64)  # noqa: S301  (of our own child)
