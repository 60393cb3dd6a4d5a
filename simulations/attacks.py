"""What a poisoned site does: to its own cases, or to its answer on the way to the server. A hospital's code contains none of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from client.site import TensorArray
from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import SiteData
from tmca_core.messages import ARRAYS, part_of
from tmca_core.text.sides import swap_sides
from tmca_core.wire import tensors_of

HUGE = 1e6


@dataclass
class Turn:
    """A poisoned site's turn.

    Attributes:
        site: its name.
        cohort: number of sites that are asked in a round.
        scale: `scenario.poison_scale`.
        before: the site's answer of its turn before, as sent; None in its first. Filled in by `replay`.
    """

    site: str
    cohort: int
    scale: float
    before: dict[str, RecordDict] = field(default_factory=dict)


Attack = Callable[[RecordDict, Turn], RecordDict]


# --- on the data ------------------------------------------------------------------------------------
def inside_out(data: SiteData) -> SiteData:
    """Lesion where there is none, none where there is one; the training cases only, so that the site looks good to itself elsewhere."""
    train = data.train
    return replace(data, train=CaseTensors(train.cases, train.images, 1 - train.masks))


def sides_swapped(data: SiteData) -> SiteData:
    """Left and right exchanged in every report of every split: what a wrongly declared side convention does."""

    def swapped(part: CaseTensors) -> CaseTensors:
        return CaseTensors([replace(case, text=swap_sides(case.text)) for case in part.cases], part.images, part.masks)

    return replace(data, train=swapped(data.train), val=swapped(data.val), test=swapped(data.test))


ON_DATA: dict[str, Callable[[SiteData], SiteData]] = {
    "label-flip": inside_out,
    "model-replacement": inside_out,
    "swap-reports": sides_swapped,
}


# --- on the answer ----------------------------------------------------------------------------------
def _changed(change: Callable[[Tensor], Tensor], first_only: bool = False) -> Attack:
    """An attack that changes the floating-point tensors of an update (of a compressed one: its scales and values), or the first."""

    def attack(content: RecordDict, turn: Turn) -> RecordDict:
        tensors = {name: tensor.clone() for name, tensor in _tensors(content).items()}
        floating = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
        for name in floating[:1] if first_only else floating:
            tensors[name] = change(tensors[name])
        return _with(content, tensors)

    return attack


def _with(content: RecordDict, tensors: dict[str, Tensor]) -> RecordDict:
    arrays = ArrayRecord()
    for name, tensor in tensors.items():
        arrays[name] = TensorArray(tensor)
    return RecordDict({**content, ARRAYS: arrays})


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    """One number of the tensor replaced."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


def flipped(content: RecordDict, turn: Turn) -> RecordDict:
    """The update turned round, times `scale`.

    One site in five that sends −Δ only shortens the mean step, to 3/5; from −4Δ on the mean of five like updates stands still or goes back.
    """
    return _changed(lambda tensor: tensor * -turn.scale)(content, turn)


def replacement(content: RecordDict, turn: Turn) -> RecordDict:
    """The update of a model trained on masks inside out, times the cohort, so that their mean becomes that model.

    Source: Bagdasaryan et al., How to backdoor federated learning (2020), eq. 3 with equal weights.
    """
    return _changed(lambda tensor: tensor * turn.cohort)(content, turn)


def replay(content: RecordDict, turn: Turn) -> RecordDict:
    """The answer of the site's turn before once more."""
    before = turn.before.get(turn.site)
    turn.before[turn.site] = copy.deepcopy(content)
    return before or content


def missing(content: RecordDict, turn: Turn) -> RecordDict:
    """The update without its first tensor."""
    return _with(content, dict(list(_tensors(content).items())[1:]))


def extra(content: RecordDict, turn: Turn) -> RecordDict:
    """The update with a tensor that nobody asked for."""
    return _with(content, {**_tensors(content), "intruder": torch.zeros(3)})


def fails(content: RecordDict, turn: Turn) -> RecordDict:
    """No answer: training breaks off.

    Raises:
        MemoryError: always.
    """
    raise MemoryError("out of memory")


def _tensors(content: RecordDict) -> dict[str, Tensor]:
    return tensors_of(part_of(content, ARRAYS, ArrayRecord) or ArrayRecord())


ON_ANSWER: dict[str, Attack] = {
    "nan": _changed(_filled(float("nan")), first_only=True),
    "inf": _changed(_filled(float("inf")), first_only=True),
    "huge": _changed(lambda tensor: tensor * HUGE),
    "sign-flip": flipped,
    "model-replacement": replacement,
    "replay": replay,
    "wrong-shape": _changed(lambda tensor: tensor.unsqueeze(0), first_only=True),
    "wrong-dtype": _changed(lambda tensor: tensor.double(), first_only=True),
    "missing-tensor": missing,
    "extra-tensor": extra,
    "raise": fails,
}
