"""A site's three answers: who it is, one round of training, one evaluation. What these return is all that leaves the site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from client.memory import Memory
from client.workspace import Site, code_root
from tmca_core.cases.case import CaseTensors
from tmca_core.errors import FederationError, UpdateRejected
from tmca_core.losses import LOSSES
from tmca_core.messages import (
    ARRAYS,
    METRICS,
    PLACE,
    PLACES,
    SETTINGS,
    ByReference,
    Hello,
    Update,
    check_update,
    source_digest,
    spec_digest,
    spec_of,
    to_tensor,
)
from tmca_core.training.evaluation import evaluate, site_summary
from tmca_core.training.loop import fit


class TensorArray(ByReference, Array):  # type: ignore[override]
    """A Flower Array that holds a tensor; Flower's object store knows it by the name of its base."""

    __qualname__ = "Array"


def place_of(content: RecordDict) -> int:
    """Which of its sites a node is asked for; 0 where the message does not say."""
    return _integer(content, PLACE) if _field(content, PLACE) is not None else 0


def no_hello() -> RecordDict:
    """The answer of a simulated node for which no site is left."""
    return RecordDict({SETTINGS: ConfigRecord({PLACES: 0})})


def say_hello(site: Site, places: int = 1) -> RecordDict:
    """Name, counts and digests (`Hello`), and how many sites this node serves."""
    data, workspace = site.data, site.workspace
    hello = Hello(
        site=site.name,
        patients=len({case.patient_id for part in (data.train, data.val, data.test) for case in part.cases}),
        train_patients=data.train.patients,
        train_cases=len(data.train),
        val_cases=len(data.val),
        test_cases=len(data.test),
        skipped=len(data.skipped),
        config=workspace.config.digest(),
        network=spec_digest(spec_of(workspace.shared)),
        frozen=workspace.frozen,
        code=source_digest(code_root()),
    )
    return RecordDict({SETTINGS: ConfigRecord({**hello.as_values(), PLACES: places})})


def train(site: Site, content: RecordDict) -> RecordDict:
    """One round on the site's training cases; answers with the difference of the shared tensors.

    The difference is computed in place: in one process the server reads it out of this very network before the next site
    is trained in it.

    Raises:
        FederationError: the message lacks something, or its weights do not fit the network.
        TmcaError: training failed (`Diverged`), or the site's state is damaged.
    """
    workspace, config = site.workspace, site.workspace.config
    round, run = _integer(content, "round"), _text(content, "run")
    start = _receive(site, content)
    memory = Memory.of(site.state, site.name, run)
    state, personal = memory.load(before=round)
    _restore(site, personal)
    result = fit(
        workspace.network,
        site.data.train,
        workspace.pipeline,
        config,
        round=round,
        site=site.name,
        state=state if config.federation.keep_optimizer else None,
        device=workspace.device,
    )
    if config.federation.keep_optimizer or workspace.personal:
        memory.save(round, result.state if config.federation.keep_optimizer else None, workspace.personal)
    with torch.no_grad():
        deltas = {name: tensor.sub_(start[name].to(tensor.device)).cpu() for name, tensor in workspace.shared.items()}
    arrays = ArrayRecord()
    for name, delta in deltas.items():
        arrays[name] = TensorArray(delta)
    weight = {"cases": len(site.data.train), "patients": site.data.train.patients, "uniform": 1}[config.federation.weighting]
    metrics = {"loss": result.loss, "steps": result.steps, "cases": result.cases_seen, "seconds": result.seconds}
    return RecordDict({ARRAYS: arrays, SETTINGS: ConfigRecord({"round": round, "weight": weight}), METRICS: MetricRecord({**metrics})})


def assess(site: Site, content: RecordDict) -> RecordDict:
    """The received weights on the site's validation cases, or every measure and counterfactual on its test cases.

    Raises:
        FederationError: the message lacks something, or its weights do not fit the network.
    """
    workspace, config = site.workspace, site.workspace.config
    split = _text(content, "split")
    parts: dict[str, CaseTensors] = {"val": site.data.val, "test": site.data.test}
    if split not in parts:
        raise FederationError(f"split '{split}' cannot be evaluated; val and test can.")
    _receive(site, content)
    if workspace.personal:
        memory = Memory.of(site.state, site.name, _text(content, "run"))
        _restore(site, memory.load(before=_integer(content, "round") + 1)[1])
    full = split == "test"
    scores = evaluate(
        workspace.network.to(workspace.device),
        parts[split],
        workspace.pipeline,
        settings=config.evaluation,
        device=workspace.device,
        counterfactual=full,
        hd95=full,
        loss=LOSSES[config.training.loss]().per_case,
        seed=config.seed,
    )
    summary = site_summary(scores, bootstrap=config.evaluation.bootstrap if full else 0, seed=config.seed)
    return RecordDict({METRICS: MetricRecord({**summary}), SETTINGS: ConfigRecord({"split": split})})


def _receive(site: Site, content: RecordDict) -> dict[str, Tensor]:
    """Put the received weights into the resident network; returns them as received, by name."""
    shared = site.workspace.shared
    arrays = content.array_records.get(ARRAYS)
    if arrays is None:
        raise FederationError(f"the server's message holds no '{ARRAYS}'.")
    try:
        received = {name: to_tensor(name, array) for name, array in arrays.items()}
        check_update(Update(received, 1, {}, 0), spec_of(shared), 0)
    except UpdateRejected as error:
        raise FederationError(f"the server's weights do not fit this site's network: {error}") from None
    with torch.no_grad():
        for name, tensor in shared.items():
            tensor.copy_(received[name])
    return received


def _restore(site: Site, personal: Mapping[str, Tensor]) -> None:
    """Put the site's own tensors into the resident network; the initial ones where it has none yet."""
    with torch.no_grad():
        for name, tensor in site.workspace.personal.items():
            tensor.copy_(personal.get(name, site.workspace.initial[name]))


def _field(content: RecordDict, key: str) -> Any:
    return content.config_records.get(SETTINGS, ConfigRecord()).get(key)


def _integer(content: RecordDict, key: str) -> int:
    value = _field(content, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FederationError(f"the server's message has no valid '{key}' (got {value!r}).")
    return value


def _text(content: RecordDict, key: str) -> str:
    value = _field(content, key)
    if not isinstance(value, str):
        raise FederationError(f"the server's message has no valid '{key}' (got {value!r}).")
    return value
