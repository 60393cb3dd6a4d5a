"""From report texts to what a network reads: token ids, or cached token features of a frozen encoder, and the zones named."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmca_core.cases.decode import cache_folder
from tmca_core.config import Config
from tmca_core.errors import WeightsError
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.findings import parse
from tmca_core.text.phrases import keep_phrases, token_kinds

_MAGIC = b"TMTOKEN2"
_ALL_KINDS = frozenset(("locational", "descriptive", "diagnostic"))


Spans = list[tuple[int, int] | None]
"""Characters of every token of a report; None for special tokens."""


@dataclass
class TextBatch:
    """The reports of B cases, padded to L tokens.

    Attributes:
        ids: (B, L) int64 for a trainable encoder, else None.
        features: (B, L, D) float32 of a frozen encoder, 0 at padding, else None.
        mask: (B, L) bool, True at tokens.
        zones: (B, 6) float32 of 0 and 1 in the order LU LM LL RU RM RL; all 0 where the report sets no constraint.
        kinds: (B, L) int64, kind of every token: 0 special or padding, 1 other word, 2 descriptive, 3 diagnostic, 4 locational
            without side, 5 patient's left, 6 patient's right. All 0 where a report has no word: it is missing.
        certainty: (B,) float32: 1 certain, 0.5 uncertain, 0 where the zones set no constraint.
        identity: (B,) int64, equal where the texts are equal.
    """

    ids: Tensor | None
    features: Tensor | None
    mask: Tensor
    zones: Tensor
    kinds: Tensor
    certainty: Tensor
    identity: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def to(self, device: torch.device | str) -> TextBatch:
        """The same batch on another device."""
        ids = self.ids if self.ids is None else self.ids.to(device)
        features = self.features if self.features is None else self.features.to(device)
        rest = (self.mask, self.zones, self.kinds, self.certainty, self.identity)
        return TextBatch(ids, features, *(tensor.to(device) for tensor in rest))


class TextPipeline:
    """Encodes reports, each distinct text once.

    Token features of a frozen encoder are kept as float16 in memory and, under `cache_dir`, on disk: half the space, an error
    below 0.05 %, and the same numbers whether cached or not. Every report is encoded by itself, so its features do not depend
    on what else was in the batch.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        cache_dir: Path | None,
        device: torch.device | str = "cpu",
        *,
        phrase_kinds: Collection[str] = _ALL_KINDS,
        read: bool = True,
    ) -> None:
        """Prepare; the cache folder is made when the first entry is written.

        Args:
            encoder: trainable (ids are passed on) or frozen (features are).
            cache_dir: folder for token features of frozen encoders; None: memory only.
            device: where features that are not cached are computed.
            phrase_kinds: kinds of phrase that are read ("locational", "descriptive", "diagnostic"); the others are taken out of a
                report before anything else, and its zones are those of what remains.
            read: False: for a network that reads no report; every one counts as missing.
        """
        self.encoder = encoder
        self.cache_dir = cache_dir
        self.device = torch.device(device)
        self.phrase_kinds = frozenset(phrase_kinds)
        self._read = read
        self._unread: dict[int, TextBatch] = {}
        self._rows: dict[str, Tensor] = {}
        self._zones: dict[str, Tensor] = {}
        self._certainty: dict[str, float] = {}
        self._kinds: dict[str, Tensor] = {}
        self._identity: dict[str, int] = {}

    def encode(self, texts: Sequence[str]) -> TextBatch:
        """Reports in PATIENT sides → their batch, on the CPU.

        Raises:
            ValueError: no texts.
            WeightsError: the encoder's weights cannot be loaded, or give features that are not finite.
        """
        if not self._read:
            if len(texts) not in self._unread:
                self._unread[len(texts)] = self._encode([""] * len(texts))
            return self._unread[len(texts)]
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> TextBatch:
        self._learn([text for text in dict.fromkeys(texts) if text not in self._rows])
        rows = [self._rows[text] for text in texts]
        if not rows:
            raise ValueError("encode() was given no texts.")
        lengths = torch.tensor([len(row) for row in rows])
        padded = pad_sequence(rows, batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        kinds = pad_sequence([self._kinds[text] for text in texts], batch_first=True)
        zones = torch.stack([self._zones[text] for text in texts])
        certainty = torch.tensor([self._certainty[text] for text in texts])
        identity = torch.tensor([self._identity[text] for text in texts])
        if self.encoder.frozen:
            return TextBatch(None, padded.float(), mask, zones, kinds, certainty, identity)
        return TextBatch(padded, None, mask, zones, kinds, certainty, identity)

    def _learn(self, texts: Sequence[str]) -> None:
        """Parse and tokenise texts not met before; for a frozen encoder, read or compute their features."""
        read = [text if self.phrase_kinds >= _ALL_KINDS else keep_phrases(text, self.phrase_kinds) for text in texts]
        if self.encoder.frozen:
            made = [self._features(kept) for kept in read]
        elif texts:
            rows = [row[here].clone() for row, here in zip(*self.encoder.tokenize(read), strict=True)]
            made = [(row, self.encoder.spans(kept)) for row, kept in zip(rows, read, strict=True)]
        else:
            made = []
        for text, kept, (row, spans) in zip(texts, read, made, strict=True):
            self._zones[text], self._certainty[text] = zones_and_certainty(kept)
            self._kinds[text] = torch.tensor(token_kinds(kept, spans))
            self._identity[text] = int.from_bytes(hashlib.sha256(kept.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
            self._rows[text] = row

    def _features(self, text: str) -> tuple[Tensor, Spans]:
        """Token features (L, D) float16 and spans of one report, from the disk where they are there and whole."""
        path = self._path(text)
        found = None if path is None else read_entry(path, self.encoder.dim)
        if found is not None:
            return found
        ids, mask = self.encoder.tokenize([text])
        with torch.no_grad():
            features: Tensor = self.encoder(ids.to(self.device), mask.to(self.device))[0].to("cpu", torch.float16)[mask[0]]
        if not torch.isfinite(features).all():
            raise WeightsError("the text encoder gives features that are not finite in float16; its weights are damaged or unfit.")
        spans = self.encoder.spans(text)
        if path is not None:
            write_entry(path, features, spans)
        return features, spans

    def _path(self, text: str) -> Path | None:
        """File of a report's features: by encoder fingerprint and report hash."""
        if self.cache_dir is None:
            return None
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.cache_dir / self.encoder.fingerprint()[:32] / name[:2] / f"{name}.tokens"


def token_cache(config: Config) -> Path:
    """Folder of the token features of frozen encoders."""
    return cache_folder(config.data) / "tokens"


def zones_and_certainty(text: str) -> tuple[Tensor, float]:
    """`Findings.constraint` of a report, its zones as a tensor (6,) float32."""
    zones, certainty = parse(text).constraint
    return torch.tensor(zones, dtype=torch.float32), certainty


def write_entry(path: Path, features: Tensor, spans: Spans) -> None:
    """Write features (L, D) float16 and L spans, whole or not at all.

    Layout: magic, L, D, sha256 of the payload, payload: the features, then start and end of every span, -1 for None.
    """
    places = np.array([(-1, -1) if span is None else span for span in spans], dtype="<i4").reshape(-1, 2)
    payload = features.contiguous().numpy().astype("<f2").tobytes() + places.tobytes()
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


def read_entry(path: Path, dim: int) -> tuple[Tensor, Spans] | None:
    """Features (L, `dim`) float16 and the L spans of an entry; None where there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + 8 + 32
    if len(data) < start or data[: len(_MAGIC)] != _MAGIC:
        return None
    length, width = struct.unpack_from("<II", data, len(_MAGIC))
    payload, size = data[start:], 2 * length * width
    if width != dim or len(payload) != size + 8 * length or hashlib.sha256(payload).digest() != data[start - 32 : start]:
        return None
    features = torch.from_numpy(np.frombuffer(payload[:size], dtype="<f2").reshape(length, width).astype(np.float16))
    places = np.frombuffer(payload[size:], dtype="<i4").reshape(length, 2).tolist()
    return features, [None if first < 0 else (first, last) for first, last in places]
