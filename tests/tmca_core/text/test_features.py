from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tmca_core.errors import WeightsError
from tmca_core.text.encoders import TextEncoder, pad
from tmca_core.text.features import TextPipeline, read_entry, write_entry, zone_tensor
from tmca_core.text.wordpiece import WordPieceEncoder


class CountingEncoder(TextEncoder):
    """A frozen stand-in with the real interface: features are functions of the characters; counts its forward passes."""

    dim, frozen, limit = 4, True, 50

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.calls = scale, 0

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return pad([[1, *(ord(c) % 97 + 2 for c in text)][: self.limit] for text in texts], 0)

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
        write_entry(entry, torch.zeros(3, 5, dtype=torch.float16))
    else:
        entry.write_bytes(broken[damage])
    encoder = CountingEncoder()
    again = TextPipeline(encoder, tmp_path).encode(["left lung"])
    assert encoder.calls == 1 and again.features is not None and fresh.features is not None
    assert torch.equal(again.features, fresh.features)
    assert entry.read_bytes() == data and [path.name for path in tmp_path.rglob("*.part")] == []


def test_entries_round_trip(tmp_path: Path) -> None:
    features = torch.randn(7, 12).half()
    write_entry(tmp_path / "deep" / "x.tokens", features)
    found = read_entry(tmp_path / "deep" / "x.tokens", 12)
    assert found is not None and torch.equal(found, features)
    assert read_entry(tmp_path / "none.tokens", 12) is None


def test_features_that_overflow_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not finite"):
        TextPipeline(CountingEncoder(1e6), tmp_path).encode(["left"])
    assert not list(tmp_path.rglob("*.tokens"))


def test_the_cache_folder_need_not_be_made_for_a_trainable_encoder(tmp_path: Path) -> None:
    TextPipeline(WordPieceEncoder(dim=16, layers=1, heads=2), tmp_path / "tokens").encode(["left"])
    assert not (tmp_path / "tokens").exists()


def test_contradictions_set_no_zones() -> None:
    assert zone_tensor("unilateral infection, left lung and right lung").sum() == 0
    assert zone_tensor("fever").sum() == 0
    assert zone_tensor("RLL and lingula opacity").tolist() == [0, 1, 0, 0, 0, 1]


def test_batches_move_and_need_texts() -> None:
    pipeline = TextPipeline(CountingEncoder(), None)
    moved = pipeline.encode(["left"]).to("meta")
    assert moved.features is not None and moved.features.device.type == moved.zones.device.type == "meta"
    with pytest.raises(ValueError, match="no texts"):
        pipeline.encode([])
