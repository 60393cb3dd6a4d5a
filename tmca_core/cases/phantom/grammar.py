"""Reports: a small grammar that names opacities by place, look and likely cause, in four house styles.

A statement is locational ("in the left lower zone"), descriptive ("dense airspace opacity") and diagnostic ("in keeping with
pneumonia"); the last two may be missing. Sides stay symbols until the end, so the same words can be spelt in patient sides
and in image sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from tmca_core.cases.phantom.lesions import Opacity
from tmca_core.cases.phantom.sites import STYLES, Kind, Site

# (wording, weight); {left} and the like are symbols: see `spell`. S is the side's word, C its letter, Z the zone's word.
_ZONE = (
    ("S Z zone", 7), ("S Z lobe", 3), ("S Z lung zone", 2), ("S Z lung", 2), ("Z zone of the S lung", 2), ("Z S lung", 2),
    ("S Z lung field", 1),
)  # fmt: skip
_ZONE_WORDS = {"U": "upper", "M": "middle", "L": "lower"}
_ABBREVIATED = {"U": "CUL", "M": "CML", "L": "CLL"}
_BASE = ("S base", "S lung base")
_SIDE = ("S lung", "S hemithorax", "S lung")

_LOOKS: Mapping[Kind, tuple[str, ...]] = {
    "consolidation": ("consolidation", "consolidation", "airspace consolidation", "dense airspace opacity", "dense opacification"),
    "ground-glass": ("ground-glass opacity", "ground-glass opacity", "ground glass opacification", "hazy opacity"),
    "patchy": ("patchy opacity", "patchy opacity", "patchy airspace shadowing", "patchy infiltrate"),
    "nodule": ("mass", "nodular opacity", "rounded opacity"),
    "effusion": ("pleural effusion", "pleural effusion", "layering effusion"),
    "band": ("band atelectasis", "linear opacity", "linear atelectasis"),
}
_CAUSES: Mapping[Kind, tuple[str, ...]] = {
    "consolidation": ("in keeping with pneumonia", "suggestive of pneumonia", "likely infective"),
    "ground-glass": ("suggestive of viral pneumonia", "likely inflammatory", "in keeping with infection"),
    "patchy": ("suggestive of bronchopneumonia", "likely infective", "in keeping with infection"),
    "nodule": ("suspicious for malignancy", "CT is advised", "likely neoplastic"),
    "effusion": ("likely parapneumonic", "in keeping with fluid overload", "follow-up is advised"),
    "band": ("in keeping with subsegmental collapse", "likely post-inflammatory"),
}
_VERDICTS: Mapping[Kind, str] = {
    "consolidation": "pneumonia", "ground-glass": "viral pneumonia", "patchy": "bronchopneumonia", "nodule": "mass",
    "effusion": "effusion", "band": "atelectasis",
}  # fmt: skip
_GRADES = ("", "", "", "new ", "moderate ", "extensive ")
_LEADS = ("There is", "There is", "The film shows", "We see", "Note is made of")
_NORMAL = ("Heart size is normal.", "The mediastinum is not widened.", "Bony thorax is intact.", "Cardiac silhouette within normal limits.")
_DENIALS = ("No pneumothorax.", "No rib fracture.", "No mediastinal shift.", "No cardiomegaly.", "No free air under the diaphragm.")
_ELSEWHERE = ("Other shadowing is unchanged.", "Remaining opacities are old.", "Further opacities are known from before.")
_CLEAR: Mapping[str, tuple[str, ...]] = {
    "terse": ("No focal opacity.", "Clear lungs.", "Normal chest."),
    "narrative": ("The lungs are clear and the heart is normal.", "Normal chest film without focal opacity."),
    "structured": (
        "FINDINGS: The lungs are clear. Heart size is normal. IMPRESSION: No focal opacity.",
        "FINDINGS: No focal opacity. IMPRESSION: Normal chest.",
    ),
    "negated": ("No pneumothorax. No effusion. No focal opacity.", "No consolidation. No pleural effusion. No cardiomegaly."),
}


@dataclass(frozen=True)
class Report:
    """One report in both side conventions.

    Attributes:
        text: in patient sides.
        mirrored: the same words in image sides.
        style: the house style.
        typo: whether a key slipped.
    """

    text: str
    mirrored: str
    style: str
    typo: bool


def write_report(opacities: Sequence[Opacity], site: Site, rng: Generator) -> Report:
    """The report of a film: it speaks of the named opacities only."""
    style = STYLES[int(rng.choice(len(STYLES), p=site.styles))]
    named = [opacity for opacity in opacities if opacity.named]
    typo = bool(rng.random() < site.typos)
    words = _pick(_CLEAR[style], rng) if not named else _positive(style, named, opacities, rng)
    if typo:
        words = _slip(words, rng)
    return Report(spell(words, "patient"), spell(words, "image"), style, typo)


def spell(words: str, laterality: str) -> str:
    """Replace the side symbols {left}, {Left}, {L}, {right}, {Right}, {R} by words of a convention."""
    symbols = ["left", "Left", "L", "right", "Right", "R"]
    spelt = symbols if laterality == "patient" else symbols[3:] + symbols[:3]
    return words.format_map(dict(zip(symbols, spelt, strict=True)))


def _positive(style: str, named: Sequence[Opacity], opacities: Sequence[Opacity], rng: Generator) -> str:
    kind = named[0].kind
    place = _place(named, opacities, rng, short=style == "terse")
    # One noun serves several opacities only where it fits them all.
    look = _pick(_LOOKS[kind], rng) if len({opacity.kind for opacity in named}) == 1 else _pick(("opacities", "shadowing"), rng)
    grade = _pick(_GRADES if kind in ("consolidation", "ground-glass", "patchy") else ("", "", "", "new "), rng)
    cause = _pick(_CAUSES[kind], rng) if rng.random() < 0.5 else ""
    statement = f"{grade}{look} in {place}"
    tail = f", {cause}" if cause else ""
    elsewhere = len(named) < len(opacities) and rng.random() < 0.3
    if style == "terse":
        short = place.removeprefix("the ")
        return _sentence(f"{short} {look}" if rng.random() < 0.5 and " and " not in short else f"{look} {short}")
    if style == "structured":
        single = " and " not in place and "both" not in place
        brief = place.removeprefix("the ").replace("hemithorax", "lung")
        verdict = f"{brief} {_VERDICTS[kind]}" if single else f"{look} in {place}"
        findings = _sentence(statement + (f". {_pick(_NORMAL, rng)}" if rng.random() < 0.7 else ""))
        return f"FINDINGS: {findings} IMPRESSION: {_sentence(verdict)}"
    if style == "negated":
        denials = [str(one) for one in rng.permutation(_DENIALS)[: int(rng.integers(1, 4))]]
        if all(opacity.kind != "effusion" for opacity in opacities):
            denials.append("No pleural effusion.")
        at = int(rng.integers(0, len(denials) + 1))
        return " ".join([*denials[:at], _sentence(statement + tail), *denials[at:]])
    opening = _pick(_NORMAL, rng) + " " if rng.random() < 0.4 else ""
    if rng.random() < 0.5:
        verb = "show" if place.startswith(("both", "the lower zones", "the upper", "the middle")) or " and " in place else "shows"
        body = f"{place} {verb} {grade}{look}{tail}"
    else:
        body = f"{_pick(_LEADS, rng)} {statement}{tail}"
    return opening + _sentence(body) + (" " + _pick(_ELSEWHERE, rng) if elsewhere else "")


def _place(named: Sequence[Opacity], opacities: Sequence[Opacity], rng: Generator, short: bool) -> str:
    """Where the named opacities lie, in words that fit none of the others."""
    zones = [zone for opacity in named for zone in opacity.zones]
    sides = {zone[0] for zone in zones}
    others = {zone[0] for opacity in opacities if not opacity.named for zone in opacity.zones}
    if len(sides) == 1 and not sides & others and named[0].kind != "effusion" and rng.random() < 0.2:
        return "the " + _sided(_pick(_SIDE, rng), zones[0][0])
    if len(sides) == 2 and len(zones) == 2 and zones[0][1] == zones[1][1]:
        level = _ZONE_WORDS[zones[0][1]]
        return _pick((f"both {level} zones", f"the {level} zones of both lungs"), rng)
    parts = []
    for side in sorted(sides, key=lambda one: [zone[0] for zone in zones].index(one)):
        levels = sorted((zone[1] for zone in zones if zone[0] == side), key="UML".index)
        if len(levels) == 1:
            parts.append(_one_zone(side, levels[0], rng, short, named[0].kind))
        else:
            spoken = ", ".join(_ZONE_WORDS[level] for level in levels[:-1]) + " and " + _ZONE_WORDS[levels[-1]]
            parts.append("the " + _sided(f"S {spoken} zones", side))
    return " and ".join(parts)


def _one_zone(side: str, level: str, rng: Generator, short: bool, kind: Kind) -> str:
    if rng.random() < (0.35 if short else 0.08):
        return _ABBREVIATED[level].replace("C", "{" + side + "}")
    if level == "L" and rng.random() < (0.5 if kind == "effusion" else 0.15):
        return "the " + _sided(_pick(_BASE, rng), side)
    weights = [weight for _, weight in _ZONE]
    wording = _ZONE[int(rng.choice(len(_ZONE), p=[weight / sum(weights) for weight in weights]))][0]
    # The left lung has no middle lobe.
    word = "mid" if level == "M" and ("lobe" not in wording and rng.random() < 0.4) else _ZONE_WORDS[level]
    if level == "M" and "lobe" in wording:
        wording = "S Z zone"
    return "the " + _sided(wording, side).replace("Z", word)


def _sided(wording: str, side: str) -> str:
    return wording.replace("S", "{left}" if side == "L" else "{right}")


def _sentence(words: str) -> str:
    """Capital first, full stop last."""
    if words.startswith(("{left}", "{right}")):
        words = "{" + words[1:2].upper() + words[2:]
    elif not words.startswith("{"):
        words = words[0].upper() + words[1:]
    return words if words.endswith(".") else words + "."


def _slip(words: str, rng: Generator) -> str:
    """Exchange or drop two letters of one or two long words; words of place are spared, so that sides stay certain."""
    spared = {"middle", "hemithorax", "FINDINGS", "IMPRESSION"}
    found = [m for m in re.finditer(r"(?<![{\w])[A-Za-z]{6,}(?![}\w])", words) if m[0] not in spared]
    count = min(len(found), 1 + int(rng.random() < 0.3))
    for match in sorted((found[i] for i in rng.permutation(len(found))[:count]), key=lambda m: -m.start()):
        at = match.start() + int(rng.integers(1, len(match[0]) - 2))
        letters = words[at + 1] + words[at] if rng.random() < 0.5 else words[at + 1]
        words = words[:at] + letters + words[at + 2 :]
    return words


def _pick(options: Sequence[str], rng: Generator) -> str:
    return options[int(rng.integers(len(options)))]
