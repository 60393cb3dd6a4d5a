"""Memory of updates: never changed under whoever still holds it, used again afterwards."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from client.lending import KEPT, Lending

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.float64)}


def test_memory_is_lent_again_once_nobody_holds_it() -> None:
    lending = Lending(LIKE)
    first = lending.take()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in first.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in LIKE.items()
    }
    place = first["a"].data_ptr()
    second = lending.take()
    assert second["a"].data_ptr() != place
    del first
    assert lending.take()["a"].data_ptr() == place


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_what_is_held_never_changes(steps: list[tuple[bool, int]]) -> None:
    """Whoever holds one tensor of an update, or a view of it through its holder, keeps its values."""
    lending = Lending(LIKE)
    held: list[tuple[float, torch.Tensor]] = []
    for number, (take, which) in enumerate(steps):
        if take or not held:
            taken = lending.take()
            for tensor in taken.values():
                tensor.fill_(number)
            held.append((number, taken["ab"[number % 2]]))
        else:
            held.pop(which % len(held))
        assert all(bool((tensor == value).all()) for value, tensor in held)
    held.clear()
    taken = {}
    lending.take()
    assert len(lending._lent) <= KEPT
