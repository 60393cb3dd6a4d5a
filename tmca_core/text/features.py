"""From report texts to what a network reads: token ids, or cached token features of a frozen encoder, and the zones named."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmca_core.errors import WeightsError
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.findings import parse

_MAGIC = b"TMTOKEN1"


@dataclass
class TextBatch:
    """The reports of B cases, padded to L tokens.

    Attributes:
        ids: (B, L) int64 for a trainable encoder, else None.
        features: (B, L, D) float32 of a frozen encoder, 0 at padding, else None.
        mask: (B, L) bool, True at tokens.
        zones: (B, 6) float32 of 0 and 1 in the order LU LM LL RU RM RL; all 0 where the report sets no constraint.
    """

    ids: Tensor | None
    features: Tensor | None
    mask: Tensor
    zones: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def to(self, device: torch.device | str) -> TextBatch:
        """The same batch on another device."""
        ids = self.ids if self.ids is None else self.ids.to(device)
        features = self.features if self.features is None else self.features.to(device)
        return TextBatch(ids, features, self.mask.to(device), self.zones.to(device))


class TextPipeline:
    """Encodes reports, each distinct text once.

    Token features of a frozen encoder are kept as float16 in memory and, under `cache_dir`, on disk: half the space, an error
    below 0.05 %, and the same numbers whether cached or not. Every report is encoded by itself, so its features do not depend
    on what else was in the batch.
    """

    def __init__(self, encoder: TextEncoder, cache_dir: Path | None, device: torch.device | str = "cpu") -> None:
        """Prepare; the cache folder is made when the first entry is written.

        Args:
            encoder: trainable (ids are passed on) or frozen (features are).
            cache_dir: folder for token features of frozen encoders; None: memory only.
            device: where features that are not cached are computed.
        """
        self.encoder = encoder
        self.cache_dir = cache_dir
        self.device = torch.device(device)
        self._zones: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> TextBatch:
        """Reports in PATIENT sides → their batch, on the CPU.

        Raises:
            ValueError: no texts.
            WeightsError: the encoder's weights cannot be loaded, or give features that are not finite.
        """
        self._learn([text for text in dict.fromkeys(texts) if text not in self._rows])
        rows = [self._rows[text] for text in texts]
        if not rows:
            raise ValueError("encode() was given no texts.")
        lengths = torch.tensor([len(row) for row in rows])
        padded = pad_sequence(rows, batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        zones = torch.stack([self._zones[text] for text in texts])
        if self.encoder.frozen:
            return TextBatch(None, padded.float(), mask, zones)
        return TextBatch(padded, None, mask, zones)

    def _learn(self, texts: Sequence[str]) -> None:
        """Parse and tokenise texts not met before; for a frozen encoder, read or compute their features."""
        for text in texts:
            self._zones[text] = zone_tensor(text)
        if self.encoder.frozen:
            for text in texts:
                self._rows[text] = self._features(text)
        elif texts:
            ids, mask = self.encoder.tokenize(texts)
            for text, row, kept in zip(texts, ids, mask, strict=True):
                self._rows[text] = row[kept].clone()

    def _features(self, text: str) -> Tensor:
        """Token features (L, D) float16 of one report, from the disk where they are there and whole."""
        path = self._path(text)
        found = None if path is None else read_entry(path, self.encoder.dim)
        if found is not None:
            return found
        ids, mask = self.encoder.tokenize([text])
        with torch.no_grad():
            features: Tensor = self.encoder(ids.to(self.device), mask.to(self.device))[0].to("cpu", torch.float16)[mask[0]]
        if not torch.isfinite(features).all():
            raise WeightsError("the text encoder gives features that are not finite in float16; its weights are damaged or unfit.")
        if path is not None:
            write_entry(path, features)
        return features

    def _path(self, text: str) -> Path | None:
        """File of a report's features: by encoder fingerprint and report hash."""
        if self.cache_dir is None:
            return None
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.cache_dir / self.encoder.fingerprint()[:32] / name[:2] / f"{name}.tokens"


def zone_tensor(text: str) -> Tensor:
    """Zones (6,) float32 that a report names; 0 where it names none or contradicts itself."""
    found = parse(text)
    return torch.tensor([0] * 6 if found.contradictory else found.zones, dtype=torch.float32)


def write_entry(path: Path, features: Tensor) -> None:
    """Write features (L, D) float16: magic, L, D, sha256 of the payload, payload. Whole or not at all."""
    payload = features.contiguous().numpy().tobytes()
    head = _MAGIC + struct.pack("<II", *features.shape) + hashlib.sha256(payload).digest()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(head + payload)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_entry(path: Path, dim: int) -> Tensor | None:
    """Features (L, `dim`) float16 of an entry; None where there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + 8 + 32
    if len(data) < start or data[: len(_MAGIC)] != _MAGIC:
        return None
    length, width = struct.unpack_from("<II", data, len(_MAGIC))
    payload = data[start:]
    if width != dim or len(payload) != 2 * length * width or hashlib.sha256(payload).digest() != data[start - 32 : start]:
        return None
    return torch.from_numpy(np.frombuffer(payload, dtype="<f2").reshape(length, width).astype(np.float16))
