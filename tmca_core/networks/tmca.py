"""`tmca`: the base network with multi-level alignment of image and report, and enhancement where the aligned report points.

Our design after the abstract of TMCA (arXiv 2412.13533); docs/methods.md says what is the abstract's and what is ours.

    skip map m_s (B,c,h,w) at strides 4..32     V = norm(W_s m_s + P_s(position))   (B,d,h,w)
    report tokens T (B,L,D)                     T' = norm(W_t T)                    (B,L,d),   w = softmax(T' u) over words
    enhancement      R = Σ_j w_j ⟨V, T'_j⟩,  g = sigmoid(aR + b),  m_s + g ⊙ MLP(m_s);  T + W_b T';  both additions 0 at start
    in training      s⁺: words ↔ target positions, s⁻: words ↔ background: margin; target ↔ report against other reports: contrast;
                     g against the mask

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
    drawn,
    likeness,
    margin,
    mean_position,
    pooled_cross_entropy,
    soft_targets,
    word_similarity,
)
from tmca_core.networks.attention import Places
from tmca_core.networks.guide import STRIDES, Guide, Notes, Report, pooled
from tmca_core.networks.interface import NETWORKS, Auxiliary, Network, Output
from tmca_core.text.bank import bank_digest, public_bank
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch, TextPipeline, token_cache
from tmca_core.text.phrases import keep_phrases

LEVEL_WEIGHTS = (0.25, 0.5, 1.0, 1.0)
"""Of the contrast, at STRIDES."""
CONTRAST = 1 / 6
"""Weight of the contrast over that of enhancement, on average over steps."""
POSITIONS = 64
"""Target positions, and background positions, drawn an image and level."""


class Aligner(nn.Module):
    """The shared projections of image positions and words, and the enhancement that reads them."""

    def __init__(self, widths: Sequence[int], text_width: int, settings: TmcaSettings) -> None:
        super().__init__()
        width = settings.align_width
        self.image = nn.ModuleList([nn.Conv2d(c, width, 1) for c in widths])
        self.place = nn.ModuleList([Places(width) for _ in widths])
        self.word = nn.Linear(text_width, width)
        self.importance = nn.Linear(width, 1)
        self.sharpness = nn.Parameter(torch.tensor([[5.0, -1.0, 1.0]] * len(widths)))
        self.enhance = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, c, 1), nn.GELU(), nn.Conv2d(c, c, 1)) for c in widths] if settings.enhancement else []
        )
        for name, parameter in self.enhance.named_parameters():
            if name.split(".")[1] == "2":  # the last layer: enhancement begins as the identity
                nn.init.zeros_(parameter)
        self.back = nn.Linear(width, text_width) if settings.enhancement else None
        if self.back is not None:  # as the last layers above: the network begins as the base
            nn.init.zeros_(self.back.weight)
            nn.init.zeros_(self.back.bias)

    def positions(self, level: int, x: Tensor) -> Tensor:
        """(B, c, h, w) → V (B, d, h, w), unit vectors."""
        height, width = x.shape[-2:]
        place = self.place[level](x)
        return F.normalize(self.image[level](x) + place.T.reshape(1, -1, height, width), dim=1, eps=1e-6)

    def words(self, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L, D), words (B, L) bool with one True a row → T' (B, L, d), unit vectors, and w (B, L), summing to 1."""
        projected = F.normalize(self.word(tokens), dim=-1, eps=1e-6)
        return projected, self.importance(projected)[..., 0].masked_fill(~words, -torch.inf).softmax(-1)

    def pointing(self, level: int, positions: Tensor, words: Tensor, importance: Tensor, prior: Tensor | None) -> Tensor:
        """g (B, 1, h, w) in (0, 1): where the report's weighted words agree with a position, and the zones it names (`tmca-ssa`) allow."""
        report = torch.einsum("bl,bld->bd", importance, words)
        steep, shift, trust = self.sharpness[level]
        agreement = steep * torch.einsum("bdhw,bd->bhw", positions, report)[:, None] + shift
        return torch.sigmoid(agreement if prior is None else agreement + trust * (2 * pooled(prior, positions) - 1))

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
        self.constants = bank_digest() if config.tmca.alignment == "bank" else ""
        self._cache, self._phrases = token_cache(config), config.network.phrase_kinds

    def relate(self, maps: list[Tensor], report: Report, notes: Notes) -> tuple[list[Tensor], Report]:
        """Enhance the maps where the report points; on the steps that take the contrast, keep what it reads."""
        wanted = self.wanting(report)
        contrasted = self.training and self.tmca.alignment != "off" and bool(torch.rand(()) < self.tmca.share)
        # A shortcut only: cases that want no contrast get none in any case.
        contrasted = contrasted and (self.vectorised or bool(wanted.any()))
        words, importance = self.aligner.words(report.tokens, report.words)
        enhanced = list(maps)
        for level, x in enumerate(maps):
            if contrasted or self.tmca.enhancement:
                positions = self.aligner.positions(level, x)
            if contrasted:
                notes.hidden[f"positions/{level}"] = positions
            if self.tmca.enhancement:
                pointing = notes.maps[f"enhancement/{STRIDES[level]}"] = self.aligner.pointing(
                    level, positions, words, importance, notes.maps.get("guidance")
                ).float()
                enhanced[level] = self.aligner.enhanced(level, x, pointing)
        if contrasted:
            notes.hidden |= {"words": words, "importance": importance, "wanted": wanted, "spoken": spoken(report)} | said(report, "")
            notes.hidden["noise"] = torch.rand(2, maps[0].shape[-2] * maps[0].shape[-1], device=words.device)
            if self.tmca.alignment == "bank":
                bank = self.read(self.bank(words.device))
                notes.hidden["bank words"], notes.hidden["bank importance"] = self.aligner.words(bank.tokens, bank.words)
                notes.hidden |= said(bank, "bank ")
        if self.aligner.back is not None:
            report = replace(report, tokens=report.tokens + self.aligner.back(words))
        return super().relate(enhanced, report, notes)

    def wanting(self, report: Report) -> Tensor:
        """Cases whose report is contrasted (B,) bool: all that have words."""
        return spoken(report)

    def ready(self, device: torch.device) -> None:
        """The bank."""
        if self.tmca.alignment == "bank":
            self.bank(device)

    def bank(self, device: torch.device) -> TextBatch:
        """The public reports, with the phrases that are read; without words or twice none."""
        if self._bank is None:
            texts = dict.fromkeys(keep_phrases(text, self._phrases) for text in public_bank())
            self._bank = TextPipeline(self.text_encoder, self._cache, device).encode([text for text in texts if text.strip()])
        self._bank = self._bank.to(device)
        return self._bank

    def auxiliary(self, output: Output, masks: Tensor) -> dict[str, Auxiliary]:
        """`alignment` (not decomposable in mode "batch") and `enhancement`; several targets are aligned as one."""
        losses = super().auxiliary(output, masks)
        target, weight = masks.amax(1, keepdim=True), self.tmca.weight
        if self.tmca.enhancement:
            maps = {stride: output.maps[f"enhancement/{stride}"] for stride in STRIDES}
            values = [pooled_cross_entropy(g, pooled(target, g)) for g in maps.values()]
            losses["enhancement"] = Auxiliary(weight * torch.stack(values).mean(0))
        if self.tmca.alignment != "off":
            value = torch.zeros(len(masks), device=masks.device)
            if "words" in output.hidden:
                hidden = {name: x.float() if x.is_floating_point() else x for name, x in output.hidden.items()}
                with torch.autocast(masks.device.type, enabled=False):
                    levels = [share * self._contrast(hidden, level, target) for level, share in enumerate(LEVEL_WEIGHTS)]
                    per_case = self._likeness(hidden, target.amax((1, 2, 3)) > 0) + torch.stack(levels).sum(0)
                    value = (weight * CONTRAST / self.tmca.share) * per_case * hidden["wanted"]
            losses["alignment"] = Auxiliary(value, decomposable=self.tmca.alignment == "bank")
        return losses

    def _contrast(self, hidden: dict[str, Tensor], level: int, target: Tensor) -> Tensor:
        """Contrast and margin of one level: (B,); 0 where the target is smaller than a cell. A case without words means nothing here."""
        settings, temperature = self.tmca, self.tmca.temperature
        positions = hidden[f"positions/{level}"]
        mask = pooled(target, positions)
        around = background(mask)
        V, inside, outside = positions.flatten(2).transpose(1, 2), mask.flatten(1), around.flatten(1)
        bare, some = outside.sum(1) <= 0, mask.sum((1, 2, 3)) >= 1
        own, here = _whole(hidden["words"], hidden["importance"]), mean_position(V, inside)
        if settings.alignment == "batch":
            scores, counted = here @ own.T, hidden["spoken"] & some
            same = alike(hidden, "", "") & counted
            targets = soft_targets(torch.arange(len(V), device=V.device), same, settings.positives == "soft")
            value = 0.5 * (contrast(scores, targets, temperature, counted) + contrast(scores.T, targets, temperature, counted))
        else:
            bank, same = _whole(hidden["bank words"], hidden["bank importance"]), alike(hidden, "", "bank ")
            elsewhere = (mean_position(V, outside) * own).sum(1).masked_fill(bare, -1.0)
            scores = torch.cat([(here * own).sum(1)[:, None], here @ bank.T, elsewhere[:, None]], 1)
            first = torch.zeros(len(V), dtype=torch.long, device=V.device)
            value = contrast(scores, soft_targets(first, F.pad(same, (1, 1)), settings.positives == "soft"), temperature)
        if settings.distance:
            near, far = (self._distance(hidden, V, where, noise) for where, noise in zip((inside, outside), hidden["noise"], strict=True))
            value = value + margin(near, far) * ~bare
        return value * some

    def _distance(self, hidden: dict[str, Tensor], V: Tensor, where: Tensor, noise: Tensor) -> Tensor:
        """Similarity (B,) of the report's words to what each of them finds among positions drawn from weights (B, P)."""
        index, counted = drawn(where, noise[: V.shape[1]], POSITIONS)
        chosen = V.gather(1, index[..., None].expand(-1, -1, V.shape[2]))
        return word_similarity(chosen, counted, hidden["words"], hidden["importance"], self.tmca.temperature)

    def _likeness(self, hidden: dict[str, Tensor], some: Tensor) -> Tensor:
        """Contrast of whole reports: own against the bank and the bank within itself, or within the batch, as far as there is a target
        (`some`, (B,) bool): (B,)."""
        own, temperature, soft = _whole(hidden["words"], hidden["importance"]), self.tmca.temperature, self.tmca.positives == "soft"
        if self.tmca.alignment == "batch":
            counted = hidden["spoken"] & some
            return likeness(own, own, alike(hidden, "", "", soft), temperature, itself=True, counted_K=counted) * counted
        bank = _whole(hidden["bank words"], hidden["bank importance"])
        within = likeness(bank, bank, alike(hidden, "bank ", "bank ", soft), temperature, itself=True)
        return within.mean() + likeness(own, bank, alike(hidden, "", "bank ", soft), temperature, itself=False)


def spoken(report: Report) -> Tensor:
    """Reports that have words (B,) bool."""
    return (report.kinds > 0).any(1)


def said(report: Report, prefix: str) -> dict[str, Tensor]:
    """What tells whether two reports say the same: zones with certainty (B, 7) and identity (B,)."""
    zones = torch.cat([report.zones, report.certainty[:, None]], 1)
    return {f"{prefix}zones": zones, f"{prefix}identity": report.identity}


def alike(hidden: dict[str, Tensor], these: str, those: str, soft: bool = True) -> Tensor:
    """(B, K) bool: equal texts, or with `soft` equal zones with equal certainty where the report names any."""
    equal = hidden[f"{these}identity"][:, None] == hidden[f"{those}identity"][None]
    if not soft:
        return equal
    zones, others = hidden[f"{these}zones"], hidden[f"{those}zones"]
    named = (zones[:, None] == others[None]).all(-1) & (zones[:, None, -1] > 0)
    return named | equal


def _whole(words: Tensor, importance: Tensor) -> Tensor:
    """Reports as unit vectors (B, d): their words' weighted mean."""
    return F.normalize((importance[..., None] * words).sum(1), dim=-1, eps=1e-6)


@NETWORKS.register("tmca")
def tmca(config: Config, text_encoder: TextEncoder) -> Network:
    """Target-sensitive multi-level alignment and language-guided enhancement."""
    return Tmca(config, text_encoder)
