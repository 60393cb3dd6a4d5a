"""The schema both ends share: tensors on the wire, the hello, and the check of an update."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import array_record_from_proto, array_record_to_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from server.exchange import TensorArray
from tmca_core.digests import source_digest
from tmca_core.errors import FederationError, UpdateRejected
from tmca_core.messages import Hello, Update, check_update, part_of, spec_digest, spec_of, unpack_update
from tmca_core.wire import RAW, fill, payload_bytes, to_tensor

METRICS = {"loss": 0.5, "steps": 2.0, "cases": 8.0, "seconds": 0.1}
SPEC = {"a.weight": ((2, 3), "float32"), "b": ((), "float32")}


def good() -> Update:
    return Update({"a.weight": torch.ones(2, 3), "b": torch.tensor(0.5)}, 10, dict(METRICS), 3)


def test_a_fitting_update_passes() -> None:
    check_update(good(), SPEC, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 2}, "round 2, expected round 3"),
        ({"weight": 0}, "weight is 0"),
        ({"weight": -5}, "weight is -5"),
        ({"tensors": {"b": torch.tensor(0.5)}}, "'a.weight' is missing"),
        ({"tensors": {**good().tensors, "c": torch.ones(1)}}, "'c' is not one of the shared"),
        ({"tensors": {**good().tensors, "b": torch.ones(1)}}, r"'b' has shape \(1,\), expected \(\)"),
        ({"tensors": {**good().tensors, "b": torch.tensor(0.5, dtype=torch.float64)}}, "'b' is float64, expected float32"),
        ({"tensors": {**good().tensors, "b": torch.tensor(float("nan"))}}, "'b' holds NaN"),
        ({"tensors": {**good().tensors, "a.weight": torch.full((2, 3), -float("inf"))}}, "'a.weight' holds NaN"),
        ({"metrics": {**METRICS, "loss": float("nan")}}, "metric 'loss'"),
    ],
)
def test_what_is_refused_names_its_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        check_update(replace(good(), **change), SPEC, 3)


def test_opposite_infinities_and_the_largest_finite_values() -> None:
    spec = {"w": ((2,), "float32")}
    with pytest.raises(UpdateRejected):
        check_update(Update({"w": torch.tensor([float("inf"), -float("inf")])}, 1, METRICS, 1), spec, 1)
    largest = torch.finfo(torch.float32).max
    check_update(Update({"w": torch.tensor([largest, largest])}, 1, METRICS, 1), spec, 1)


@pytest.mark.parametrize(
    ("settings", "metrics", "reason"),
    [
        ({"weight": 3}, METRICS, "'round' is None"),
        ({"round": 1, "weight": "3"}, METRICS, "'weight' is '3'"),
        ({"round": 1, "weight": True}, METRICS, "'weight' is True"),
        ({"round": 1, "weight": 3}, {"loss": 0.1}, "metric 'steps'"),
        ({"round": 1, "weight": 3}, {**METRICS, "loss": [1.0]}, "metric 'loss'"),
    ],
)
def test_a_reply_that_cannot_be_read(settings: dict[str, object], metrics: dict[str, object], reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        unpack_update({}, settings, metrics)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 2**31),
)
def test_every_way_over_a_boundary_keeps_the_bits(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype)
    held = TensorArray(tensor)
    assert to_tensor("w", held) is tensor
    proto = array_record_from_proto(array_record_to_proto(_record(held)))["w"]
    for array in (pickle.loads(pickle.dumps(held)), copy.deepcopy(held), proto):
        assert type(array) is Array
        assert array.stype == RAW
        back = to_tensor("w", array)
        assert back.dtype == dtype
        assert torch.equal(back, tensor)


def test_a_transposed_tensor_travels_in_c_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(to_tensor("w", pickle.loads(pickle.dumps(TensorArray(tensor)))), tensor)


def test_flower_object_store_gives_the_same_tensor() -> None:
    """The deployment's way: an object a chunk, found again by content."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    record = RecordDict({"arrays": _record(TensorArray(torch.arange(5.0)))})
    contents = {identity: thing.deflate() for identity, thing in get_all_nested_objects(record).items()}
    back = inflate_object_from_contents(record.object_id, contents)
    assert torch.equal(to_tensor("w", back["arrays"]["w"]), torch.arange(5.0))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Array("float32", (2,), "numpy.ndarray", bytes(8)), "serialised as 'numpy.ndarray'"),
        (Array("complex64", (1,), RAW, bytes(8)), "dtype 'complex64'"),
        (Array("float32", (3,), RAW, bytes(8)), "8 bytes"),
        (Array("float32", (-1, -2), RAW, bytes(8)), "8 bytes"),
        (Array("float32", (2,), RAW, b""), "0 bytes"),
    ],
)
def test_damaged_arrays(array: Array, reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        to_tensor("w", array)


def test_payload_bytes_by_hand() -> None:
    arrays = {"ab": TensorArray(torch.zeros(3)), "c": TensorArray(torch.zeros(()))}
    # 2 + 12, 1 + 4; "round" 5 + 8; "run" 3 + 4
    assert payload_bytes(arrays, {"round": 1}, {"run": "abcd"}) == 14 + 5 + 13 + 7


def test_hello_there_and_back() -> None:
    hello = Hello("a", 9, 7, 20, 3, 4, 1, "c", "n", "f", "s")
    assert Hello.from_values(hello.as_values()) == hello
    assert [hello.weight(kind) for kind in ("cases", "patients", "uniform")] == [20, 7, 1]
    assert replace(hello, train_cases=0).weight("uniform") == 0
    for broken in ({"train_cases": -1}, {"train_cases": "20"}, {"site": 3}, {"val_cases": True}):
        with pytest.raises(FederationError, match=next(iter(broken))):
            Hello.from_values({**hello.as_values(), **broken})
    with pytest.raises(FederationError, match="'code'"):
        Hello.from_values({k: v for k, v in hello.as_values().items() if k != "code"})


def test_a_hello_without_counts_says_that_it_withholds_them() -> None:
    hello = Hello("a", None, None, None, 10, None, 0, "c", "n", "f", "s")
    values = hello.as_values()
    assert values["withheld"] is True and "train_cases" not in values and values["val_cases"] == 10
    assert Hello.from_values(values) == hello
    assert hello.weight("uniform") == 1 and hello.weight("cases") == hello.weight("patients") == 0
    assert Hello("a", 9, 7, 20, 3, 4, 1, "c", "n", "f", "s").as_values()["withheld"] is False
    with pytest.raises(FederationError, match="'patients'"):  # a count that is just missing is of another version
        Hello.from_values({**values, "withheld": False})


def test_spec_digest_sees_names_shapes_and_dtypes() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(3)}
    others = [
        {"b": torch.zeros(3), "a": torch.zeros(2)},
        {"a": torch.zeros(1, 2), "b": torch.zeros(3)},
        {"a": torch.zeros(2).double(), "b": torch.zeros(3)},
    ]
    assert len({spec_digest(spec_of(tensors)) for tensors in [base, *others]}) == 4


def test_source_digest_sees_a_changed_line(tmp_path: Path) -> None:
    for package in ("client", "tmca_core"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("x = 1\n")
    before = source_digest(tmp_path)
    (tmp_path / "other.py").write_text("y = 1\n")
    assert source_digest(tmp_path) == before
    (tmp_path / "client" / "a.py").write_text("x = 2\n")
    assert source_digest(tmp_path) != before


def _record(array: TensorArray) -> ArrayRecord:
    record = ArrayRecord()
    record["w"] = array
    return record


def test_a_record_filled_at_once_is_flowers_own() -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.zeros(2, 2)}
    quick = fill(ArrayRecord(), {name: TensorArray(tensor) for name, tensor in tensors.items()})
    slow = ArrayRecord()
    for name, tensor in tensors.items():
        slow[name] = TensorArray(tensor)
    assert recorddict_to_proto(RecordDict({"x": quick})) == recorddict_to_proto(RecordDict({"x": slow}))
    assert quick.object_id == slow.object_id


def test_reading_a_part_keeps_nothing_alive() -> None:
    tensor = torch.zeros(3)
    gone = weakref.ref(tensor)
    content = RecordDict({"arrays": fill(ArrayRecord(), {"a": TensorArray(tensor)}), "settings": ConfigRecord({"round": 1})})
    assert part_of(content, "settings", ConfigRecord) == {"round": 1}
    assert part_of(content, "arrays", ConfigRecord) is None
    assert part_of(content, "nothing", ArrayRecord) is None
    gc.disable()
    try:
        del tensor, content
        assert gone() is None
    finally:
        gc.enable()
