"""What every text encoder offers, and how the one that the configuration names is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tmca_core.registry import Registry

if TYPE_CHECKING:
    from tmca_core.config import NetworkSettings


class TextEncoder(nn.Module):
    """Reports to token features.

    Attributes:
        dim: D, width of a token's features.
        frozen: the weights never change: features are computed once a report and cached.
        limit: longest report in tokens; longer ones are cut, special tokens kept.
    """

    dim: int
    frozen: bool
    limit: int

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) int64 and mask (B, L) bool, padded to the longest report; an empty report has its special tokens."""
        raise TypeError(f"{type(self).__name__} defines no tokenize.")

    def spans(self, text: str) -> list[tuple[int, int] | None]:
        """Characters (start, end) of every token that `tokenize` makes of one report; None for special tokens."""
        raise TypeError(f"{type(self).__name__} defines no spans.")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, L) int64, mask (B, L) bool → features (B, L, D) float32; what stands at padding is undefined."""
        raise TypeError(f"{type(self).__name__} defines no forward.")

    def fingerprint(self) -> str:
        """sha256, hexadecimal, over weights and vocabulary: equal where features are equal."""
        raise TypeError(f"{type(self).__name__} defines no fingerprint.")


TEXT_ENCODERS: Registry[Callable[[NetworkSettings], TextEncoder]] = Registry("text encoder")


def build_text_encoder(settings: NetworkSettings) -> TextEncoder:
    """The encoder that `settings.text_encoder` names: "wordpiece", "minilm", a folder, or a Hugging Face id.

    Nothing is fetched from the network unless `settings.allow_download`; code that comes with weights is never run.

    Raises:
        ConfigError: no such name, folder or cached id.
        WeightsError: the files are missing, damaged or unfit.
    """
    from tmca_core.text import huggingface, wordpiece  # noqa: F401  (they register themselves)

    if settings.text_encoder in TEXT_ENCODERS.names():
        return TEXT_ENCODERS[settings.text_encoder](settings)
    return huggingface.from_name(settings)


def pad(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids → ids (B, L) int64, filled up with `padding`, and mask (B, L) bool; L ≥ 1."""
    length = max([1, *map(len, rows)])
    ids = torch.full((len(rows), length), padding, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = True
    return ids, mask
