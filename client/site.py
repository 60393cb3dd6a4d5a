"""A site's three answers: who it is, one round of training, one evaluation. What these return is all that leaves the site."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from client.memory import Groups, Memory
from client.workspace import Site, code_digest
from tmca_core.algorithms import ALGORITHMS, EXTRA
from tmca_core.cases.case import CaseTensors
from tmca_core.compression import COMPRESSIONS
from tmca_core.config import Config
from tmca_core.digests import tensors_digest
from tmca_core.errors import FederationError, UpdateRejected
from tmca_core.losses import LOSSES
from tmca_core.messages import (
    ARRAYS,
    METRICS,
    PLACE,
    PLACES,
    PUBLIC_METRICS,
    SETTINGS,
    WITHHELD,
    Hello,
    Spec,
    Update,
    check_update,
    part_of,
    spec_digest,
    spec_of,
    train_metrics,
)
from tmca_core.seeds import torch_rng
from tmca_core.training.evaluation import evaluate, site_summary
from tmca_core.training.loop import FitResult, fit
from tmca_core.training.rules import LocalRule
from tmca_core.training.state import TrainState
from tmca_core.wire import PACKED, WHOLE, ByReference, fill, pack, tensors_of

log = logging.getLogger(__name__)

# Of so many runs a site keeps what it remembers.
KEPT_RUNS = 16


class TensorArray(ByReference, Array):  # type: ignore[override]
    """A Flower Array that holds a tensor; Flower's object store knows it by the name of its base."""

    __qualname__ = "Array"


def packed(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors in one piece, as they leave a hospital."""
    return ArrayRecord({WHOLE: Array("uint8", (len(blob := pack(tensors)),), PACKED, blob)})


def place_of(content: RecordDict) -> int:
    """Which of its sites a node is asked for; 0 where the message does not say."""
    return _integer(content, PLACE) if _field(content, PLACE) is not None else 0


def run_of(content: RecordDict) -> str:
    """The server's name for its run."""
    return _text(content, "run")


def no_hello() -> RecordDict:
    """The answer of a simulated node for which no site is left."""
    return RecordDict({SETTINGS: ConfigRecord({PLACES: 0})})


def say_hello(site: Site, places: int = 1) -> RecordDict:
    """Name, digests and those counts that may leave (`Hello`), and how many sites this node serves."""
    workspace = site.workspace
    counts = {name: site.door.count(number) for name, number in _counts(site).items()}
    site.door.note_figures([name for name, number in counts.items() if number is not None], purpose="hello")
    hello = Hello(
        site=site.name,
        patients=counts["patients"],
        train_patients=counts["train_patients"],
        train_cases=counts["train_cases"],
        val_cases=counts["val_cases"],
        test_cases=counts["test_cases"],
        skipped=counts["skipped"],
        config=workspace.config.digest(),
        network=spec_digest(spec_of(workspace.shared)),
        frozen=workspace.frozen,
        code=code_digest(),
    )
    return RecordDict({SETTINGS: ConfigRecord({**hello.as_values(), PLACES: places})})


def say_no(config: Config, name: str, refusal: str) -> RecordDict:
    """The hello of a site whose policy refuses the run."""
    hello = Hello(name, None, None, None, None, None, None, config.digest(), "", "", code_digest(), refusal)
    return RecordDict({SETTINGS: ConfigRecord({**hello.as_values(), PLACES: 1})})


def _counts(site: Site) -> dict[str, int]:
    data = site.data
    return {
        "patients": len({case.patient_id for part in (data.train, data.val, data.test) for case in part.cases}),
        "train_patients": data.train.patients,
        "train_cases": len(data.train),
        "val_cases": len(data.val),
        "test_cases": len(data.test),
        "skipped": len(data.skipped),
    }


def weight_of(site: Site) -> int:
    """The site's public weight in the mean; 0 where its policy keeps what it weighs."""
    weighting = site.workspace.config.federation.weighting
    return 1 if weighting == "uniform" else site.door.count(_counts(site)[f"train_{weighting}"]) or 0


def hold_to_cases(site: Site, content: RecordDict) -> None:
    """Refuse to go on with a run whose cases have changed at this site.

    Raises:
        FederationError: they have.
    """
    data = site.data
    parts = {"train": data.train, "val": data.val, "test": data.test}
    texts = {split: [f"{case.case_id}\x1f{case.patient_id}\x1f{case.text}" for case in part.cases] for split, part in parts.items()}
    memory = Memory.of(site.state, site.name, run_of(content))
    if not memory.folder.exists():
        _drop_old_runs(memory.folder.parent)
    memory.hold_to(texts)


def _drop_old_runs(folder: Path) -> None:
    """Make room for a run: a server that names a new one each time does not fill the disk."""
    runs = [path for path in folder.glob("*") if path.is_dir() and re.fullmatch(r"[0-9a-f]{1,32}", path.name)]
    for old in sorted(runs, key=lambda path: path.stat().st_mtime)[: -KEPT_RUNS + 1]:
        log.info("what is remembered of the old run %s is removed.", old)
        shutil.rmtree(old, ignore_errors=True)


def train(site: Site, content: RecordDict) -> RecordDict:
    """One round on the site's training cases; answers with the difference of the shared tensors, and what the algorithm adds.

    The difference is in memory of its own, which is used again when nobody holds it any more: in one process the server may fold it
    while the next site trains in this network.

    Raises:
        FederationError: the message lacks something, or its weights do not fit the network.
        TmcaError: training failed (`Diverged`), or the site's state is damaged.
    """
    workspace, config = site.workspace, site.workspace.config
    round, run = _round(content, config, 1), run_of(content)
    algorithm, keep = ALGORITHMS[config.federation.algorithm], config.federation.keep_optimizer
    received = _receive(site, content, algorithm.sent(spec_of(workspace.shared)))
    start = {name: received[name] for name in workspace.shared}
    extras = {name.removeprefix(EXTRA): tensor for name, tensor in received.items() if name not in start}
    memory = Memory.of(site.state, site.name, run, site.durable)
    state, remembered = memory.load(before=round)
    rule = algorithm.local(config)
    groups, beside = _train_twin(site, rule.twin, start, remembered, round) if rule.twin else ({}, 0.0)
    _restore(site, remembered)
    counted = _integer(content, "counted")
    turn, settled, residual = _settled(remembered, counted)
    rule.start(workspace.network, start, extras, settled)
    if config.privacy.enabled:
        from client.private import train_privately

        result = train_privately(site, round, run, state if keep else None, counted)
    else:
        result = _fit(site, rule, round, state)
    told = rule.end()
    with torch.no_grad():
        tensors = workspace.lending.take()
        for name, tensor in tensors.items():
            torch.sub(workspace.shared[name].cpu(), start[name], out=tensor)
    tensors |= {f"{EXTRA}{name}": tensor.cpu() for name, tensor in told.sent.items()}
    if config.federation.secure:
        from client.secure import masked

        tensors, unsent = masked(site, content, tensors, residual)
    else:
        compression = COMPRESSIONS[config.federation.compression](config)
        draws = torch_rng(config.seed, "compression", site.name, round)
        tensors, unsent = compression.encode(tensors, residual, draws)
    groups |= {"personal": workspace.personal, "residual": unsent}
    if told.kept:
        if turn < counted:
            log.error(
                "site '%s': the server counts on what this site kept in round %d, and the newest that is found in %s is of %s. The "
                "algorithm's sum over the sites stays wrong by the difference: start a new run if this site has many of the cases.",
                *(site.name, counted, memory.folder, f"round {turn}" if turn else "no round"),
            )
        spare = {name: tensor for name, tensor in residual.items() if name.startswith(EXTRA)}
        groups |= {"kept": told.kept, "settled": settled, "settled-residual": spare, "turn": {"round": torch.tensor(round)}}
    if keep or any(groups.values()):
        memory.save(round, result.state if keep else None, groups)
    arrays = packed(tensors) if site.durable else fill(ArrayRecord(), {name: TensorArray(tensor) for name, tensor in tensors.items()})
    metrics = {"loss": result.loss, "steps": result.steps, "cases": result.cases_seen, "seconds": result.seconds + beside}
    asked = {name: metrics[name] for name in train_metrics(config.privacy.enabled)}
    leaving = site.door.trained(asked, PUBLIC_METRICS, len(site.data.train))
    if not config.privacy.enabled:
        patients = {case.patient_id for case in site.data.train.cases}
        site.door.note_plain(patients, config, run=run, round=round, app=code_digest())
    weighting, weight = config.federation.weighting, weight_of(site)
    figures = [name for name in leaving if name not in PUBLIC_METRICS] + ([] if weighting == "uniform" else ["weight"])
    site.door.note_figures(figures, run=run, round=round, purpose="training")
    settings = ConfigRecord({"round": round, "weight": weight})
    if leaving.keys() != asked.keys():
        settings[WITHHELD] = True
    return RecordDict({ARRAYS: arrays, SETTINGS: settings, METRICS: MetricRecord({**leaving})})


def assess(site: Site, content: RecordDict) -> RecordDict:
    """The received weights, with what the site keeps for itself in their place, on its validation cases; on its test cases every
    measure and counterfactual.

    Raises:
        FederationError: the message lacks something, or its weights do not fit the network.
    """
    workspace, config = site.workspace, site.workspace.config
    split, round = _text(content, "split"), _round(content, config, 0)
    parts: dict[str, CaseTensors] = {"val": site.data.val, "test": site.data.test}
    if split not in parts:
        raise FederationError(f"split '{split}' cannot be evaluated; val and test can.")
    _receive(site, content, spec_of(workspace.shared))
    if workspace.personal or ALGORITHMS[config.federation.algorithm].local(config).twin:
        memory = Memory.of(site.state, site.name, run_of(content))
        remembered = memory.load(before=round + 1)[1]
        _restore(site, remembered)
        _put(site, remembered.get("twin", {}))
    full, run = split == "test", run_of(content)
    if site.door.mute or not site.door.measures(config, run, round, split, lambda: tensors_digest(content)):
        return _assessed({}, split, withheld=True)
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
    summary = site_summary(scores, bootstrap=config.evaluation.bootstrap if full else config.evaluation.bootstrap_rounds, seed=config.seed)
    if site.durable and math.isfinite(summary.get("dice_image", math.nan)):
        Memory.of(site.state, site.name, run).note_scores(round, split, summary["dice_image"], int(summary["cases"]))
    told = site.door.evaluated(summary)
    site.door.note_figures(list(told), run=run, round=round, purpose=split)
    return _assessed(told, split, withheld=told is not summary)


def _assessed(figures: Mapping[str, float], split: str, *, withheld: bool) -> RecordDict:
    settings = ConfigRecord({"split": split})
    if withheld:
        settings[WITHHELD] = True
    return RecordDict({METRICS: MetricRecord({**figures}), SETTINGS: settings})


def _settled(remembered: Groups, counted: int) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """What the site stands on: of a turn after `counted`, lost on its way or too late, the server knows nothing.

    Such a turn's share of the algorithm's sums was never added, so what was kept before it holds again, and what compression had left
    unsent of them then. What is unsent of the weights stays: it is of this site's training, which did take place.

    Returns:
        (round of the newest turn that is remembered, 0 where none is; what the algorithm kept; what compression left unsent).
    """
    turn, residual = int(remembered["turn"]["round"]) if "turn" in remembered else 0, remembered.get("residual", {})
    if turn <= counted:
        return turn, remembered.get("kept", {}), residual
    weights = {name: tensor for name, tensor in residual.items() if not name.startswith(EXTRA)}
    return turn, remembered.get("settled", {}), weights | remembered.get("settled-residual", {})


def _fit(site: Site, rule: LocalRule, round: int, state: TrainState | None) -> FitResult:
    workspace, config = site.workspace, site.workspace.config
    return fit(
        workspace.network,
        site.data.train,
        workspace.pipeline,
        config,
        round=round,
        site=site.name,
        state=state if config.federation.keep_optimizer else None,
        device=workspace.device,
        rule=rule,
        keep=config.federation.keep_optimizer,
        optimizer=None if config.federation.keep_optimizer else workspace.optimizer,
    )


def _train_twin(site: Site, rule: LocalRule, start: Mapping[str, Tensor], remembered: Groups, round: int) -> tuple[Groups, float]:
    """Train the site's own model, which begins as the first weights that the site received; the network carries `start` again after it.

    Returns:
        (what to remember of it, seconds that its steps took).
    """
    workspace = site.workspace
    _restore(site, remembered)
    _put(site, remembered.get("twin", {}))
    rule.start(workspace.network, start, {}, {})
    state = remembered.get("twin-state")
    result = _fit(site, rule, round, TrainState.from_tensors(state) if state else None)
    own = {name: tensor.detach().clone() for name, tensor in (workspace.shared | workspace.personal).items()}
    _put(site, start)
    kept = result.state.as_tensors() if workspace.config.federation.keep_optimizer else {}
    return {"twin": own, "twin-state": kept}, result.seconds


def _receive(site: Site, content: RecordDict, spec: Spec) -> dict[str, Tensor]:
    """Put the received weights into the resident network; returns all tensors as received, by name."""
    shared = site.workspace.shared
    arrays = part_of(content, ARRAYS, ArrayRecord)
    if arrays is None:
        raise FederationError(f"the server's message holds no '{ARRAYS}'.")
    try:
        received = tensors_of(arrays)
        # In one process all sites of a phase get the very same record: it is looked at once.
        if not any(arrays is record for record in site.workspace.fitting):
            check_update(Update(received, 1, {}, 0), spec, 0)
            site.workspace.fitting[:] = [arrays]
    except UpdateRejected as error:
        raise FederationError(f"the server's weights do not fit this site's network: {error}") from None
    _put(site, {name: received[name] for name in shared})
    return received


def _restore(site: Site, remembered: Groups) -> None:
    """Put the site's own tensors into the resident network; the initial ones where it has none yet."""
    _put(site, site.workspace.initial | remembered.get("personal", {}))


@torch.no_grad()
def _put(site: Site, values: Mapping[str, Tensor]) -> None:
    """Write values into the resident network, by name."""
    network = site.workspace.shared | site.workspace.personal
    if values:
        torch._foreach_copy_([network[name] for name in values], list(values.values()))


def _field(content: RecordDict, key: str) -> Any:
    settings = part_of(content, SETTINGS, ConfigRecord)
    return None if settings is None else settings.get(key)


def _integer(content: RecordDict, key: str) -> int:
    value = _field(content, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FederationError(f"the server's message has no valid '{key}' (got {value!r}).")
    return value


def _round(content: RecordDict, config: Config, first: int) -> int:
    value = _integer(content, "round")
    if not first <= value <= config.federation.rounds:
        raise FederationError(f"the server names round {value}; this run has rounds {first} to {config.federation.rounds}.")
    return value


def _text(content: RecordDict, key: str) -> str:
    value = _field(content, key)
    if not isinstance(value, str):
        raise FederationError(f"the server's message has no valid '{key}' (got {value!r}).")
    return value
