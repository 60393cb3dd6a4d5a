"""Masks: the keystream of AES-256 in counter mode under a seed, added to a vector of whole numbers or taken from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tmca_core.secure.fixed_point import Codes

PIECE = 1 << 18
"""Bytes at a time: vector and keystream stay in the processor's cache while all masks are applied to them."""
_BLOCK = 16


class Mask(NamedTuple):
    """One mask.

    Attributes:
        seed: 32 bytes, an AES key that serves for nothing else; the counter begins at 0.
        added: else taken away.
    """

    seed: bytes
    added: bool


def apply(vector: Codes, masks: Iterable[Mask]) -> None:
    """vector ± keystream of each mask, modulo 2ᵏ, in place: one pass over the vector, however many masks there are."""
    streams = [(Cipher(algorithms.AES(mask.seed), modes.CTR(bytes(_BLOCK))).encryptor(), mask.added) for mask in masks]
    zeros, keystream = bytes(PIECE), bytearray(PIECE + _BLOCK)
    words = PIECE // vector.itemsize
    numbers = np.frombuffer(keystream, vector.dtype, words)
    for start in range(0, len(vector), words):
        part = vector[start : start + words]
        blank = zeros if len(part) == words else zeros[: part.nbytes]
        for stream, added in streams:
            stream.update_into(blank, keystream)
            (np.add if added else np.subtract)(part, numbers[: len(part)], out=part)
