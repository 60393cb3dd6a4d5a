"""Randomness that privacy rests on: noise and sampling from a cryptographic stream keyed by the operating system.

There is no seed. Two runs, two rounds, two processes (also one forked from the other) never share a stream; a server that knew the
noise, or saw one noise twice, could take it off. Tests inject a `Stream` of their own.

Noise drawn as floating-point numbers leaks through its low-order bits: which doubles are possible depends on the value that the
noise was added to (Mironov 2012 for Laplace; Jin et al. 2022 for Gaussians, Box-Muller among them). `noised` therefore draws and adds
in float64, twice with half the variance (Holohan and Braghin 2021), and releases the sum on a grid of fixed spacing, 2⁻²⁰ standard
deviations and coarser than every ulp that was computed with, so the bits in question do not leave. What is released is a Gaussian
rounded to the grid but for rounding errors some 2⁻³⁰ of the grid's size; it is not an exactly sampled discrete Gaussian, and the
time that a draw takes is not constant either.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

CHUNK = 1 << 15  # numbers at a time: they stay in the processor's cache
GRID_BITS = 20  # of a standard deviation, below which nothing is released


class Stream(Protocol):
    """Random bytes that nobody else can foretell."""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, never given before."""
        ...


class SecureStream:
    """Keystream of AES-256 in counter mode under a key of the operating system; a forked process takes a new key.

    Example:
        >>> len(SecureStream().read(5))
        5
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = -1

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        with self._lock:
            if self._process != os.getpid():
                key, nonce = secrets.token_bytes(32), bytes(16)  # the key is fresh, so the counter may start at nought
                self._keystream = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
                self._process = os.getpid()
            return self._keystream.update(bytes(size))


def gaussian(count: int, stream: Stream) -> NDArray[np.float64]:
    """Standard normal numbers, shape (count,), by Box-Muller in float64; |x| ≤ 9.5.

    Source: Box and Muller 1958. u₁ takes 64 bits, so that tails are right far beyond 5 standard deviations.
    """
    out = np.empty(count + count % 2)
    for start in range(0, len(out), CHUNK):
        half = (min(CHUNK, len(out) - start)) // 2
        bits = np.frombuffer(stream.read(16 * half), np.uint64)
        # (x + ½)·2⁻⁶⁴ lies in (0, 1]: the logarithm is finite.
        radius = (bits[:half].astype(np.float64) + 0.5) * 2.0**-64
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = (bits[half:] >> np.uint64(11)).astype(np.float64) * (2.0 * math.pi * 2.0**-53)
        turned = torch.from_numpy(angle)  # torch's trigonometry takes a quarter of the time of numpy's
        for function, begin in ((torch.cos, start), (torch.sin, start + half)):
            part = out[begin : begin + half]
            function(turned, out=torch.from_numpy(part))
            part *= radius
    return out[:count]


def noised(total: NDArray[np.float64], std: float, stream: Stream) -> NDArray[np.float64]:
    """`total` plus Gaussian noise, on a grid of about 2⁻²⁰ standard deviations.

    Args:
        total: sums of clipped gradients, shape (N,), finite.
        std: standard deviation of the noise, σ·C, above 0.
        stream: of the site.

    Returns:
        What may be released, shape (N,). It is exact in float32 up to 8 standard deviations; rounding the rest is harmless.

    Raises:
        ValueError: `std` is not above 0, or `total` is not finite.
    """
    if not (0 < std < math.inf and np.isfinite(total).all()):
        raise ValueError(f"noise of standard deviation {std} cannot be added, or what it is to be added to is not finite.")
    grid = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)
    out = np.empty(len(total))
    for start in range(0, len(total), CHUNK):
        part = slice(start, min(start + CHUNK, len(total)))
        size = part.stop - start
        noise = gaussian(size, stream)
        noise += gaussian(size, stream)
        noise *= std * math.sqrt(0.5)
        noise += total[part]
        noise /= grid
        np.rint(noise, out=noise)
        np.multiply(noise, grid, out=out[part])
    return out


def poisson_sample(count: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    """Indices below `count`, each drawn on its own with probability `rate`; exact to 2⁻⁶⁴.

    Args:
        count: patients.
        rate: q, [0, 1].
        stream: of the site.

    Returns:
        Ascending indices, often none: an empty draw is a draw too, and its step is taken with noise alone.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"a sampling rate lies between 0 and 1, not at {rate}.")
    threshold = int(rate * 2.0**64)  # a float times a power of two is exact
    bits = np.frombuffer(stream.read(8 * count), np.uint64)
    chosen = np.ones(count, bool) if threshold >= 1 << 64 else bits < np.uint64(threshold)
    return np.flatnonzero(chosen)
