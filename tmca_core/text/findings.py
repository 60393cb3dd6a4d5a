"""What an English report says about sides, zones, number and certainty of findings in the lungs.

Written for chest reports and for the caption grammars of public data sets ("bilateral pulmonary infection, two infected
areas, upper left lung and lower right lung."). Rules, no learning: every answer can be traced to words, and left and
right are treated alike, so that the zones of a report with its sides swapped are the mirrored zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tmca_core.text import lexicon
from tmca_core.text.places import Place, Zone, find_places
from tmca_core.text.polarity import read_polarity
from tmca_core.text.sentences import sentences
from tmca_core.text.words import Word, split

FoundSide = Literal["left", "right", "both", "none", "unknown"]
Certainty = Literal["certain", "uncertain", "negated"]


@dataclass(frozen=True, slots=True)
class Findings:
    """Parsed report. Sides are as written in the text.

    Attributes:
        side: side of the findings; "none" where the report only denies findings, "unknown" where it names no side.
        zones: 0 or 1 for LU, LM, LL, RU, RM, RL (upper, middle, lower third of the left and the right lung). A side without
            a level is all its three zones; a level without a side is that level on both sides; all 0: no constraint.
        count: number of affected areas where the report states it.
        certainty: "negated" where the report only denies; "uncertain" where every finding is doubted.
        contradictory: the report's statements exclude each other; use no constraint.
    """

    side: FoundSide
    zones: tuple[int, ...]
    count: int | None
    certainty: Certainty
    contradictory: bool

    @property
    def one_sided(self) -> bool:
        """Exactly one side is named, without contradiction."""
        return self.side in ("left", "right") and not self.contradictory

    @property
    def constraint(self) -> tuple[tuple[int, ...], float]:
        """Zones that the report holds findings to, all 0 where it names none or contradicts itself; and how sure it is of them.

        The certainty is 1 for a plain statement, 0.5 where every finding is doubted, and 0 where no zone is named.
        """
        if self.contradictory or not any(self.zones):
            return (0,) * len(self.zones), 0.0
        return self.zones, 0.5 if self.certainty == "uncertain" else 1.0


def parse(text: str) -> Findings:
    """Read a report. Never raises; what is not understood leaves side "unknown" and the zones 0.

    Example:
        >>> parse("Patchy opacity in the left lower lobe. No effusion.")
        Findings(side='left', zones=(0, 0, 1, 0, 0, 0), count=None, certainty='certain', contradictory=False)
    """
    words = split(text)
    found: set[Zone] = set()
    sideless: set[Zone] = set()
    healthy: set[Zone] = set()
    spared: set[Zone] = set()
    doubts: list[bool] = []
    denied = False
    for sentence, ending in sentences(words, text):
        flags = read_polarity(sentence, ending)
        rest = any(word.key in lexicon.REST for word in sentence)
        kept: list[Place] = []
        for place in find_places(sentence):
            if flags.spared[place.at]:
                spared |= place.zones
            elif flags.healthy[place.at]:
                denied = True
                healthy |= set() if rest else place.zones
            elif flags.denied[place.at]:
                denied = True
            else:
                kept.append(place)
                doubts.append(flags.doubted[place.at])
        for place in _without_headers(kept, sentence):
            (found if place.sided else sideless).update(place.zones)
        for index, word in enumerate(sentence):
            if word.key in lexicon.FINDING and not kept and not flags.denied[index] and not flags.healthy[index]:
                doubts.append(flags.doubted[index])
        denied |= _denies([word for index, word in enumerate(sentence) if flags.healthy[index] or flags.denied[index]], sentence)
    # "left hilar mass … the hilar node": a level named again without its side adds nothing.
    sideless = {zone for zone in sideless if zone[1] not in {level for _, level in found}}
    found |= sideless
    clash = False
    for side in (0, 1):
        of_side = {zone for zone in found if zone[0] == side}
        if of_side and of_side <= healthy:
            clash = True
        else:
            found -= {zone for zone in healthy if zone[0] == side}
    found -= spared
    keys = {word.key for word in words}
    count = _count(words)
    sides = {side for side, _ in found}
    clash |= "unilateral" in keys and len(sides) == 2 and not sideless
    if "infected" in keys and found and not sideless:
        clash |= count is not None and count != len(found)
        clash |= "bilateral" in keys and len(sides) == 1
    side_name: FoundSide = "unknown"
    if found and not sideless:
        side_name = "both" if len(sides) == 2 else "right" if 1 in sides else "left"
    elif not found and not doubts and denied:
        side_name = "none"
    certainty: Certainty = "certain"
    if doubts and all(doubts):
        certainty = "uncertain"
    elif side_name == "none":
        certainty = "negated"
    zones = tuple(int((side, level) in found) for side in (0, 1) for level in (0, 1, 2))
    return Findings(side_name, zones, count, certainty, clash)


def _denies(said: Sequence[Word], sentence: Sequence[Word]) -> bool:
    """What a sentence denies or calls normal is about the lungs or the film, not about blood or history."""
    keys = {word.key for word in said}
    if keys & lexicon.OFF_TOPIC:
        return False
    return len(said) == len(sentence) == 1 or bool(keys & (lexicon.FINDING | lexicon.LUNG | lexicon.IMAGING))


def _without_headers(places: Sequence[Place], sentence: Sequence[Word]) -> list[Place]:
    """Drop whole-lung places that only announce the levels named after them in the same sentence.

    "bilateral infection, upper left lung and lower right lung" is two zones; "bilateral, more in the left upper lobe" is six;
    in "bibasilar infiltrates, greater on the left" the stress adds no zones.
    """
    kept = []
    for place in places:
        later = [other for other in places if other.levelled and other.sided and other.at > place.last]
        covered = {side for other in later for side, _ in other.zones} >= {side for side, _ in place.zones}
        between = sentence[place.last + 1 : later[0].at] if later else []
        header = covered and not any(word.key in lexicon.WIDENING for word in between)
        stressed = any(word.key in lexicon.WIDENING for word in sentence[max(0, place.at - 3) : place.at])
        known = {side for other in places if other.at < place.at for side, _ in other.zones}
        if place.levelled or not (header or (stressed and known >= {side for side, _ in place.zones})):
            kept.append(place)
    return kept


def _count(words: Sequence[Word]) -> int | None:
    """Stated number of areas or lesions, summed over statements."""
    total: int | None = None
    for index, word in enumerate(words):
        value = lexicon.NUMBERS.get(word.key)
        if value is None and len(word.key) <= 2 and word.key.isascii() and word.key.isdigit():
            value = int(word.key)
        if value is None or (index and words[index - 1].key in ("day", "case", "figure", "fig", "no")):
            continue
        for follower in words[index + 1 : index + 4]:
            if follower.key in lexicon.UNITS or follower.gap.strip() not in ("", "-") or follower.kind:
                break
            if follower.key in lexicon.COUNTED:
                total = value + (total or 0)
                break
    return total
