"""Where in the lungs a sentence points: which words name sides and thirds, and which side belongs to which third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tmca_core.text import lexicon
from tmca_core.text.words import Word

Zone = tuple[int, int]
"""(side, level): side 0 left, 1 right; level 0 upper, 1 middle, 2 lower."""

BOTH_SIDES = frozenset((0, 1))
ALL_LEVELS = frozenset((0, 1, 2))
# "right greater than left", "R > L": both sides.
_COMPARING = lexicon.terms("greater more worse less larger than compared with to versus vs")
_TOWARDS = lexicon.terms("to toward towards from")
_PARTS = lexicon.terms("segment segments part parts portion portions aspect aspects")


@dataclass(frozen=True, slots=True)
class Place:
    """One place that a sentence names.

    Attributes:
        zones: the zones meant.
        at: index of the first word within the sentence; `last`: of the last.
        sided: a side was named (else both sides of the level are meant, for want of better).
        levelled: an upper, middle or lower third was named.
        pair: the word itself said "both" or "bilateral".
    """

    zones: frozenset[Zone]
    at: int
    last: int
    sided: bool
    levelled: bool
    pair: bool = False


@dataclass(slots=True)
class _Group:
    """Neighbouring words of one sort: sides ("left and right") or levels ("upper, middle and lower")."""

    first: int
    last: int
    values: set[int]
    used: bool = False
    pair: bool = False


def breaks(word: Word) -> bool:
    """Punctuation (not a slash or a hyphen) stands before the word."""
    return any(mark in word.gap for mark in ",:()[]")


def side_words(words: Sequence[Word]) -> list[int]:
    """Indices of the words of a sentence that say left, right or both of the lungs (or of a picture), not of a heart or an arm."""
    return [
        index
        for group in _side_groups(words)
        for index in range(group.first, group.last + 1)
        if words[index].kind == "side" or words[index].key in lexicon.BOTH
    ]


def find_places(words: Sequence[Word]) -> list[Place]:
    """Places that one sentence names, in the order of their words."""
    levels = _level_groups(words)
    sides = _side_groups(words)
    places = [
        Place(frozenset([(int(word.key[0] == "r"), "uml".index(word.key[1]))]), index, index, True, True)
        for index, word in enumerate(words)
        if word.kind == "abbreviation" and word.key[2] != "q"
    ]
    previous: tuple[_Group, frozenset[int]] | None = None
    for group in levels:
        lobe = next((i for i in range(group.first, group.last + 1) if words[i].kind == "lobe"), None)
        link = _side_before(words, group, sides, levels)
        from_before = link is not None
        link = link or _side_after(words, group, sides)
        if lobe is not None and not from_before:
            # The middle lobe is the right lung's and the lingula the left's, whatever side is named after them.
            places.append(Place(frozenset([(int(words[lobe].side == "right"), 1)]), lobe, lobe, True, True))
            group.values -= {1}
            if not group.values:
                continue
        if link is None and previous is not None and _carries_on(words, previous[0], group):
            named: frozenset[int] | None = previous[1]
        else:
            if link is None and not {w.key for w in words[group.first : group.last + 1]} & lexicon.SIDED_ONLY:
                link = _header(words, group, sides)
            named = frozenset(link.values) if link else None
        if named is None and not _stands_alone(words, group):
            continue
        if link is not None:
            link.used = True
        previous = (group, named) if named else None
        zones = frozenset((side, level) for side in (named or BOTH_SIDES) for level in group.values)
        places.append(Place(zones, group.first, group.last, named is not None, True))
    for group in sides:
        if not group.used:
            zones = frozenset((side, level) for side in group.values for level in ALL_LEVELS)
            places.append(Place(zones, group.first, group.last, True, False, group.pair))
    if not places:
        places = _whole_lungs(words)
    return sorted(places, key=lambda place: place.at)


def _side_groups(words: Sequence[Word]) -> list[_Group]:
    """Sides of the lungs, neighbours joined."""
    groups: list[_Group] = []
    for index, word in enumerate(words):
        pair = word.key in lexicon.BOTH and _is_both(words, index)
        if word.kind != "side" and not pair:
            continue
        values = {0, 1} if pair else {int(word.side == "right")}
        last = groups[-1] if groups else None
        between = {w.key for w in words[last.last + 1 : index]} if last else set()
        near = last is not None and not pair and not last.pair and not any(breaks(w) for w in words[last.last + 1 : index + 1])
        if last and near and between <= {"and", "or"} | _COMPARING:
            compared = (bool(between) and between <= _COMPARING) or set(word.gap) & set("<>")
            last.last, last.values, last.pair = index, last.values | values, bool(compared)
        else:
            groups.append(_Group(index, index, values, pair=pair))
    return [group for group in groups if not _elsewhere(words, group)]


def _is_both(words: Sequence[Word], index: int) -> bool:
    """ "bilateral" always means the two lungs; "both" only near a word of the lungs."""
    if words[index].key != "both":
        return True
    return any(w.key in lexicon.LUNG or w.key in lexicon.LEVELS for w in words[index + 1 : index + 4])


def _elsewhere(words: Sequence[Word], group: _Group) -> bool:
    """ "left ventricle", "right-sided chest pain", "pain in the right side": not a side of the lungs."""
    for word in words[group.last + 1 : group.last + 5]:
        if word.key in lexicon.ELSEWHERE:
            return True
        if breaks(word) or word.kind or (word.key in lexicon.LUNG - {"side", "sided", "quadrant"}) or word.key in lexicon.FINDING:
            break
        if word.key in ("and", "or", "with", "in", "is", "was", "are", "were"):
            break
    return _direction(words, group) or any(w.key in ("pain", "weakness", "aphasia") for w in words[max(0, group.first - 4) : group.first])


def _direction(words: Sequence[Word], group: _Group) -> bool:
    """ "leftward", "deviated to the left", "shift of the mediastinum towards the right": where something moved to, or from."""
    if words[group.first].key.endswith(("ward", "wards")):
        return True
    level = any(w.key in lexicon.LEVELS for w in words[group.last + 1 : group.last + 2])
    if level or not {w.key for w in words[max(0, group.first - 2) : group.first]} & _TOWARDS:
        return False
    for index in range(group.first - 1, max(-1, group.first - 9), -1):
        if words[index].key in lexicon.FINDING or words[index].key == "with" or breaks(words[index + 1]):
            break
        if words[index].key in lexicon.SHIFTING:
            return True
    return False


def _level_groups(words: Sequence[Word]) -> list[_Group]:
    """Thirds of the lungs, neighbours joined; "mid to lower" and "upper to lower" fill what lies between."""
    groups: list[_Group] = []
    for index, word in enumerate(words):
        following = [w.key for w in words[index + 1 : index + 3]]
        if word.key not in lexicon.LEVELS or set(following[: 2 if following[:1] == ["quadrant"] else 1]) & lexicon.ELSEWHERE:
            continue
        if following == ["of", "the"] and any(w.key in lexicon.ELSEWHERE for w in words[index + 3 : index + 4]):
            continue
        if _is_part(words, index):
            continue
        values = set(lexicon.LEVELS[word.key])
        last = groups[-1] if groups else None
        between = [w.key for w in words[last.last + 1 : index]] if last else []
        # "right middle lobe and lingula" are two places, "left upper lobe and lingula" too; "upper and middle lobe" is one.
        two_lobes = last is not None and word.kind == "lobe" and words[last.last].kind == "lobe"
        joined = last is not None and not two_lobes and word.key not in lexicon.PLEURAL and words[last.last].key not in lexicon.PLEURAL
        if (
            last
            and joined
            and set(between) <= lexicon.JOINERS
            and not any(set(w.gap) & set(":()[]") for w in words[last.last + 1 : index + 1])
        ):
            last.values |= values
            if "to" in between or "through" in between:
                last.values |= set(range(min(last.values), max(last.values) + 1))
            last.last = index
        else:
            groups.append(_Group(index, index, values))
    return groups


def _is_part(words: Sequence[Word], index: int) -> bool:
    """ "apical segment of the left lower lobe" is in the lower third: the segment's own name does not count."""
    for position in range(index + 1, min(index + 4, len(words) - 1)):
        if words[position].key in _PARTS and words[position + 1].key == "of":
            onward = words[position + 2 : position + 7]
            end = next((i for i, w in enumerate(onward) if breaks(w)), len(onward))
            return any(w.key in lexicon.LEVELS or w.kind == "abbreviation" for w in onward[:end])
    return False


def _side_before(words: Sequence[Word], group: _Group, sides: Sequence[_Group], levels: Sequence[_Group]) -> _Group | None:
    """ "left upper", "left lung base": a free side just before, with nothing but fillers between."""
    if group.first and words[group.first].key in ("bibasal", "bibasilar", "biapical", "bihilar"):
        return next((side for side in sides if side.first == group.first), None)
    for index in range(group.first, max(-1, group.first - 5), -1):
        owner = next((side for side in sides if side.first <= index <= side.last), None)
        if owner is not None:
            taken = owner.used and any(level.last == owner.first - 1 for level in levels)
            return None if taken else owner
        if index != group.first and words[index].key not in lexicon.FILLERS:
            return None
        if index != group.first and any(level.first <= index <= level.last for level in levels):
            return None
        if any(mark in words[index].gap for mark in ",()[]"):
            return None
    return None


def _side_after(words: Sequence[Word], group: _Group, sides: Sequence[_Group]) -> _Group | None:
    """ "upper left lung", "base of the right lung", "lower lobes bilaterally"."""
    for index in range(group.last + 1, min(len(words), group.last + 8)):
        if breaks(words[index]):
            return None
        owner = next((side for side in sides if side.first <= index <= side.last), None)
        if owner is not None:
            # "upper lobe left lower lobe": the side belongs to what follows, unless the level stands right before it.
            follows = index < len(words) - 1 and words[owner.last + 1 : owner.last + 2] and words[owner.last + 1].key in lexicon.LEVELS
            return None if follows and index != group.last + 1 else owner
        if words[index].key not in lexicon.FILLERS and words[index].key not in lexicon.FINDING:
            return None
    return None


def _carries_on(words: Sequence[Word], before: _Group, group: _Group) -> bool:
    """ "right upper lobe and lower lobe": the side named for the first level holds for the second."""
    between = words[before.last + 1 : group.first]
    plural = any(w.key.endswith("s") and w.key in lexicon.LUNG for w in words[group.last + 1 : group.last + 2])
    quiet = not any(breaks(w) for w in [*between, words[group.first]])
    return quiet and not plural and all(w.key in lexicon.FILLERS or w.key in lexicon.JOINERS or w.kind == "side" for w in between)


def _header(words: Sequence[Word], group: _Group, sides: Sequence[_Group]) -> _Group | None:
    """A side named earlier in the sentence for all of it: "Left lung: opacity in the upper zone", "bilateral, mostly basal"."""
    free = [side for side in sides if not side.used or side.pair]
    pairs = [side for side in free if side.pair]
    before = [side for side in free if side.last < group.first]
    header = pairs[0] if pairs else before[-1] if len(before) == 1 and len(sides) == 1 else None
    if header is None or header.last > group.first:
        return header
    if any(w.key in lexicon.WIDENING for w in words[header.last + 1 : group.first]):
        # "bilateral, more so at the bases": the bases are emphasised, the rest is not taken back.
        return _Group(header.first, header.last, set(header.values), pair=header.pair)
    return header


def _stands_alone(words: Sequence[Word], group: _Group) -> bool:
    """A level without any side is one of the lungs: anatomical ("apex"), before a lung word, or "in the lower is …"."""
    keys = {w.key for w in words[group.first : group.last + 1]}
    if keys & lexicon.SIDED_ONLY:
        return False
    if keys & lexicon.ANATOMICAL:
        return True
    following = words[group.last + 1 : group.last + 3]
    if any(w.key in lexicon.LUNG or w.key == "of" for w in following[:1]) or any(w.key in lexicon.LUNG for w in following[1:]):
        return True
    before = [w.key for w in words[max(0, group.first - 2) : group.first]]
    return before == ["in", "the"] and (not following or following[0].key in lexicon.COPULAS)


def _whole_lungs(words: Sequence[Word]) -> list[Place]:
    """ "the lungs", "diffuse opacities": both lungs where the sentence names no side and no level."""
    finding = any(w.key in lexicon.FINDING for w in words)
    everywhere = frozenset((side, level) for side in BOTH_SIDES for level in ALL_LEVELS)
    for index, word in enumerate(words):
        fields = word.key in ("lung", "pulmonary") and index + 1 < len(words) and words[index + 1].key in ("fields", "zones", "lobes")
        if word.key in lexicon.LUNGS or fields or (word.key in lexicon.WHOLE and finding):
            return [Place(everywhere, index, index, True, False)]
    return []
