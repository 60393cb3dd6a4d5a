"""Every compression: what it keeps, what it leaves for later, what it costs, and what it refuses. A new one inherits these tests."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.exchange import TensorArray
from tmca_core.compression import COMPRESSIONS, Compression
from tmca_core.config import Config
from tmca_core.errors import ConfigError, UpdateRejected
from tmca_core.messages import Update, check_update, spec_of
from tmca_core.networks import build_network, shared_state
from tmca_core.wire import payload_bytes

NAMES = COMPRESSIONS.names()
LOSSY = [name for name in NAMES if name != "none"]
METRICS = {"loss": 1.0, "steps": 1.0, "cases": 1.0, "seconds": 0.1}


def make(name: str, share: float = 0.1) -> Compression:
    return COMPRESSIONS[name](Config().with_values({"federation.compression": name, "federation.compression_share": share}))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sent(compression: Compression, tensors: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    payload, _ = compression.encode(tensors, {}, rng(seed))
    return compression.decode(payload, spec_of(tensors))


def sizes(tensors: dict[str, Tensor]) -> int:
    return payload_bytes({name: TensorArray(tensor) for name, tensor in tensors.items()})


def test_what_is_registered() -> None:
    assert NAMES == ["bf16", "int4", "int8", "none", "topk"]
    with pytest.raises(ConfigError, match="known: bf16, int4"):
        COMPRESSIONS["zip"]


def test_none_copies_nothing() -> None:
    tensors = {"w": torch.ones(3), "n": torch.tensor([3])}
    payload, residual = make("none").encode(tensors, {}, rng())
    assert payload["w"] is tensors["w"]
    assert residual == {}
    assert make("none").decode(payload, spec_of(tensors))["n"] is tensors["n"]


# --- what every compression keeps -----------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_odd_tensors_survive(name: str) -> None:
    tensors = {
        "zero": torch.zeros(300),
        "empty": torch.zeros(0, 4),
        "one": torch.tensor(0.25),
        "single": torch.tensor([-3.0]),
        "largest": torch.full((2, 3), torch.finfo(torch.float32).max),
        "denormal": torch.full((70,), 1e-45),
        "tiny": torch.linspace(-3e-44, 3e-44, 65),
        "count": torch.tensor([2**40 + 1, -7]),
    }
    compression = make(name, share=1.0)
    payload, residual = compression.encode(tensors, {}, rng())
    back = compression.decode(payload, spec_of(tensors))
    check_update(Update(back, 1, METRICS, 1), spec_of(tensors), 1)
    assert torch.equal(back["zero"], tensors["zero"])
    assert torch.equal(back["count"], tensors["count"])
    for key in ("one", "single"):
        assert torch.equal(back[key], tensors[key])
    torch.testing.assert_close(back["largest"], tensors["largest"], rtol=5e-3, atol=0)
    for key in ("denormal", "tiny"):
        if key in residual:
            assert torch.equal(back[key] + residual[key], tensors[key])


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("value", [1e-45, -7.5e-5, 0.1, 12345.678])
def test_a_constant_is_kept(name: str, value: float) -> None:
    tensors = {"w": torch.full((513,), value)}
    torch.testing.assert_close(sent(make(name), tensors)["w"], tensors["w"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.tensor([0.0, bad])}
    with pytest.raises(UpdateRejected, match="tensor 'b' holds NaN or infinite"):
        make(name).encode(tensors, {}, rng())


@pytest.mark.parametrize("name", LOSSY)
def test_the_order_of_names_does_not_matter(name: str) -> None:
    tensors = {"b": torch.randn(300, generator=rng(1)), "a": torch.randn(7, 5, generator=rng(2))}
    payload, _ = make(name).encode(tensors, {}, rng())
    one = make(name).decode(payload, spec_of(tensors))
    other = make(name).decode(payload, spec_of(dict(reversed(tensors.items()))))
    assert all(torch.equal(one[key], other[key]) for key in tensors)


# --- unbiased ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "levels", "length"), [("int8", 127, 256), ("int4", 7, 64)])
def test_stochastic_rounding_is_unbiased_and_within_a_step(name: str, levels: int, length: int) -> None:
    tensors = {"w": torch.randn(length + 10, generator=rng(3)) * 1e-3}
    step = torch.cat([part.abs().max().expand(len(part)) / levels for part in tensors["w"].split(length)])
    draws, total = 1200, torch.zeros(length + 10, dtype=torch.float64)
    for seed in range(draws):
        back = sent(make(name), tensors, seed)["w"]
        assert bool(((back - tensors["w"]).abs() <= step * (1 + 1e-6)).all())
        total += back
    # A draw's standard deviation is at most half a step; 6 of the mean's.
    off = (total / draws - tensors["w"]).abs() / (step / 2 / math.sqrt(draws))
    assert float(off.max()) < 6
    # A rounding to the nearest would leave a bias of a step's share in most values.
    assert float(off.mean()) < 1.2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["int8", "int4"]), st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=130), st.integers(0, 1000)
)
def test_codes_are_the_two_neighbours_of_the_value(name: str, values: list[float], seed: int) -> None:
    """The slow oracle: rational arithmetic of Python, block by block."""
    from fractions import Fraction

    levels, length = {"int8": (127, 256), "int4": (7, 64)}[name]
    tensor = torch.tensor(values)
    back = sent(make(name), {"w": tensor}, seed)["w"]
    for start in range(0, len(values), length):
        block = [Fraction(v) for v in tensor[start : start + length].tolist()]
        scale = max(abs(v) for v in block) / levels
        for value, got in zip(block, back[start : start + length].tolist(), strict=True):
            slack = abs(scale) * Fraction(levels, 2**20) + Fraction(levels, 2**149)  # float32's rounding of scale and product
            assert abs(Fraction(got) - value) <= scale + slack


# --- error feedback ---------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LOSSY), st.integers(1, 6), st.integers(0, 10_000), st.floats(1e-6, 1e3))
def test_what_was_sent_and_what_is_left_is_what_was_meant(name: str, rounds: int, seed: int, size: float) -> None:
    compression, generator = make(name, share=0.05), rng(seed)
    meant = {"a": torch.zeros(90, 3, dtype=torch.float64), "extra/b": torch.zeros((), dtype=torch.float64)}
    arrived = {key: torch.zeros_like(value) for key, value in meant.items()}
    residual: dict[str, Tensor] = {}
    for _ in range(rounds):
        update = {key: torch.randn(value.shape, generator=generator) * size for key, value in meant.items()}
        payload, residual = compression.encode(update, residual, generator)
        for key, value in compression.decode(payload, spec_of(update)).items():
            arrived[key] += value
            meant[key] += update[key]
    for key, value in meant.items():
        torch.testing.assert_close(arrived[key] + residual[key], value, rtol=0, atol=rounds * size * 2**-20)


def test_topk_sends_the_largest_and_later_the_rest() -> None:
    compression = make("topk", share=0.25)
    update = {"w": torch.tensor([0.5, -3.0, 1.0, 0.0]), "b": torch.tensor([0.1])}
    payload, residual = compression.encode(update, {}, rng())
    back = compression.decode(payload, spec_of(update))
    assert back["w"].tolist() == [0.0, -3.0, 0.0, 0.0]
    assert torch.equal(back["b"], update["b"])
    assert residual["w"].tolist() == [0.5, 0.0, 1.0, 0.0]
    nothing = {key: torch.zeros_like(value) for key, value in update.items()}
    second = compression.decode(compression.encode(nothing, residual, rng())[0], spec_of(update))
    assert second["w"].tolist() == [0.0, 0.0, 1.0, 0.0]


# --- bytes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "limit"), [("bf16", 0.5), ("int8", 0.27), ("int4", 0.15), ("topk", 0.021)])
def test_bytes_of_a_real_network(name: str, limit: float) -> None:
    config = Config()
    tensors = {key: torch.randn(value.shape, generator=rng(4)) for key, value in shared_state(build_network(config)).items()}
    payload, _ = COMPRESSIONS[name](config).encode(tensors, {}, rng())
    assert sizes(payload) / sizes(tensors) <= limit


def test_bytes_by_hand() -> None:
    tensors = {"w": torch.ones(300), "b": torch.ones(3)}
    # 303 values, blocks of 256: 2 + 1; of 64: 5 + 1. topk sends 30 + 1.
    assert sizes(make("int8").encode(tensors, {}, rng())[0]) == 303 + len("int8/codes") + 3 * 4 + len("int8/scales")
    assert sizes(make("int4").encode(tensors, {}, rng())[0]) == 152 + len("int4/codes") + 6 * 4 + len("int4/scales")
    assert sizes(make("bf16").encode(tensors, {}, rng())[0]) == 606 + len("bf16/values")
    assert sizes(make("topk").encode(tensors, {}, rng())[0]) == 31 * 8 + len("topk/places") + len("topk/values")


# --- hostile payloads -------------------------------------------------------------------------------------
HONEST = {"a": torch.linspace(-1, 1, 300), "b": torch.tensor([0.5, 2.0, 3.0])}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("bf16", {"bf16/values": torch.zeros(302, dtype=torch.bfloat16)}, r"'bf16/values' has shape \(302,\), expected \(303,\)"),
        ("bf16", {"bf16/values": torch.zeros(303)}, "'bf16/values' is float32, expected bfloat16"),
        ("bf16", {"bf16/values": None}, "'bf16/values' is missing"),
        ("int8", {"int8/codes": torch.zeros(304, dtype=torch.int8)}, "'int8/codes' has shape"),
        ("int8", {"int8/codes": torch.zeros(303, 1, dtype=torch.int8)}, "'int8/codes' has shape"),
        ("int8", {"int8/codes": torch.zeros(303, dtype=torch.uint8)}, "'int8/codes' is uint8, expected int8"),
        ("int8", {"int8/scales": torch.zeros(2)}, r"'int8/scales' has shape \(2,\), expected \(3,\)"),
        ("int8", {"int8/scales": torch.tensor([1.0, math.nan, 1.0])}, "'a' has a block with the scale nan"),
        ("int8", {"int8/scales": torch.tensor([1.0, 1.0, math.inf])}, "'b' has a block with the scale inf"),
        ("int8", {"int8/scales": torch.tensor([1.0, 1.0, -1.0])}, "'b' has a block with the scale -1"),
        ("int8", {"a": torch.zeros(300)}, "'a' is sent beside the compressed"),
        ("int4", {"int4/codes": torch.zeros(151, dtype=torch.uint8)}, "'int4/codes' has shape"),
        ("int4", {"int4/scales": torch.full((6,), math.nan)}, "'a' has a block with the scale nan"),
        ("topk", {"topk/places": torch.arange(31, dtype=torch.int64)}, "'topk/places' is int64, expected int32"),
        ("topk", {"topk/places": torch.arange(30, dtype=torch.int32)}, "'topk/places' has shape"),
        ("topk", {"topk/places": torch.tensor([*range(29), 300, 0], dtype=torch.int32)}, r"'a' has values at places outside of 0 … 299"),
        ("topk", {"topk/places": torch.tensor([*range(30), 3], dtype=torch.int32)}, r"'b' has values at places outside of 0 … 2"),
        ("topk", {"topk/places": torch.tensor([-1, *range(29), 0], dtype=torch.int32)}, "'a' has values at places outside"),
        ("topk", {"topk/places": torch.tensor([5, *range(5, 34), 0], dtype=torch.int32)}, "'a' has places that are repeated"),
        ("topk", {"topk/values": torch.zeros(31, dtype=torch.float64)}, "'topk/values' is float64"),
    ],
)
def test_a_payload_that_cannot_be_decoded_is_refused_by_name(name: str, change: dict[str, Tensor | None], reason: str) -> None:
    payload, _ = make(name).encode(HONEST, {}, rng())
    spoilt = {key: tensor for key, tensor in (payload | change).items() if tensor is not None}
    with pytest.raises(UpdateRejected, match=reason):
        make(name).decode(spoilt, spec_of(HONEST))


@pytest.mark.parametrize(("name", "other"), [pair for pair in itertools.permutations(NAMES, 2) if pair[0] != "none"])
def test_a_payload_of_another_compression_is_refused(name: str, other: str) -> None:
    payload, _ = make(other).encode(HONEST, {}, rng())
    with pytest.raises(UpdateRejected, match="is missing"):
        make(name).decode(payload, spec_of(HONEST))


@pytest.mark.parametrize(("name", "part"), [("topk", "topk/values"), ("bf16", "bf16/values")])
def test_nan_among_the_values_is_found_by_the_check_of_the_update(name: str, part: str) -> None:
    payload, _ = make(name).encode(HONEST, {}, rng())
    payload[part][0] = math.nan
    decoded = make(name).decode(payload, spec_of(HONEST))
    with pytest.raises(UpdateRejected, match="tensor 'a' holds NaN"):
        check_update(Update(decoded, 1, METRICS, 1), spec_of(HONEST), 1)


@pytest.mark.parametrize("name", LOSSY)
def test_a_tensor_that_is_not_expected_reaches_the_check_of_the_update(name: str) -> None:
    payload, _ = make(name).encode(HONEST, {}, rng())
    decoded = make(name).decode(payload | {"c": torch.ones(1)}, spec_of(HONEST))
    with pytest.raises(UpdateRejected, match="'c' is not one of the shared"):
        check_update(Update(decoded, 1, METRICS, 1), spec_of(HONEST), 1)
