"""Named random streams: every draw is a function of the seed and of what it is for, never of what ran before."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `stream(0, "train", "site-a", 3)`; the same in every process."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """numpy generator of `stream`. Not for privacy noise: that comes from the operating system."""
    return np.random.default_rng(stream(seed, *purpose))


def torch_rng(seed: int, *purpose: str | int) -> torch.Generator:
    """CPU torch generator of `stream`. Not for privacy noise."""
    return torch.Generator().manual_seed(stream(seed, *purpose))
