"""A run's training made again from its configuration, with other patients, as whoever watches it from outside sees it.

Nothing here stands in for training: local rounds, noise, compression and aggregation are the run's own functions, called in the order
in which server and sites call them (a test holds the result against a simulated federation, bit for bit). No ledger is charged:
what is released here are the auditor's own trainings, on data that the auditor holds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tmca_core.algorithms import ALGORITHMS, EXTRA
from tmca_core.audits.claims import DEPLOYED
from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import SiteData, load_sites
from tmca_core.compression import COMPRESSIONS
from tmca_core.config import Config
from tmca_core.errors import AuditInvalid, TmcaError
from tmca_core.messages import Update, spec_of
from tmca_core.networks import Network, build_network, shared_state
from tmca_core.networks.roles import roles
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.planning import mechanism_of
from tmca_core.privacy.training import fit_privately
from tmca_core.run import Run
from tmca_core.seeds import numpy_rng, torch_rng
from tmca_core.text.features import TextPipeline
from tmca_core.training.centralised import build_pipeline, concatenate, content_digest, keep_data
from tmca_core.training.device import set_threads
from tmca_core.training.loop import fit
from tmca_core.training.rules import LocalRule
from tmca_core.training.state import TrainState

CPU = torch.device("cpu")
FEDERATION = "federation"
CANNOT = "the run's training cannot be made again"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A run's training, ready to be made again.

    Attributes:
        config: of the run; trained on the CPU.
        sites: the data that it names, by site.
        arm: "federation", or a centralised run's: "pooled" or "local:NAME".
        network: in which everything is trained, one training after the other.
        start: its tensors before any.
        pipeline: of its reports.
        mechanisms: σ, q and b by place of training as the run has them, so that the run's ε is that of every training made here,
            whoever is left out of it; {} without privacy.
        rounds: that are made; fewer than `config.federation.rounds`, which the learning rate follows, where the run stopped early.
        identity: digests of the configuration and of the data, for what an audit fixes beforehand.
    """

    config: Config
    sites: Mapping[str, SiteData]
    arm: str
    network: Network
    start: Weights
    pipeline: TextPipeline
    mechanisms: Mapping[str, Mechanism]
    rounds: int
    identity: Mapping[str, str]

    @property
    def hidden(self) -> bool:
        """Nobody outside sees a single site's update."""
        return self.arm != FEDERATION or self.config.federation.secure

    def with_values(self, values: Mapping[str, object]) -> Subject:
        """The same training with other settings; `privacy.enabled` may be turned off, not on."""
        config = self.config.with_values(values)
        rounds = min(self.rounds, config.federation.rounds)
        return replace(self, config=config, mechanisms=self.mechanisms if config.privacy.enabled else {}, rounds=rounds)


@dataclass(frozen=True)
class Sight:
    """What an observer sees of one round.

    Attributes:
        round: 1-based.
        released: all tensors of the model after it.
        sites: the sites' own models after their local training, start plus update as it arrives; {} where updates are hidden.
    """

    round: int
    released: Weights
    sites: Mapping[str, Weights]


@dataclass
class _Memory:
    """What a site keeps between rounds."""

    state: TrainState | None = None
    personal: Weights = field(default_factory=dict)
    kept: Weights = field(default_factory=dict)
    residual: Weights = field(default_factory=dict)


def subject_of(run: Path | None, config: Config) -> Subject:
    """Everything that is needed to train as a run did.

    Args:
        run: its folder, held against configuration and data as `material_of` does; None: there is none.

    Raises:
        AuditInvalid: the folder is not whole, the data are others than the run stood on, or its training cannot be made again.
    """
    if config.central.enabled:
        raise AuditInvalid("hospital-level noise (central.enabled) protects hospitals: a patient's membership is not what it promises.")
    if config.scenario.poison:
        raise AuditInvalid("the run had poisoned sites (scenario.poison): training made again says nothing about an honest one.")
    found = material_of(run, config)
    config = config.with_values({"training.device": "cpu"})
    sites, network = found.sites, found.network
    try:
        summary = Run(run).read_json("run.json") if run else {}
        arm = str(summary["arm"]) if summary.get("engine") == "centralised" else FEDERATION
        sites = {name: site for name, site in sites.items() if not arm.startswith("local:") or arm == f"local:{name}"}
        if not sites:
            raise AuditInvalid(f"the data hold no site of the run's arm '{arm}'.")
        mechanisms = {}
        if config.privacy.enabled:
            counts = {name: site.train.patients for name, site in sites.items()}
            if arm != FEDERATION:
                counts = {arm: len({case.patient_id for site in sites.values() for case in site.train.cases})}
            mechanisms = {name: mechanism_of(config, count) for name, count in counts.items()}
    except AuditInvalid:
        raise
    except (TmcaError, OSError, ValueError) as error:
        raise AuditInvalid(f"{CANNOT}: {error}") from None
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return Subject(config, sites, arm, network, start, build_pipeline(network, config), mechanisms, found.rounds, found.identity)


@dataclass(frozen=True)
class Material:
    """What a run stands on, or would by its configuration; sites, network, rounds and identity as `Subject` has them."""

    sites: Mapping[str, SiteData]
    network: Network
    rounds: int
    identity: Mapping[str, str]


def material_of(run: Path | None, config: Config) -> Material:
    """The data and the network that a configuration names.

    Args:
        run: its folder, which must hold splits.json and data.json of these very data, and the checkpoints that run.json speaks of, of
            this network. A server between hospitals has no such files, for it holds no data: the claim says so. Nothing is written into
            it. None: there is none.

    Raises:
        AuditInvalid: one of these is missing or another, or the data are not there.
    """
    settings = config.with_values({"training.device": "cpu"})
    try:
        sites = load_sites(settings)
        if run and Run(run).read_json("run.json").get("engine") != DEPLOYED:
            for name in ("splits.json", "data.json"):
                _insist_on(Run(run), name)
            keep_data(Run(run), sites)  # which compares, since both are there
        set_threads(settings.training)
        network = build_network(settings)
        rounds = _rounds_made(Run(run), settings, network) if run else settings.federation.rounds
    except AuditInvalid:
        raise
    except (TmcaError, OSError, ValueError) as error:
        raise AuditInvalid(f"{CANNOT}: {error}") from None
    data = json.dumps({name: content_digest(site) for name, site in sites.items()}, sort_keys=True)
    identity = {"configuration_sha256": config.digest(), "data_sha256": hashlib.sha256(data.encode()).hexdigest()}
    return Material(sites, network, rounds, identity)


def _insist_on(run: Run, name: str) -> None:
    held = run.read_json(name)
    if not isinstance(held, dict) or not held:
        raise AuditInvalid(
            f"{run.folder} has no {name} that says which data the run stood on, so these need not be they. Give the whole folder that "
            "`tmca simulate` or `tmca train` wrote."
        )


def _rounds_made(run: Run, config: Config, network: Network) -> int:
    """How many rounds a run made, as run.json says: all, or those before it stopped early.

    Raises:
        AuditInvalid: the last checkpoint is of another round or network, or the model that was tested is not there.
        WeightsError: a checkpoint is damaged.
    """
    summary, last, known = run.read_json("run.json"), run.last_checkpoint(), network.state_dict()
    stopped, tested = summary.get("stopped_early"), summary.get("tested_round")
    made = config.federation.rounds if stopped is None else stopped
    if last is None or last.round == 0:
        raise AuditInvalid(f"{run.folder} has no checkpoint: no model is known to have come of it, so there is nothing that could leak.")
    if last.round != made:
        raise AuditInvalid(
            f"{run.folder}: by run.json {made} rounds were made, and the last checkpoint is of round {last.round}: what was trained, and "
            "at what cost in privacy, does not hold together. Give the whole folder of a run that ended."
        )
    if tested == 0:
        raise AuditInvalid(f"{run.folder}: by run.json the model of round 0 was tested and released, which no training has touched.")
    if tested is not None and tested not in [int(folder.name.removeprefix("round-")) for folder in run.checkpoints()]:
        raise AuditInvalid(
            f"{run.folder}: by run.json the model of round {tested} was tested and released, and its checkpoint is not there."
        )
    if wrong := [name for name, tensor in last.weights.items() if name not in known or known[name].shape != tensor.shape]:
        raise AuditInvalid(f"the checkpoint of round {last.round} is of another network than config.toml's: '{wrong[0]}' does not fit.")
    return last.round


def rehearse(subject: Subject, data: Mapping[str, CaseTensors]) -> Iterator[Sight]:
    """Train on `data` by site, as many rounds as the run made; between rounds the network may be used and left in any state.

    Sites without a case do not take part.
    """
    data = {name: data[name] for name in sorted(data) if len(data[name])}
    if not data:
        raise AuditInvalid("nobody is left to train on.")
    subject.network.load_state_dict(subject.start)
    return _federated(subject, data) if subject.arm == FEDERATION else _in_one_place(subject, concatenate(list(data.values())))


def _in_one_place(subject: Subject, data: CaseTensors) -> Iterator[Sight]:
    network, state = subject.network, None
    own = subject.start
    for round in range(1, subject.rounds + 1):
        network.load_state_dict(own)
        state = _train(subject, data, round, subject.arm, state, None, average=True)
        own = _copied(network.state_dict())
        yield Sight(round, own | dict(state.average), {})


def _federated(subject: Subject, data: Mapping[str, CaseTensors]) -> Iterator[Sight]:
    config, network = subject.config, subject.network
    algorithm, shared = ALGORITHMS[config.federation.algorithm], shared_state(network)
    compression = COMPRESSIONS[config.federation.compression](config)
    weights = _copied(shared)
    fold, spec = algorithm.fold(weights, config), algorithm.sent(spec_of(shared))
    own = [name for name, role in roles(network).items() if role == "personal"]
    memories = {site: _Memory() for site in data}
    worth = {site: _weight(config, cases) for site, cases in data.items()}
    for round in range(1, subject.rounds + 1):
        fold.begin(sum(worth.values()))
        extras = {name.removeprefix(EXTRA): tensor for name, tensor in fold.broadcast().items()}
        seen: dict[str, Weights] = {}
        for site in _cohort(config, list(data), round):
            memory, rule = memories[site], algorithm.local(config)
            network.load_state_dict(subject.start | memory.personal | weights)
            rule.start(network, weights, extras, memory.kept)
            before = memory.state if config.federation.keep_optimizer else None
            memory.state = _train(subject, data[site], round, site, before, rule)
            told = rule.end()
            sent = {name: tensor.detach() - weights[name] for name, tensor in shared.items()}
            sent |= {f"{EXTRA}{name}": tensor for name, tensor in told.sent.items()}
            payload, memory.residual = compression.encode(sent, memory.residual, torch_rng(config.seed, "compression", site, round))
            arrived = compression.decode(payload, spec)
            memory.personal, memory.kept = _copied({name: network.state_dict()[name] for name in own}), told.kept
            if not subject.hidden:
                seen[site] = subject.start | {name: weights[name] + arrived[name] for name in weights}
            fold.add(Update(arrived, worth[site], {}, round))
        fold.finish(weights)
        yield Sight(round, subject.start | _copied(weights), seen)


def _train(
    subject: Subject, data: CaseTensors, round: int, site: str, state: TrainState | None, rule: LocalRule | None, average: bool = False
) -> TrainState:
    """One local round; gives what goes on to the next."""
    network, pipeline, config = subject.network, subject.pipeline, subject.config
    if subject.mechanisms:
        mechanism = subject.mechanisms[site]
        return fit_privately(network, data, pipeline, config, mechanism, round=round, site=site, state=state, device=CPU).state
    return fit(network, data, pipeline, config, round=round, site=site, state=state, device=CPU, average=average, rule=rule).state


def _cohort(config: Config, names: list[str], round: int) -> list[str]:
    """The sites of a round, drawn as the server draws them; of an oversampled cohort those that count are the first drawn."""
    size = config.federation.cohort
    if not size or size >= len(names):
        return names
    asked = min(size + math.ceil(size * config.federation.oversample - 1e-9), len(names))
    drawn = numpy_rng(config.seed, "cohort", round).choice(len(names), size=asked, replace=False)[:size]
    return [names[i] for i in sorted(drawn)]


def _weight(config: Config, data: CaseTensors) -> int:
    return {"uniform": 1, "cases": len(data), "patients": data.patients}[config.federation.weighting]


def _copied(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
