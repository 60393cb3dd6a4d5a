"""All tensors of a message in one piece: what is unpacked is what was packed, and nothing else is unpacked."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.exchange import packed
from tmca_core.errors import UpdateRejected
from tmca_core.wire import PACKED, WHOLE, pack, payload_bytes, tensors_of, unpack

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and left[name].shape == right[name].shape and torch.equal(left[name], right[name])
        for name in left
    )


@given(st.dictionaries(st.text(max_size=12), st.tuples(st.sampled_from(TYPES), SHAPES), max_size=6))
def test_what_is_packed_is_unpacked(kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    tensors = {name: torch.randint(0, 100, shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    assert same(unpack(pack(tensors)), tensors)


def test_strided_views_and_the_names_order_survive() -> None:
    tensors = {"z": torch.arange(12.0).reshape(3, 4).T, "a": torch.tensor(7), "m": torch.zeros(0, 3)}
    assert same(unpack(pack(tensors)), tensors)


def test_a_packed_record_crosses_flowers_wire_as_one_array() -> None:
    tensors = {"w": torch.randn(3, 5), "b": torch.randn(5).bfloat16()}
    content = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": packed(tensors, deployed=True)})))
    arrived = content["arrays"]
    assert isinstance(arrived, ArrayRecord) and list(arrived) == [WHOLE]
    assert same(tensors_of(arrived), tensors)
    # the bytes that are counted are the tensors' and their names', packed or not
    assert payload_bytes(arrived) == payload_bytes(packed(tensors)) == 4 * 15 + 1 + 2 * 5 + 1


@given(st.binary(max_size=80))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(UpdateRejected):
        unpack(noise)


@given(st.data())
def test_a_cut_or_changed_length_is_refused(data: st.DataObject) -> None:
    whole = pack({"w": torch.randn(4), "b": torch.randn(3)})
    cut = data.draw(st.integers(0, len(whole) - 1))
    for broken in (whole[:cut], whole + bytes(8)):
        with pytest.raises(UpdateRejected):
            unpack(broken)


def remade(change: Callable[[list[list[object]]], None]) -> bytes:
    header: list[list[object]] = [["w", "float32", [2]], ["b", "float32", [2]]]
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b" " * (-len(text) % 8) + bytes(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].__setitem__(0, "w"), "a name comes twice"),
        (lambda rows: rows[0].__setitem__(1, "object"), "known: float32"),
        (lambda rows: rows[0].__setitem__(2, [-2]), "end before 'w'"),
        (lambda rows: rows[0].__setitem__(2, [2**62, 2**62]), "end before 'w'"),
        (lambda rows: rows[0].__setitem__(2, [0, 2**62, 2**62]), "which no tensor has"),
        (lambda rows: rows.pop(), "8 bytes follow"),
        (lambda rows: rows[0].append("more"), "cannot be read"),
        (lambda rows: rows[0].__setitem__(2, "ab"), "cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(change: Callable[[list[list[object]]], None], message: str) -> None:
    with pytest.raises(UpdateRejected, match=message):
        unpack(remade(change))


def test_a_deep_header_is_refused() -> None:
    text = b"[" * 100_000
    with pytest.raises(UpdateRejected, match="cannot be read"):
        unpack(len(text).to_bytes(8, "little") + text)


def test_another_array_of_the_name_is_a_tensor_like_any() -> None:
    plain = ArrayRecord({WHOLE: Array("float32", (1,), "tmca.raw", torch.ones(1).numpy().tobytes())})
    assert same(tensors_of(plain), {WHOLE: torch.ones(1)})
    two = ArrayRecord({WHOLE: Array("uint8", (1,), PACKED, b"x"), "more": Array("float32", (1,), "tmca.raw", bytes(4))})
    with pytest.raises(UpdateRejected, match="is serialised as"):
        tensors_of(two)
