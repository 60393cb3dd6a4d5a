"""`tmca`: the base network with multi-level alignment of image and report, and enhancement where the aligned report points.

Our design after the abstract of TMCA (arXiv 2412.13533); docs/methods.md says what is the abstract's and what is ours.

    skip map m_s (B,c,h,w) at strides 4..32     V = norm(W_s m_s + P_s(position))   (B,d,h,w)
    report tokens T (B,L,D)                     T' = norm(W_t T)                    (B,L,d),   w = softmax(T' u) over words
    enhancement      R = Σ_j w_j ⟨V, T'_j⟩,  g = sigmoid(aR + b),  m_s + γ g ⊙ MLP(m_s), γ = 0 at start
    in training      s⁺: words ↔ target positions, s⁻: words ↔ background; contrast against other reports; margin; g against the mask

Enhancement and alignment share their projections: what the contrast teaches V and T' is what g points with. The mask enters losses only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.config import Config, TmcaSettings
from tmca_core.losses.alignment import (
    background,
    contrast,
    likeness,
    margin,
    mean_similarity,
    pooled_cross_entropy,
    soft_targets,
    word_similarity,
)
from tmca_core.networks.attention import position_features
from tmca_core.networks.guide import STRIDES, Guide, Notes, Report, pooled
from tmca_core.networks.interface import NETWORKS, Auxiliary, Network, Output
from tmca_core.text.bank import public_bank
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch, TextPipeline, token_cache

LEVEL_WEIGHTS = (0.0, 0.5, 1.0, 1.0)
"""Of the contrast, at STRIDES. A step contrasts one level, drawn in these proportions: the same in expectation at a third of the cost.
At stride 4 it gained nothing measurable: enhancement alone is taught there."""
GROUPS_DRAWN = 4
"""Of reports in the bank that say the same, a step; about ten reports."""
MOST_POSITIONS = 100
"""Aligned positions a level; finer maps are taken at every second or fourth place, which costs little and saves most of the time."""


class Aligner(nn.Module):
    """The shared projections of image positions and words, and the enhancement that reads them."""

    def __init__(self, widths: Sequence[int], text_width: int, settings: TmcaSettings) -> None:
        super().__init__()
        width = settings.align_width
        self.octaves = 4
        self.image = nn.ModuleList([nn.Conv2d(c, width, 1) for c in widths])
        self.place = nn.ModuleList([nn.Linear(4 * self.octaves, width) for _ in widths])
        self.word = nn.Linear(text_width, width)
        self.importance = nn.Linear(width, 1)
        self.sharpness = nn.Parameter(torch.tensor([[5.0, -1.0]] * len(widths)))
        self.enhance = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, c, 1), nn.GELU(), nn.Conv2d(c, c, 1)) for c in widths] if settings.enhancement else []
        )
        for name, parameter in self.enhance.named_parameters():
            if name.split(".")[1] == "2":  # the last layer: enhancement begins as the identity
                nn.init.zeros_(parameter)
        self.back = nn.Linear(width, text_width) if settings.enhancement else None

    def positions(self, level: int, x: Tensor) -> Tensor:
        """(B, c, h, w) → V (B, d, h, w), unit vectors."""
        height, width = x.shape[-2:]
        place = self.place[level](position_features(height, width, self.octaves, x.device, x.dtype))
        return F.normalize(self.image[level](x) + place.T.reshape(1, -1, height, width), dim=1, eps=1e-6)

    def words(self, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L, D), words (B, L) bool with one True a row → T' (B, L, d), unit vectors, and w (B, L), summing to 1."""
        projected = F.normalize(self.word(tokens), dim=-1, eps=1e-6)
        return projected, self.importance(projected)[..., 0].masked_fill(~words, -torch.inf).softmax(-1)

    def pointing(self, level: int, positions: Tensor, words: Tensor, importance: Tensor) -> Tensor:
        """g (B, 1, h, w) in (0, 1): where the report's weighted words agree with a position."""
        report = torch.einsum("bl,bld->bd", importance, words)
        steep, shift = self.sharpness[level]
        return torch.sigmoid(steep * torch.einsum("bdhw,bd->bhw", positions, report) + shift)[:, None]

    def enhanced(self, level: int, x: Tensor, pointing: Tensor) -> Tensor:
        """x + g ⊙ MLP(x)."""
        enhanced: Tensor = x + pointing * self.enhance[level](x)
        return enhanced


class Tmca(Guide):
    """See the module."""

    def __init__(self, config: Config, text_encoder: TextEncoder) -> None:
        super().__init__(config, text_encoder)
        self.tmca = config.tmca
        self.aligner = Aligner(self.widths, text_encoder.dim, config.tmca)
        self._bank: TextBatch | None = None  # constants: no buffers, they have no place in checkpoints and updates
        self._cache, self._phrases = token_cache(config), config.network.phrase_kinds

    def relate(self, maps: list[Tensor], report: Report, notes: Notes) -> tuple[list[Tensor], Report]:
        """Enhance the maps where the report points; in training, keep what the losses read."""
        words, importance = self.aligner.words(report.tokens, report.words)
        contrasted = int(torch.multinomial(torch.tensor(LEVEL_WEIGHTS), 1)) if self.training else None
        enhanced = []
        for level, x in enumerate(maps):
            positions = self.aligner.positions(level, x)
            if self.tmca.enhancement:
                pointing = notes.maps[f"enhancement/{STRIDES[level]}"] = self.aligner.pointing(level, positions, words, importance)
                x = self.aligner.enhanced(level, x, pointing)
            enhanced.append(x)
            if level == contrasted and self.tmca.alignment != "off":
                notes.hidden["positions"] = positions
        if self.training and self.tmca.alignment != "off":
            notes.hidden |= {"words": words, "importance": importance, "says": says(report)}
            if self.tmca.alignment == "bank":
                bank = self.read(self.bank(words.device))
                notes.hidden["bank words"], notes.hidden["bank importance"] = self.aligner.words(bank.tokens, bank.words)
                notes.hidden["bank says"] = says(bank)
        if self.aligner.back is not None:
            report = replace(report, tokens=report.tokens + self.aligner.back(words))
        return super().relate(enhanced, report, notes)

    def bank(self, device: torch.device) -> TextBatch:
        """Some of the public reports: those of GROUPS_DRAWN groups that say the same, drawn anew each time (torch's random state)."""
        if self._bank is None:
            self._bank = TextPipeline(self.text_encoder, self._cache, device, phrase_kinds=self._phrases).encode(public_bank())
        bank = self._bank = self._bank.to(device)
        saying = torch.unique(torch.cat([bank.zones, bank.certainty[:, None]], 1).cpu(), dim=0, return_inverse=True)[1]
        drawn = torch.randperm(int(saying.max()) + 1)[:GROUPS_DRAWN]
        return bank.subset(torch.isin(saying, drawn).nonzero()[:, 0])

    def auxiliary(self, output: Output, masks: Tensor) -> dict[str, Auxiliary]:
        """`alignment` (not decomposable in mode "batch") and `enhancement`; several targets are aligned as one."""
        losses = super().auxiliary(output, masks)
        target = masks.amax(1, keepdim=True)
        if self.tmca.enhancement:
            maps = {stride: output.maps[f"enhancement/{stride}"] for stride in STRIDES}
            values = [pooled_cross_entropy(g, pooled(target, g)) for g in maps.values()]
            losses["enhancement"] = Auxiliary(self.tmca.weight * torch.stack(values).mean(0))
        if self.tmca.alignment != "off":
            value = self._likeness(output.hidden) + sum(LEVEL_WEIGHTS) * self._aligned(output.hidden, target)
            losses["alignment"] = Auxiliary(self.tmca.weight * value, decomposable=self.tmca.alignment == "bank")
        return losses

    def _aligned(self, hidden: dict[str, Tensor], target: Tensor) -> Tensor:
        """Contrast and margin of the drawn level: (B,); 0 where the target is smaller than a cell."""
        settings, temperature = self.tmca, self.tmca.temperature
        positions = thinned(hidden["positions"]).float()
        mask = pooled(target, positions)
        inside, outside = mask.flatten(1), background(mask).flatten(1)
        V = positions.flatten(2).transpose(1, 2)
        own, weight = hidden["words"].float()[:, None], hidden["importance"].float()[:, None]
        count = len(V)

        def similarity(weights: Tensor, words: Tensor, importance: Tensor) -> Tensor:
            """(B, K) for words (B, K, L, d)."""
            if settings.distance:
                return word_similarity(V, weights, words, importance, temperature)
            return mean_similarity(V, weights, words, importance)

        far = similarity(outside, own, weight)
        if settings.alignment == "batch":
            scores = similarity(inside, own[:, 0].expand(count, -1, -1, -1), weight[:, 0].expand(count, -1, -1))
            near, same = scores.diagonal()[:, None], _same(hidden["says"], hidden["says"])
            targets = soft_targets(torch.arange(count, device=V.device), same, settings.positives == "soft")
            value = 0.5 * contrast(scores, targets, temperature) + 0.5 * contrast(scores.T, targets, temperature)
        else:
            words, importance = hidden["bank words"].float(), hidden["bank importance"].float()
            longest = max(own.shape[2], words.shape[1])
            words = torch.cat([_padded(own, longest, 2), _padded(words, longest, 1).expand(count, -1, -1, -1)], 1)
            importance = torch.cat([_padded(weight, longest, 2), _padded(importance, longest, 1).expand(count, -1, -1)], 1)
            scores = torch.cat([similarity(inside, words, importance), far], 1)
            near, same = scores[:, :1], F.pad(_same(hidden["says"], hidden["bank says"]), (1, 1))
            targets = soft_targets(torch.zeros(count, dtype=torch.long, device=V.device), same, settings.positives == "soft")
            value = contrast(scores, targets, temperature)
        if settings.distance:
            value = value + 0.5 * margin(near[:, 0], far[:, 0])
        return value * (mask.sum((1, 2, 3)) >= 1)

    def _likeness(self, hidden: dict[str, Tensor]) -> Tensor:
        """Contrast of whole reports: own against the bank and the bank within itself, or within the batch: (B,)."""
        own, temperature = _whole(hidden["words"], hidden["importance"]), self.tmca.temperature
        if self.tmca.alignment == "batch":
            return likeness(own, own, _same(hidden["says"], hidden["says"]), temperature, itself=True)
        bank = _whole(hidden["bank words"], hidden["bank importance"])
        within = likeness(bank, bank, _same(hidden["bank says"], hidden["bank says"]), temperature, itself=True)
        return within.mean() + likeness(own, bank, _same(hidden["says"], hidden["bank says"]), temperature, itself=False)


def _padded(x: Tensor, length: int, dim: int) -> Tensor:
    """Zeros appended along `dim` up to `length`."""
    added = list(x.shape)
    added[dim] = length - x.shape[dim]
    return torch.cat([x, x.new_zeros(added)], dim)


def _whole(words: Tensor, importance: Tensor) -> Tensor:
    """Reports as unit vectors (B, d): their words' weighted mean."""
    return F.normalize((importance[..., None] * words).float().sum(1), dim=-1, eps=1e-6)


def says(report: Report) -> Tensor:
    """(B, 7) zones and certainty: what two reports have in common when they say the same."""
    return torch.cat([report.zones, report.certainty[:, None]], 1)


def _same(these: Tensor, those: Tensor) -> Tensor:
    """(B, K) bool: equal zones with equal certainty; reports without zones are like no other."""
    return (these[:, None] == those[None]).all(-1) & (these[:, None, -1] > 0)


def thinned(positions: Tensor) -> Tensor:
    """(B, d, h, w) at every k-th place, k the least power of two that leaves at most MOST_POSITIONS."""
    step = 1
    while -(-positions.shape[-2] // step) * -(-positions.shape[-1] // step) > MOST_POSITIONS:
        step *= 2
    return positions[..., step // 2 :: step, step // 2 :: step]


@NETWORKS.register("tmca")
def tmca(config: Config, text_encoder: TextEncoder) -> Network:
    """Target-sensitive multi-level alignment and language-guided enhancement."""
    return Tmca(config, text_encoder)
