"""The architecture that `tmca bench step` is held against; it is no network of the registry.

Written after the published description and figures of Ariadne's Thread (Zhong et al., MICCAI 2023, arXiv 2307.03942), the common
ancestor of TMCA and SSA: a frozen BERT-base that runs every step on 24 tokens; ConvNeXt-Tiny; three decoder levels, each with
self-attention over positions and cross-attention to the text before its map is doubled and joined with the encoder's (7² → 14² → 28²
→ 56², 768 → 384 → 192 → 96 channels); a sub-pixel head that takes 56² to the image's size at once. 43.2 M of 152.7 M parameters are
trained. Encoders and layers are those of transformers and PyTorch as they come, with random weights: nothing is downloaded.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.networks.interface import Network, Output
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch
from tmca_core.text.vocabulary import read_vocabulary

TOKENS = 24
"""Length to which every report is cut and padded."""
POSITIONS = 5000
"""Rows of each table of positions, as published; they are part of the state."""
BERT_BASE: dict[str, Any] = {}
"""Changes to transformers' default BertConfig, which is BERT-base."""
CONVNEXT_TINY: dict[str, Any] = {}
"""Changes to transformers' default ConvNextConfig, which is ConvNeXt-Tiny."""


class Reference(Network):
    """See the module. Reads token ids, for images of 224² or whatever size is divisible by 32."""

    def __init__(self, text_encoder: TextEncoder) -> None:
        super().__init__(text_encoder)
        import transformers

        bert, convnext = transformers.BertConfig(**BERT_BASE), transformers.ConvNextConfig(**CONVNEXT_TINY)
        self.text: nn.Module = transformers.BertModel(bert).requires_grad_(False)
        self.image = transformers.ConvNextModel(convnext)
        widths, text = list(convnext.hidden_sizes or ()), bert.hidden_size
        # Published heads for a contrast that the published loss does not use.
        self.image_project = nn.Linear(widths[3], 512)
        self.text_project = nn.Sequential(nn.Linear(text, 512), nn.LayerNorm(512), nn.GELU(), nn.Linear(512, 512))
        lengths = (TOKENS, TOKENS // 2, 9)
        self.levels = nn.ModuleList([Level(widths[3 - i], widths[2 - i], text, length) for i, length in enumerate(lengths)])
        self.head = nn.Sequential(nn.Conv2d(widths[0], 24 * 16, 3, padding=1), nn.PixelShuffle(4), nn.Conv2d(24, 1, 1))

    def train(self, mode: bool = True) -> Reference:
        """The frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`; one channel is repeated to three."""
        seen = self.image(images.expand(-1, 3, -1, -1), output_hidden_states=True)
        said = self.text(input_ids=text.ids, attention_mask=text.mask.long(), output_hidden_states=True).hidden_states
        self.image_project(seen.pooler_output)
        self.text_project(torch.stack([said[1], said[2], said[-1]]).mean((0, 2)))
        *skips, x = seen.hidden_states[1:]
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(x, skip, said[-1])
        return Output(self.head(x))


class Level(nn.Module):
    """Self-attention, cross-attention to the text, transposed convolution, two 3×3 convolutions with the skip."""

    def __init__(self, width: int, after: int, text: int, length: int) -> None:
        super().__init__()
        self.words, self.word_width = nn.Conv1d(TOKENS, length, 1), nn.Linear(text, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.attend_self = nn.MultiheadAttention(width, 1, batch_first=True)
        self.attend_text = nn.MultiheadAttention(width, 4, batch_first=True)
        self.scale = nn.Parameter(torch.tensor(0.01))
        self.register_buffer("image_positions", sinusoids(POSITIONS, width))
        self.register_buffer("text_positions", sinusoids(length, width))
        self.up = nn.ConvTranspose2d(width, after, 2, stride=2, bias=False)
        self.convs = nn.ModuleList([nn.Conv2d(c, after, 3, padding=1, bias=False) for c in (2 * after, after)])
        self.conv_norms = nn.ModuleList([nn.BatchNorm2d(after) for _ in range(2)])

    def forward(self, x: Tensor, skip: Tensor, text: Tensor) -> Tensor:
        """x (B, width, h, w), skip (B, after, 2h, 2w), text (B, TOKENS, D) → (B, after, 2h, 2w)."""
        height, width = x.shape[-2:]
        words = F.leaky_relu(self.word_width(F.gelu(self.words(text))))
        y = x.flatten(2).transpose(1, 2)
        place = self.get_buffer("image_positions")[: y.shape[1]]
        normed = self.norms[0](y)
        y = y + self.norms[1](self.attend_self(normed + place, normed + place, normed)[0])
        guided = self.attend_text(self.norms[2](y) + place, words + self.get_buffer("text_positions"), words)[0]
        y = y + self.scale * self.norms[3](guided)
        z = torch.cat([self.up(y.transpose(1, 2).unflatten(2, (height, width))), skip], 1)
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            z = F.leaky_relu(norm(conv(z)))
        return z


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions (length, dim) of Vaswani et al. 2017, section 3.5."""
    place = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    return torch.stack([torch.sin(place * rate), torch.cos(place * rate)], 2).reshape(length, dim)


def write_bert(folder: Path, seed: int = 0) -> Path:
    """A folder in Hugging Face layout with an encoder of BERT-base's shape, random weights and our own words; returns it."""
    import transformers
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.BertConfig(**BERT_BASE)
        model = transformers.BertModel(config, add_pooling_layer=False)
    folder.mkdir(parents=True)
    config.to_json_file(folder / "config.json")
    save_file(model.state_dict(), folder / "model.safetensors")
    words = list(read_vocabulary())
    words += [f"[unused{i}]" for i in range(config.vocab_size - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}), encoding="utf-8")
    return folder
