from __future__ import annotations

from tmca_core.text.bank import BANK_VERSION, bank_digest, public_bank
from tmca_core.text.findings import parse
from tmca_core.text.phrases import phrases
from tmca_core.text.sides import swap_sides

# What every report means: LU LM LL RU RM RL. Written by hand; the mirror images follow.
MEANT = {
    "Left lung.": "111000",
    "Infected area of the left lung.": "111000",
    "Left pleural effusion.": "001000",
    "LUL nodule, suspicious for malignancy.": "100000",
    "LLL atelectasis.": "001000",
    "Possible opacity at the left base.": "001000",
    "Left lower zone pneumonia.": "001000",
    "Extensive consolidation in the left upper, middle and lower zones.": "111000",
    "Patchy opacity in the left upper and middle zones.": "110000",
    "Several opacities in the left middle and lower zones.": "011000",
    "Two opacities, in the left upper zone and the right middle zone.": "100010",
    "Two opacities, in the left upper zone and the right lower zone.": "100001",
    "Two opacities, in the left middle zone and the right lower zone.": "010001",
    "Consolidation in the left upper zone.": "100000",
    "Patchy opacity in the left upper zone.": "100000",
    "Consolidation in the left middle zone.": "010000",
    "Patchy opacity in the left middle zone.": "010000",
    "Consolidation in the left lower zone.": "001000",
    "Patchy opacity in the left lower zone.": "001000",
    "Ground-glass opacity in the left lung.": "111000",
    "Consolidation in both upper zones.": "100100",
    "Patchy opacity in both middle zones.": "010010",
    "Ground-glass opacity in both lower zones.": "001001",
    "Both lungs.": "111111",
    "Diffuse bilateral opacities, suggestive of viral pneumonia.": "111111",
    "Bilateral pleural effusions.": "001001",
    "No focal opacity.": "000000",
    "The lungs are clear.": "000000",
    "No consolidation. No pleural effusion.": "000000",
    "Normal chest.": "000000",
}


def test_every_report_means_what_it_says_and_so_does_its_mirror_image() -> None:
    meant = MEANT | {swap_sides(text): zones if text == swap_sides(text) else zones[3:] + zones[:3] for text, zones in MEANT.items()}
    assert set(public_bank()) == set(meant) and len(public_bank()) == 50
    for text in public_bank():
        found = parse(text)
        assert "".join(map(str, found.zones)) == meant[text] and not found.contradictory
        assert (found.certainty == "uncertain") == ("Possible" in text)


def test_the_bank_is_closed_under_mirroring_and_covers_every_zone_alone() -> None:
    bank = public_bank()
    assert {swap_sides(text) for text in bank} == set(bank) and len(set(bank)) == len(bank)
    alone = {parse(text).zones.index(1) for text in bank if sum(parse(text).zones) == 1}
    assert alone == set(range(6))
    kinds = {phrase.kind for text in bank for phrase in phrases(text)}
    assert kinds == {"left", "right", "locational", "descriptive", "diagnostic"}


def test_the_bank_is_pinned() -> None:
    """A changed bank needs a new version, because models learned against the old one."""
    known = "37da1e6221a61071c5f6cd734e2827b1319f7bdc0efb87bdc66f9592ee011b04"  # pragma: allowlist secret
    assert (BANK_VERSION, bank_digest()) == (1, known)
