"""The embedded text encoder: a small WordPiece transformer, trained with the network it guides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.text.encoders import TEXT_ENCODERS, TextEncoder, pad
from tmca_core.text.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tmca_core.config import NetworkSettings

LIMIT = 512
"""Longest report in tokens, special ones included."""


def wordpiece_tokenizer(pieces: Sequence[str], limit: int) -> Tokenizer:
    """Lower-casing, accent-stripping WordPiece tokenizer that wraps a text in [CLS] … [SEP] and cuts it to `limit` tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {piece: index for index, piece in enumerate(pieces)}
    # A "word" as long as a line (a hash, a run of letters) is still spelt out rather than lost.
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=1000))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    tokenizer.enable_truncation(limit)
    return tokenizer


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer without dropout (Xiong et al. 2020, arXiv 2002.04745)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.wide = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, x_BLD: Tensor, keys_B11L: Tensor) -> Tensor:
        """x (B, L, D); keys (B, 1, 1, L) bool, True where a token may be attended to → (B, L, D)."""
        batch, length, dim = x_BLD.shape
        qkv = self.qkv(self.norm1(x_BLD)).view(batch, length, 3, self.heads, dim // self.heads)
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=keys_B11L)
        x_BLD = x_BLD + self.out(attended.transpose(1, 2).reshape(batch, length, dim))
        widened: Tensor = self.narrow(F.gelu(self.wide(self.norm2(x_BLD))))
        return x_BLD + widened


class WordPieceEncoder(TextEncoder):
    """2 layers, 128 wide, 4 heads; sinusoidal positions, so that long reports work though training saw short ones.

    Example:
        >>> encoder = WordPieceEncoder()
        >>> encoder(*encoder.tokenize(["Left lung.", ""])).shape
        torch.Size([2, 5, 128])
    """

    frozen = False

    def __init__(self, dim: int = 128, layers: int = 2, heads: int = 4, limit: int = LIMIT) -> None:
        super().__init__()
        if not 2 <= limit <= LIMIT:
            raise ValueError(f"limit is {limit}; from 2 to {LIMIT} tokens.")
        self.dim, self.limit = dim, limit
        self._pieces = read_vocabulary()
        self._tokenizer: Tokenizer | None = None
        self.embedding = nn.Embedding(len(self._pieces), dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.layers = nn.ModuleList([EncoderLayer(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)
        # Not persistent: a constant has no place in checkpoints and updates.
        self.register_buffer("positions", _sinusoids(limit, dim), persistent=False)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.tokenize`."""
        return pad([encoding.ids for encoding in self._fast().encode_batch(list(texts))], self._pieces.index("[PAD]"))

    def spans(self, text: str) -> list[tuple[int, int] | None]:
        """See `TextEncoder.spans`."""
        encoding = self._fast().encode(text)
        return [None if special else span for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)]

    def _fast(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = wordpiece_tokenizer(self._pieces, self.limit)
        return self._tokenizer

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `TextEncoder.forward`."""
        # A row without any token attends to all of its padding: useless, but not NaN.
        keys = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        x_BLD = self.embedding(ids) * math.sqrt(self.dim) + self.get_buffer("positions")[: ids.shape[1]]
        for layer in self.layers:
            x_BLD = layer(x_BLD, keys)
        normed: Tensor = self.norm(x_BLD)
        return normed

    def fingerprint(self) -> str:
        """See `TextEncoder.fingerprint`; changes as training goes on."""
        digest = hashlib.sha256("\n".join(self._pieces).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        # The Rust tokenizer is rebuilt where the encoder lands.
        return {**self.__dict__, "_tokenizer": None}


def _sinusoids(length: int, dim: int) -> Tensor:
    """Positions (length, dim) of Vaswani et al. 2017, section 3.5."""
    place = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    return torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=2).reshape(length, dim)


@TEXT_ENCODERS.register("wordpiece")
def wordpiece(settings: NetworkSettings) -> TextEncoder:
    """The embedded trainable encoder."""
    return WordPieceEncoder(limit=settings.max_tokens or LIMIT)
