"""Keep what a network returns beside its mask: where the report let it look, and where each word and phrase points.

Maps are small 8-bit PNGs. Values in [0, 1] (enhancement, guidance) are kept as they are; transport plans, whose cells sum to 1,
are stretched so that the largest cell is 255. Words and phrases are strips: one map below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tmca_core.text.phrases import Span
from tmca_core.text.words import split

PHRASES = ("descriptive", "diagnostic", "left", "right")
"""Order of "plan/coarse"."""

_EMPTY = 1e-6  # a plan with less mass is that of an absent phrase or of a token cut off


@dataclass(frozen=True)
class WordMap:
    """One word of a report and where its mass goes.

    Attributes:
        start: first character in the report; `end`: one past the last.
        side: "left" or "right" where the word names one in patient sides, else "".
        kind: largest kind of its tokens (`TextBatch.kinds`).
        mass: (h, w), sums to 1.
    """

    text: str
    start: int
    end: int
    side: str
    kind: int
    mass: Tensor


def word_maps(text: str, spans: Sequence[Span | None], kinds: Sequence[int], plan: Tensor) -> list[WordMap]:
    """The words of a report, in order, each with the mean plan of its pieces; punctuation and words cut off have none.

    Args:
        text: the report that was encoded.
        spans: characters of L tokens in `text`; None for special tokens.
        kinds: of the L tokens.
        plan: (L, h, w) mass over patches.

    Raises:
        ValueError: spans, kinds and plan are not of one length.
    """
    if not len(spans) == len(kinds) == len(plan):
        raise ValueError(f"{len(spans)} spans, {len(kinds)} kinds and {len(plan)} maps do not belong to the same tokens.")
    heavy = plan.flatten(1).sum(1) > _EMPTY
    found = []
    for word in split(text):
        mine = [i for i, span in enumerate(spans) if span and max(span[0], word.start) < min(span[1], word.end) and heavy[i]]
        if mine:
            mass = plan[mine].sum(0)
            found.append(WordMap(word.text, word.start, word.end, word.side, max(kinds[i] for i in mine), mass / mass.sum()))
    return found


def half_area(mass: Tensor) -> float:
    """Share of the cells, the heaviest first, that hold half of the mass: near 0 for a point, 0.5 for an even spread.

    Example:
        >>> half_area(torch.tensor([[0.5, 0.2], [0.2, 0.1]]))
        0.25
    """
    ranked = mass.flatten().sort(descending=True).values.double().cumsum(0)
    return (int((ranked < ranked[-1] / 2 * (1 - 1e-6)).sum()) + 1) / mass.numel()


def side_share(mass: Tensor, side: str) -> float:
    """Share of an (h, w) mass on the patient's `side`; the patient's left is the image half x > 0.5, a middle column counts half."""
    columns = mass.sum(0).double()
    place = (torch.arange(len(columns)) + 0.5) / len(columns)
    weight = (place > 0.5).double() + 0.5 * (place == 0.5)
    share = float((columns * weight).sum() / columns.sum())
    return share if side == "left" else 1 - share


def describe_maps(
    text: str, spans: Sequence[Span | None], kinds: Sequence[int], certainty: float, maps: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a network's maps of one case say, for `examples/index.json`, and the maps as pictures.

    Args:
        text: the report as the encoder read it.
        spans: characters of L tokens in `text`, None for special tokens; `kinds` theirs. Read where there is a "plan/fine".
        certainty: of the report's zones (`TextBatch.certainty`).
        maps: of a batch of one: "enhancement/S" and "guidance" (1, 1, h, w), "plan/fine" (1, L, h, w), "plan/coarse" (1, 4, h, w);
            others are left out.

    Returns:
        {"certainty": …, "words": […], "phrases": […]}: the certainty where there is a "guidance", each list only where there are such
        maps, in the order of the strip's maps; and by name
        ("enhancement/S", "guidance", "words", "phrases") pictures (H, W) uint8.
    """
    facts: dict[str, Any] = {"certainty": certainty} if "guidance" in maps else {}
    pictures = {name: _eight_bits(values[0, 0]) for name, values in maps.items() if name == "guidance" or name.startswith("enhancement/")}
    if "plan/fine" in maps and (found := word_maps(text, spans, kinds, maps["plan/fine"][0].float().cpu())):
        pictures["words"] = _strip([word.mass for word in found])
        facts["words"] = [
            {"text": w.text, "start": w.start, "end": w.end, "kind": w.kind, "side": w.side, **_facts(w.mass, w.side)} for w in found
        ]
    if "plan/coarse" in maps:
        plans = dict(zip(PHRASES, maps["plan/coarse"][0].float().cpu(), strict=True))
        if present := {name: plan for name, plan in plans.items() if float(plan.sum()) > _EMPTY}:
            pictures["phrases"] = _strip(list(present.values()))
            facts["phrases"] = [{"kind": name, **_facts(plan, name if name in ("left", "right") else "")} for name, plan in present.items()]
    return facts, pictures


def _facts(mass: Tensor, side: str) -> dict[str, float | None]:
    return {"half_area": half_area(mass), "side_share": side_share(mass, side) if side else None}


def _eight_bits(values: Tensor) -> Tensor:
    """(H, W) in [0, 1] → uint8."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _strip(masses: Sequence[Tensor]) -> Tensor:
    """(h, w) masses, each stretched to its own largest cell, one below the other: (n·h, w) uint8."""
    return torch.cat([_eight_bits(mass / mass.max()) for mass in masses])
