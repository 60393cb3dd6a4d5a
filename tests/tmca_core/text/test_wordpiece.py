from __future__ import annotations

import copy
import csv
import pickle
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmca_core.config import parse as parse_config
from tmca_core.text.encoders import build_text_encoder
from tmca_core.text.vocabulary import SPECIAL, build_vocabulary, read_vocabulary
from tmca_core.text.wordpiece import LIMIT, WordPieceEncoder, wordpiece_tokenizer

TEXTS = Path(__file__).parents[3] / "../shared/data/texts"
UNKNOWN = SPECIAL.index("[UNK]")
TOKENIZER = wordpiece_tokenizer(read_vocabulary(), LIMIT)


@pytest.fixture(scope="module")
def encoder() -> WordPieceEncoder:
    torch.manual_seed(0)
    return WordPieceEncoder().eval()


def test_the_shipped_vocabulary_is_the_one_that_is_built() -> None:
    pieces = read_vocabulary()
    assert pieces == build_vocabulary()
    assert len(pieces) == len(set(pieces)) and 1900 < len(pieces) < 4000
    for word in "left right upper middle lower lung bilateral unilateral infected areas apex base hilar rul lll consolidation no".split():  # noqa: SIM905
        assert word in pieces
    assert set(string.ascii_lowercase + string.digits) <= {piece.removeprefix("##") for piece in pieces if piece.startswith("##")}


@given(st.text(alphabet=string.printable, max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_ascii_text_is_unknown(text: str) -> None:
    assert UNKNOWN not in TOKENIZER.encode(text).ids


def test_real_notes_and_captions_have_no_unknown_words(encoder: WordPieceEncoder) -> None:
    if not TEXTS.exists():
        pytest.skip("the shared texts are not beside this checkout")
    for name, column in (("qata_captions.csv", "Description"), ("ieee8023_clinical_notes.csv", "clinical_notes")):
        with (TEXTS / name).open(encoding="utf-8", newline="") as file:
            texts = sorted({row[column] for row in csv.DictReader(file)})
        ids, mask = encoder.tokenize(texts)
        assert (ids[mask] == UNKNOWN).float().mean() < 1e-4
        assert mask.sum() < sum(map(len, texts)) / 3.5  # characters a token: words are mostly whole


def test_tokens_are_lower_case_without_accents_and_padded(encoder: WordPieceEncoder) -> None:
    ids, mask = encoder.tokenize(["LEFT lung œdème", "left lung", ""])
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    pieces = read_vocabulary()
    assert [pieces[i] for i in ids[1][mask[1]]] == ["[CLS]", "left", "lung", "[SEP]"]
    assert ids[0, 1] == ids[1, 1] and ids[1, 4:].eq(0).all()
    assert [pieces[i] for i in ids[2][mask[2]]] == ["[CLS]", "[SEP]"]


def test_long_reports_are_cut_and_keep_their_special_tokens() -> None:
    short = WordPieceEncoder(limit=16)
    ids, mask = short.tokenize(["left lung " * 400])
    assert ids.shape == (1, 16) and mask.all()
    assert [read_vocabulary()[i] for i in ids[0, [0, -1]]] == ["[CLS]", "[SEP]"]
    full = WordPieceEncoder()
    assert full(*full.tokenize(["left lung " * 400])).shape == (1, LIMIT, 128)


def test_padding_changes_nothing(encoder: WordPieceEncoder) -> None:
    alone = encoder(*encoder.tokenize(["Left lung."]))
    ids, mask = encoder.tokenize(["Left lung.", "Bilateral consolidation in the lower zones of both lungs."])
    together = encoder(ids, mask)
    torch.testing.assert_close(alone[0], together[0, : alone.shape[1]], atol=1e-5, rtol=1e-5)
    ids[0, alone.shape[1] :] = 7
    torch.testing.assert_close(encoder(ids, mask)[0, : alone.shape[1]], together[0, : alone.shape[1]])


def test_a_row_without_tokens_gives_finite_numbers(encoder: WordPieceEncoder) -> None:
    assert torch.isfinite(encoder(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[True] * 3, [False] * 3]))).all()


def test_left_and_right_reports_have_different_features(encoder: WordPieceEncoder) -> None:
    left, right = (encoder(*encoder.tokenize([text]))[0] for text in ("Left lung.", "Right lung."))
    assert torch.cosine_similarity(left[1], right[1], dim=0) < 0.5
    # The other tokens see the side through attention, and order matters.
    assert (left[2:] - right[2:]).norm() > 0.05
    upper, lower = (encoder(*encoder.tokenize([t]))[0].mean(0) for t in ("upper left, lower right", "lower left, upper right"))
    assert (upper - lower).norm() > 1e-3


def test_every_parameter_learns_and_none_is_hidden(encoder: WordPieceEncoder) -> None:
    trained = WordPieceEncoder(dim=32, layers=2, heads=4)
    trained(*trained.tokenize(["Left lung.", "Right lower lobe consolidation."])).pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert set(trained.state_dict()) == {name for name, _ in trained.named_parameters()}
    assert not trained.frozen and sum(p.numel() for p in encoder.parameters()) < 700_000


def test_a_side_can_be_learned_in_a_few_steps() -> None:
    torch.manual_seed(1)
    model = WordPieceEncoder(dim=32, layers=1, heads=2)
    head = torch.nn.Linear(32, 1)
    texts = [f"{extent} {side} {place} {what}." for extent in ("patchy", "dense") for side in ("left", "right")
             for place in ("upper lobe", "base") for what in ("opacity", "consolidation")]  # fmt: skip
    target = torch.tensor([float("left" in text) for text in texts])
    parameters = [*model.parameters(), *head.parameters()]
    ids, mask = model.tokenize(texts)
    for _ in range(25):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(model(ids, mask)[:, 0])[:, 0], target)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 3e-3 * gradient.sign()
    assert loss < 0.1


def test_fingerprint_follows_the_weights() -> None:
    torch.manual_seed(0)
    one = WordPieceEncoder(dim=16, layers=1, heads=2)
    other = copy.deepcopy(one)
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.embedding.weight[5, 3] += 1e-3
    assert one.fingerprint() != other.fingerprint()


def test_an_encoder_can_be_pickled_after_use(encoder: WordPieceEncoder) -> None:
    encoder.tokenize(["Left lung."])
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again.tokenize(["Left lung."])[0], encoder.tokenize(["Left lung."])[0])


def test_the_configuration_builds_it_without_importing_transformers() -> None:
    built = build_text_encoder(parse_config({"network.max_tokens": 40}).network)
    assert isinstance(built, WordPieceEncoder) and built.limit == 40 and built.dim == 128
    code = (
        "import sys; from tmca_core.config import Config; from tmca_core.text.encoders import build_text_encoder; "
        "build_text_encoder(Config().network).tokenize(['x']); print('transformers' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[0] == "False"
