from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tmca_core.errors import WeightsError
from tmca_core.text.encoders import TextEncoder, pad
from tmca_core.text.features import TextPipeline, read_entry, write_entry, zones_and_certainty
from tmca_core.text.wordpiece import WordPieceEncoder


class CountingEncoder(TextEncoder):
    """A frozen stand-in with the real interface: features are functions of the characters; counts its forward passes."""

    dim, frozen, limit = 4, True, 50

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.calls = scale, 0

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return pad([[1, *(ord(c) % 97 + 2 for c in text)][: self.limit] for text in texts], 0)

    def spans(self, text: str) -> list[tuple[int, int] | None]:
        return [None, *((at, at + 1) for at in range(len(text)))][: self.limit]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        return torch.stack([ids * self.scale / (k + 3) for k in range(self.dim)], dim=-1)

    def fingerprint(self) -> str:
        return hashlib.sha256(str(self.scale).encode()).hexdigest()


def test_a_trainable_encoder_gets_ids() -> None:
    encoder = WordPieceEncoder(dim=16, layers=1, heads=2)
    texts = ["Left lung.", "", "Consolidation in the right lower lobe."]
    batch = TextPipeline(encoder, None).encode(texts)
    ids, mask = encoder.tokenize(texts)
    assert batch.features is None and batch.ids is not None
    assert torch.equal(batch.ids, ids) and torch.equal(batch.mask, mask) and len(batch) == 3
    assert batch.mask.any(1).all()
    assert batch.zones.tolist() == [[1, 1, 1, 0, 0, 0], [0] * 6, [0, 0, 0, 0, 0, 1]]
    assert encoder(batch.ids, batch.mask).shape == (*mask.shape, 16)


def test_a_frozen_encoder_runs_once_a_distinct_report(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    pipeline = TextPipeline(encoder, tmp_path)
    first = pipeline.encode(["left", "right lung", "left"])
    again = pipeline.encode(["left", "right lung", "left"])
    assert encoder.calls == 2
    assert first.ids is None and first.features is not None and again.features is not None
    assert first.features.dtype == torch.float32 and first.features.shape == (3, 11, 4)
    assert torch.equal(first.features, again.features)
    expected = encoder(*encoder.tokenize(["left", "right lung", "left"]))
    torch.testing.assert_close(first.features, expected, rtol=5e-4, atol=0)
    assert (first.features[0, 5:] == 0).all() and first.mask.sum(1).tolist() == [5, 11, 5]


def test_features_come_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    texts = ["left lung", "", "ünï\ud800 code"]
    fresh = TextPipeline(CountingEncoder(), tmp_path).encode(texts)
    other = CountingEncoder()
    cached = TextPipeline(other, tmp_path).encode(texts)
    assert other.calls == 0 and fresh.features is not None and cached.features is not None
    assert torch.equal(fresh.features, cached.features)
    memory_only = TextPipeline(CountingEncoder(), None).encode(texts)
    assert memory_only.features is not None and torch.equal(fresh.features, memory_only.features)


def test_another_encoder_has_its_own_entries(tmp_path: Path) -> None:
    TextPipeline(CountingEncoder(1.0), tmp_path).encode(["left"])
    other = CountingEncoder(2.0)
    TextPipeline(other, tmp_path).encode(["left"])
    assert other.calls == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign", "width"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    fresh = TextPipeline(CountingEncoder(), tmp_path).encode(["left lung"])
    (entry,) = tmp_path.rglob("*.tokens")
    data = entry.read_bytes()
    flipped = bytearray(data)
    flipped[-3] ^= 1
    broken = {"truncate": data[:-5], "flip": bytes(flipped), "empty": b"", "foreign": b"\x93NUMPY" * 20}
    if damage == "width":
        write_entry(entry, torch.zeros(3, 5, dtype=torch.float16), [None] * 3)
    else:
        entry.write_bytes(broken[damage])
    encoder = CountingEncoder()
    again = TextPipeline(encoder, tmp_path).encode(["left lung"])
    assert encoder.calls == 1 and again.features is not None and fresh.features is not None
    assert torch.equal(again.features, fresh.features)
    assert entry.read_bytes() == data and [path.name for path in tmp_path.rglob("*.part")] == []


def test_entries_round_trip(tmp_path: Path) -> None:
    features = torch.randn(7, 12).half()
    spans = [None, (0, 4), (5, 9), (9, 9), (12, 400), (400, 401), None]
    write_entry(tmp_path / "deep" / "x.tokens", features, spans)
    found = read_entry(tmp_path / "deep" / "x.tokens", 12)
    assert found is not None and torch.equal(found[0], features) and found[1] == spans
    assert read_entry(tmp_path / "none.tokens", 12) is None


def test_features_that_overflow_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not finite"):
        TextPipeline(CountingEncoder(1e6), tmp_path).encode(["left"])
    assert not list(tmp_path.rglob("*.tokens"))


def test_the_cache_folder_need_not_be_made_for_a_trainable_encoder(tmp_path: Path) -> None:
    TextPipeline(WordPieceEncoder(dim=16, layers=1, heads=2), tmp_path / "tokens").encode(["left"])
    assert not (tmp_path / "tokens").exists()


def test_contradictions_set_no_zones() -> None:
    for text in ("unilateral infection, left lung and right lung", "fever", ""):
        zones, certainty = zones_and_certainty(text)
        assert zones.tolist() == [0] * 6 and certainty == 0
    zones, certainty = zones_and_certainty("RLL and lingula opacity")
    assert zones.tolist() == [0, 1, 0, 0, 0, 1] and certainty == 1
    assert zones_and_certainty("Possible left lung opacity.")[1] == 0.5
    zones, certainty = zones_and_certainty("Left lung.")
    assert zones.tolist() == [1, 1, 1, 0, 0, 0] and certainty == 1


def test_batches_move_and_need_texts() -> None:
    pipeline = TextPipeline(CountingEncoder(), None)
    moved = pipeline.encode(["left"]).to("meta")
    assert moved.features is not None
    tensors = (moved.features, moved.mask, moved.zones, moved.kinds, moved.certainty)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    with pytest.raises(ValueError, match="no texts"):
        pipeline.encode([])


def test_kinds_and_certainty_by_hand() -> None:
    texts = ["Patchy opacity in the left base, likely viral.", "", " \n", "...", "Possible right lung opacity.", "Fever."]
    batch = TextPipeline(WordPieceEncoder(dim=16, layers=1, heads=2), None).encode(texts)
    # [CLS] patchy opacity in the left base , likely viral . [SEP]
    assert batch.kinds[0, :12].tolist() == [0, 2, 2, 1, 1, 5, 5, 1, 3, 3, 1, 0]
    assert batch.kinds.dtype == torch.int64 and batch.kinds.shape == batch.mask.shape
    assert not batch.kinds[1:4].any() and not batch.kinds[~batch.mask].any()
    # Its cause is doubted, its place is not.
    assert batch.certainty.tolist() == [1, 0, 0, 0, 0.5, 0] and batch.certainty.dtype == torch.float32


def test_kinds_come_back_from_the_cache_with_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["left lung", "", "viral pneumonia of both lungs"]
    fresh = TextPipeline(CountingEncoder(), tmp_path).encode(texts)
    monkeypatch.setattr(CountingEncoder, "spans", lambda self, text: pytest.fail("tokenised although cached"))
    cached = TextPipeline(CountingEncoder(), tmp_path).encode(texts)
    assert torch.equal(fresh.kinds, cached.kinds) and fresh.kinds[0, 1:10].tolist() == [5] * 9


def test_phrases_that_are_not_read_are_gone_before_the_encoder() -> None:
    text = "Patchy opacity in the left base, likely infective."
    encoder = WordPieceEncoder(dim=16, layers=1, heads=2)
    everything = TextPipeline(encoder, None, phrase_kinds={"locational", "descriptive", "diagnostic"}).encode([text])
    assert everything.ids is not None and torch.equal(everything.ids, encoder.tokenize([text])[0])
    blind = TextPipeline(encoder, None, phrase_kinds={"descriptive", "diagnostic"}).encode([text])
    assert blind.ids is not None and torch.equal(blind.ids, encoder.tokenize(["Patchy opacity, likely infective."])[0])
    assert not blind.zones.any() and blind.certainty.tolist() == [0] and set(blind.kinds[0].tolist()) == {0, 1, 2, 3}
    # The doubt stays with the place that it governs.
    doubted = "Possible pneumonia in the left base."
    assert TextPipeline(encoder, None).encode([doubted]).certainty.tolist() == [0.5]
    sure = TextPipeline(encoder, None, phrase_kinds={"locational", "descriptive"}).encode([doubted])
    assert sure.certainty.tolist() == [0.5] and sure.zones.tolist() == [[0, 0, 1, 0, 0, 0]]
    nothing = TextPipeline(encoder, None, phrase_kinds={"diagnostic"}).encode(["Left lung."])
    assert nothing.mask.sum() == 2 and not nothing.kinds.any()


def test_cut_reports_have_kinds_of_the_same_length() -> None:
    encoder = WordPieceEncoder(dim=16, layers=1, heads=2, limit=10)
    batch = TextPipeline(encoder, None).encode(["left lung consolidation " * 30, "Left lung."])
    assert batch.kinds.shape == batch.mask.shape == (2, 10)
    assert batch.kinds[0].tolist() == [0, 5, 5, 2, 5, 5, 2, 5, 5, 0]


def test_a_report_of_326_tokens_is_read_to_its_end() -> None:
    encoder = WordPieceEncoder(dim=16, layers=1, heads=2)
    report = "Patchy opacity in the left lower zone. " * 40 + "Mass at right apex."
    batch = TextPipeline(encoder, None).encode([report])
    # [CLS], 40 × 8 words and full stops, mass at right apex ., [SEP]: 327; one less is what clinical notes run to.
    assert batch.mask.sum() == 327 <= encoder.limit
    assert batch.kinds[0, -6:].tolist() == [2, 1, 6, 6, 1, 0] and batch.kinds[0, 1:9].tolist() == [2, 2, 1, 1, 5, 5, 5, 1]
    assert batch.zones.tolist() == [[0, 0, 1, 1, 0, 0]]


def test_real_notes_are_read_uncut_with_a_kind_for_every_token() -> None:
    source = Path(__file__).parents[3] / "../shared/data/texts/ieee8023_clinical_notes.csv"
    if not source.exists():
        pytest.skip("the shared texts are not beside this checkout")
    with source.open(encoding="utf-8", newline="") as file:
        notes = sorted({row["clinical_notes"] for row in csv.DictReader(file)}, key=len)[-40:]
    encoder = WordPieceEncoder(dim=16, layers=1, heads=2)
    batch = TextPipeline(encoder, None).encode(notes)
    inner = batch.mask.sum(1) - 2
    assert torch.equal((batch.kinds > 0).sum(1), inner) and inner.max() > 250
    for text, row in zip(notes, batch.kinds, strict=True):
        spans = encoder.spans(text)
        assert len(spans) == int((row > 0).sum()) + 2 and spans[0] is spans[-1] is None


def test_for_a_network_that_reads_no_report_every_one_is_missing() -> None:
    encoder = CountingEncoder()
    batch = TextPipeline(encoder, None, read=False).encode(["Left lower lung.", "Right lung."])
    silent = TextPipeline(encoder, None).encode(["", ""])
    assert len(batch) == 2
    assert not batch.zones.any()
    assert torch.equal(batch.kinds, silent.kinds)
    assert encoder.calls == 2  # of the empty report, once a pipeline
