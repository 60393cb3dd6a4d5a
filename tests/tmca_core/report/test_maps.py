"""From a network's maps to words, facts and small pictures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tmca_core.report.maps import describe_maps, half_area, side_share, word_maps
from tmca_core.text.wordpiece import WordPieceEncoder

TEXT = "Left consolidation."
SPANS = [None, (0, 4), (5, 11), (11, 18), (18, 19), None]  # [CLS] left consol ##idation . [SEP]
KINDS = [0, 5, 2, 2, 1, 0]


def plan(*cells: int) -> torch.Tensor:
    """(L, 2, 2): all mass of a token in one cell; -1: none."""
    tokens = torch.zeros(len(cells), 4)
    for token, cell in enumerate(cells):
        if cell >= 0:
            tokens[token, cell] = 1
    return tokens.reshape(-1, 2, 2)


def test_pieces_of_a_word_are_one_and_punctuation_is_none():
    left, consolidation = word_maps(TEXT, SPANS, KINDS, plan(-1, 1, 0, 3, 2, -1))
    assert (left.text, left.start, left.end, left.side, left.kind) == ("Left", 0, 4, "left", 5)
    assert left.mass.tolist() == [[0, 1], [0, 0]]
    assert (consolidation.text, consolidation.side, consolidation.kind) == ("consolidation", "", 2)
    assert consolidation.mass.tolist() == [[0.5, 0], [0, 0.5]]


def test_a_word_cut_off_has_no_map():
    assert [word.text for word in word_maps(TEXT, SPANS, KINDS, plan(-1, 1, -1, -1, 2, -1))] == ["Left"]
    assert [word.text for word in word_maps(TEXT, SPANS[:2], KINDS[:2], plan(-1, 1))] == ["Left"]
    assert word_maps("", [None], [0], plan(0)) == []


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match="same tokens"):
        word_maps(TEXT, SPANS, KINDS, plan(1, 1))


def test_half_area_and_side_by_hand():
    assert half_area(torch.tensor([[0.5, 0.2], [0.2, 0.1]])) == 0.25
    assert half_area(torch.tensor([[0.4, 0.2], [0.2, 0.2]])) == 0.5
    assert half_area(torch.full((7, 7), 1 / 49)) == 25 / 49
    mass = torch.tensor([[0.1, 0.2, 0.7]])
    assert side_share(mass, "left") == pytest.approx(0.8) and side_share(mass, "right") == pytest.approx(0.2)
    assert side_share(torch.tensor([[0.25, 0.75]]), "left") == pytest.approx(0.75)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_half_area_is_what_counting_gives(cells):
    total, taken, count = sum(cells), 0, 0
    for cell in sorted(cells, reverse=True):
        if 2 * taken >= total:
            break
        taken, count = taken + cell, count + 1
    assert half_area(torch.tensor(cells, dtype=torch.float32)[None]) == count / len(cells)


def test_pictures_and_facts():
    maps = {
        "enhancement/16": torch.tensor([[[[0.0, 0.5], [1.0, 2.0]]]]),
        "guidance": torch.ones(1, 1, 2, 2),
        "plan/fine": plan(-1, 1, 0, 3, 2, -1)[None],
        "plan/coarse": torch.stack([torch.full((2, 2), 0.25), torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([[0.2, 0], [0.8, 0]])])[
            None
        ],
        "else": torch.ones(1),
    }
    facts, pictures = describe_maps(TEXT, SPANS, KINDS, 0.5, maps)
    assert set(pictures) == {"enhancement/16", "guidance", "words", "phrases"}
    assert pictures["enhancement/16"].tolist() == [[0, 128], [255, 255]] and pictures["guidance"].min() == 255
    assert pictures["words"].tolist() == [[0, 255], [0, 0], [255, 0], [0, 255]]
    assert pictures["phrases"].tolist() == [[255, 255], [255, 255], [64, 0], [255, 0]]
    assert [word["text"] for word in facts["words"]] == ["Left", "consolidation"]
    assert (facts["words"][0]["half_area"], facts["words"][0]["side_share"]) == (0.25, 1.0)
    assert [(phrase["kind"], phrase["side_share"]) for phrase in facts["phrases"]] == [("descriptive", None), ("right", 1.0)]
    assert facts["certainty"] == 0.5 and describe_maps(TEXT, [], [], 1.0, {}) == ({}, {})


def test_spans_of_a_real_encoder_fit():
    text = "FINDINGS: Rounded opacity in the RIGHT lower lung; pleuroparenchymal change."
    encoder = WordPieceEncoder()
    spans = encoder.spans(text)
    assert len(spans) == encoder.tokenize([text])[0].shape[1]
    found = word_maps(text, spans, [1] * len(spans), torch.full((len(spans), 2, 2), 0.25))
    assert " ".join(word.text for word in found) == "FINDINGS Rounded opacity in the RIGHT lower lung pleuroparenchymal change"
    assert [word.side for word in found if word.side] == ["right"]
