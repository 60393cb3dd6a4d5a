"""`ssa`: the base network with symmetric optimal transport between report and image, and guidance by the zones a report names.

Our design after the abstract of SSA (arXiv 2512.22981); docs/methods.md says what is the abstract's and what is ours.

    fine      words T' (B,L,d) × patches V (B,P,d) of stride 16          cost 1 − cos, two semi-relaxed plans: image→text hard on the
    coarse    phrases (B,4,d)  × regions (B,8,d), learned queries        image's marginal, text→image hard on the text's
              image→text brings each patch what the words that explain it say, text→image each word what its patches show;
              both enter by gates that are 0 at start, at strides 16 and 32
    guidance  zones z, certainty → prior G (B,1,h,w)
              zone tokens beside the report's; bias β log G on attention to positions; gate m (1 + γ(2G − 1)), γ = 0 at start;
              loss on probability where G < 0.1. The mask is never multiplied by G: a report may be wrong about a border
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.config import Config, SsaSettings
from tmca_core.losses.transport import asymmetry, misplaced, semi_relaxed_plan, transport_cost
from tmca_core.networks.attention import Places
from tmca_core.networks.guidance import ZonePrior
from tmca_core.networks.guide import Guide, Notes, Report, pooled
from tmca_core.networks.interface import NETWORKS, Auxiliary, Network, Output
from tmca_core.text.encoders import TextEncoder

PHRASES = (2, 3, 5, 6)
"""Token kinds that make the phrases of the coarse plan: descriptive, diagnostic, left, right."""
REGIONS = 8
RELAXATION = 0.1
SHARPNESS = 10.0
"""Of the regions' queries over patches: cosines are small numbers."""
OUTSIDE = 0.1
"""Where the prior is below this, probability is penalised."""


class Transport(nn.Module):
    """Plans between words and patches, phrases and regions, and what flows along them."""

    def __init__(self, width: int, text_width: int, settings: SsaSettings) -> None:
        super().__init__()
        self.fine, self.coarse = settings.transport in ("both", "fine"), settings.transport in ("both", "coarse")
        self.patch = nn.Conv2d(width, width, 1)
        self.place = Places(width)
        self.word = nn.Linear(text_width, width)
        self.regions = nn.Parameter(torch.randn(REGIONS, width) * width**-0.5) if self.coarse else None
        self.to_image = nn.Linear(text_width, width)
        self.to_text = nn.Linear(width, text_width)
        self.image_gates = nn.Parameter(torch.zeros(2, 2, width))  # (fine, coarse) × strides (16, 32)
        self.text_gates = nn.Parameter(torch.zeros(2, text_width))

    def forward(self, maps: list[Tensor], report: Report, notes: Notes) -> tuple[list[Tensor], Report]:
        """Maps (B, width, H/16, W/16) and (B, width, H/32, W/32) and the report, with what the plans carry added."""
        middle, coarsest = maps
        height, width = middle.shape[-2:]
        place = self.place(middle)
        patches = F.normalize(self.patch(middle).flatten(2).transpose(1, 2) + place, dim=-1, eps=1e-6)
        words = F.normalize(self.word(report.tokens), dim=-1, eps=1e-6)
        shown, said = middle.flatten(2).transpose(1, 2), self.to_image(report.tokens)
        arriving, token_gain = [], torch.zeros_like(report.tokens)
        if self.fine:
            plans = _plans(patches, words, _uniform(torch.ones_like(patches[..., 0])), _uniform(report.words.float()))
            if self.training:
                notes.hidden |= {f"fine {name}": tensor for name, tensor in plans.items()}
            to_patch, to_word = _rows(plans["image to text"]), _rows(plans["text to image"])
            notes.maps["plan/fine"] = _as_maps(to_word.detach(), height, width)
            arriving.append(to_patch @ said)
            token_gain = token_gain + self.text_gates[0] * (to_word @ self.to_text(shown))
        if self.regions is not None:
            members = _members(report.kinds)  # (B, 4, L), rows summing to 1 or 0
            present = members.sum(2) > 0
            some = present.any(1, keepdim=True)
            area = (patches @ F.normalize(self.regions, dim=-1).T * SHARPNESS).softmax(1).transpose(1, 2)  # (B, 8, P), rows summing to 1
            regions, phrases = F.normalize(area @ patches, dim=-1, eps=1e-6), F.normalize(members @ words, dim=-1, eps=1e-6)
            plans = _plans(regions, phrases, _uniform(torch.ones_like(regions[..., 0])), _uniform((present | ~some).float()))
            if self.training:
                notes.hidden |= {f"coarse {name}": tensor for name, tensor in plans.items()} | {"area": area, "some": some}
            to_region, to_phrase = _rows(plans["image to text"]) * some[..., None], _rows(plans["text to image"]) * present[..., None]
            notes.maps["plan/coarse"] = _as_maps((to_phrase @ area.float()).detach().float(), height, width)
            share = area / area.sum(1, keepdim=True).clamp_min(1e-12)  # which regions a patch belongs to
            arriving.append(share.transpose(1, 2) @ (to_region @ (members @ said)))
            per_phrase = to_phrase @ (area @ self.to_text(shown))
            token_gain = token_gain + self.text_gates[1] * ((members > 0).float().transpose(1, 2) @ per_phrase)
        for gates, x in zip(self.image_gates if len(arriving) == 2 else self.image_gates[:1], arriving, strict=True):
            flow = _as_maps(x.transpose(1, 2), height, width)
            middle = middle + gates[0][:, None, None] * flow
            coarsest = coarsest + gates[1][:, None, None] * pooled(flow, coarsest)
        return [middle, coarsest], replace(report, tokens=report.tokens + token_gain)


def _as_maps(rows: Tensor, height: int, width: int) -> Tensor:
    """(B, N, height·width) → (B, N, height, width)."""
    return rows.reshape(*rows.shape[:2], height, width)


def _plans(image: Tensor, text: Tensor, image_mass: Tensor, text_mass: Tensor) -> dict[str, Tensor]:
    """Both plans, each with its hard side first, and the cost (B, P, L), from unit vectors image (B, P, d) and text (B, L, d)."""
    with torch.autocast(image.device.type, enabled=False):  # divided by ε, half precision would show
        cost = 1 - image.float() @ text.float().transpose(1, 2)
    return {
        "image to text": semi_relaxed_plan(cost, image_mass, text_mass, RELAXATION),
        "text to image": semi_relaxed_plan(cost.transpose(1, 2), text_mass, image_mass, RELAXATION),
        "cost": cost,
    }


def _uniform(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True)


def _rows(plan: Tensor) -> Tensor:
    """A plan with each row summing to 1 (0 where it has no mass)."""
    return plan / plan.sum(2, keepdim=True).clamp_min(1e-12)


def _members(kinds: Tensor) -> Tensor:
    """Token kinds (B, L) → mean over the tokens of each phrase (B, 4, L)."""
    of = torch.stack([kinds == kind for kind in PHRASES], 1).float()
    return of / of.sum(2, keepdim=True).clamp_min(1)


class Ssa(Guide):
    """See the module."""

    parts = MappingProxyType(
        {
            **Guide.parts,
            "text": (*Guide.parts["text"], "zone_tokens"),
            "decoder": (*Guide.parts["decoder"], "prior", "gates", "biases"),
        }
    )

    def __init__(self, config: Config, text_encoder: TextEncoder) -> None:
        super().__init__(config, text_encoder)
        settings = self.ssa = config.ssa
        self.transport = Transport(self.widths[2], text_encoder.dim, settings) if settings.transport != "off" else None
        self.prior = ZonePrior(settings.prior) if settings.prior != "off" else None
        self.zone_tokens = nn.Parameter(torch.randn(6, text_encoder.dim)) if self.prior and settings.tokens else None
        self.gates = nn.ParameterList([nn.Parameter(torch.zeros(c, 1, 1)) for c in self.widths] if self.prior and settings.gate else [])
        attending = len(self.widths) - 1  # at stride 4 positions are no keys
        self.biases = nn.Parameter(torch.ones(attending)) if self.prior and settings.bias else None

    def relate(self, maps: list[Tensor], report: Report, notes: Notes) -> tuple[list[Tensor], Report]:
        """Transport between report and image; the prior, and a token for every zone that is named."""
        maps, report = super().relate(maps, report, notes)
        if self.transport is not None:
            (middle, coarsest), report = self.transport(maps[2:], report, notes)
            maps = [*maps[:2], middle, coarsest]
        self.direct(maps, report, notes)
        if self.zone_tokens is not None:
            named = (report.zones * report.certainty[:, None]) > 0
            tokens = torch.cat([report.tokens, self.zone_tokens.expand(len(named), -1, -1)], 1)
            report = replace(report, tokens=tokens, mask=torch.cat([report.mask, named], 1))
        return maps, report

    def direct(self, maps: list[Tensor], report: Report, notes: Notes) -> None:
        """Note the prior, once."""
        if self.prior is not None and "guidance" not in notes.maps:
            notes.maps["guidance"] = self.prior(report.zones, report.certainty, *maps[0].shape[-2:])

    def refine(self, level: int, x: Tensor, report: Report, notes: Notes) -> Tensor:
        """Gate and attention bias by the prior."""
        bias = None
        if self.prior is not None:
            prior = pooled(notes.maps["guidance"], x)
            if len(self.gates):
                x = x * (1 + self.gates[level] * (2 * prior - 1))
            if self.biases is not None and level:
                bias = self.biases[level - 1] * (prior.flatten(1) + 0.05).log()
        refined: Tensor = self.blocks[level](x, report.tokens, report.mask, bias)
        return refined

    def auxiliary(self, output: Output, masks: Tensor) -> dict[str, Auxiliary]:
        """`transport` and `outside`, both decomposable. Several targets count as one for transport; `outside` is for one target alone,
        because of several nobody says which the report places."""
        losses = super().auxiliary(output, masks)
        hidden, target = output.hidden, masks.amax(1, keepdim=True)
        if self.transport is not None:
            plan = output.maps["plan/fine" if self.transport.fine else "plan/coarse"]
            inside = (pooled(target, plan) > 0).float().flatten(1)
            value = torch.zeros(len(masks), device=masks.device)
            if self.transport.fine:
                value = value + _transport_loss(hidden, "fine")
                value = value + 0.5 * misplaced(hidden["fine text to image"].sum(1), inside)
            if self.transport.coarse:
                some = hidden["some"][:, 0].float()
                arrival = (hidden["coarse text to image"].sum(1)[:, None] @ hidden["area"].float())[:, 0]
                value = value + some * (_transport_loss(hidden, "coarse") + 0.5 * misplaced(arrival, inside))
            losses["transport"] = Auxiliary(self.ssa.weight * value)
        if self.prior is not None and self.ssa.penalty and masks.shape[1] == 1:
            prior = F.interpolate(output.maps["guidance"], output.logits.shape[-2:], mode="bilinear", align_corners=False)
            outside = torch.sigmoid(output.logits.float()) * (prior < OUTSIDE)
            losses["outside"] = Auxiliary(self.ssa.penalty * outside.mean((1, 2, 3)))
        return losses


def _transport_loss(hidden: dict[str, Tensor], scale: str) -> Tensor:
    """½ Σ over both plans of ⟨π, C⟩ + their asymmetry: (B,)."""
    to_text, to_image = hidden[f"{scale} image to text"], hidden[f"{scale} text to image"].transpose(1, 2)
    cost = hidden[f"{scale} cost"]
    return 0.5 * (transport_cost(to_text, cost) + transport_cost(to_image, cost)) + asymmetry(to_text, to_image)


@NETWORKS.register("ssa")
def ssa(config: Config, text_encoder: TextEncoder) -> Network:
    """Symmetric optimal-transport alignment and composite directional guidance."""
    return Ssa(config, text_encoder)
