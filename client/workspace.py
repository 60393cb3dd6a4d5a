"""What stays in memory between messages: one network and one text pipeline a process, and the data of the sites it serves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from client.door import OPEN, Door, policy_of
from client.lending import Lending
from client.memory import accepted_run
from client.node import simulated
from client.standing import hold_to_standing
from tmca_core.cases.sites import SiteData, load_site, load_sites, site_names
from tmca_core.config import Config
from tmca_core.digests import source_digest
from tmca_core.errors import ConfigError, FederationError, PolicyRefusal
from tmca_core.networks import Network, build_network, frozen_digest, roles, shared_state
from tmca_core.networks.start import needs_start, take_up_start
from tmca_core.privacy.planning import training_patients
from tmca_core.text.screen.gate import ReportRules, hold_reports
from tmca_core.training.centralised import build_pipeline
from tmca_core.training.device import resolve_device, set_threads
from tmca_core.training.loop import build_optimizer

if TYPE_CHECKING:
    from tmca_core.text.features import TextPipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """A resident network; which site's weights it carries is decided anew by every message.

    Attributes:
        shared: references to the tensors that travel. `personal`: to those that stay at the site.
        initial: copies of the personal tensors as built, for a site that has none yet.
        frozen: digest of what never travels.
        sites: data served so far, the newest last.
        fitting: the record of weights that was last found to fit; at most one.
    """

    config: Config
    network: Network
    pipeline: TextPipeline
    device: torch.device
    shared: dict[str, Tensor]
    personal: dict[str, Tensor]
    initial: dict[str, Tensor]
    frozen: str
    sites: dict[str | int, SiteData] = field(default_factory=dict)
    fitting: list[ArrayRecord] = field(default_factory=list)

    @cached_property
    def lending(self) -> Lending:
        """Memory of updates."""
        return Lending(self.shared)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """For turns whose optimiser state nobody keeps."""
        return build_optimizer(self.network, self.config.training)


@dataclass(frozen=True)
class Site:
    """One hospital as this process serves it.

    Attributes:
        name: unique in the federation.
        data: its cases, by split.
        state: folder on the site's own disk for what it remembers between rounds.
        durable: what it remembers must outlast a power cut.
        door: its policy; what leaves passes it.
    """

    name: str
    data: SiteData
    state: Path
    workspace: Workspace
    durable: bool
    door: Door = OPEN


@lru_cache(maxsize=1)
def open_workspace(config: Config) -> Workspace:
    """The process's network for a configuration, built once."""
    set_threads(config.training)
    device = resolve_device(config.training)
    network = _network(config).to(device)
    state = network.state_dict()
    personal = {name: state[name] for name, role in roles(network).items() if role == "personal"}
    initial = {name: tensor.clone() for name, tensor in personal.items()}
    pipeline = build_pipeline(network, config)
    return Workspace(config, network, pipeline, device, shared_state(network), personal, initial, frozen_digest(network))


def leave_workspace() -> None:
    """Forget network and data: the next message reads everything anew."""
    open_workspace.cache_clear()
    _site_count.cache_clear()


def _network(config: Config) -> Network:
    """The network as a site needs it: `network.start` is read where the site keeps tensors that do not travel, all others it is sent.

    Raises:
        ConfigError: the file is needed here and is not here.
        WeightsError: it does not fit.
    """
    network = build_network(config, started=False)
    if config.network.start and needs_start(network):
        if not Path(config.network.start).exists():
            raise ConfigError(
                f"network.start {config.network.start} is not at this site. Tensors that do not travel (network.trainable="
                f"{config.network.trainable}, federation.algorithm={config.federation.algorithm}) are read from it: get the file from "
                "whoever starts the run and put it at that very path."
            )
        take_up_start(network, config)
    return network


def places(config: Config, node: Mapping[str, Any]) -> int:
    """How many sites a node serves: a hospital's node its own; node k of n in a simulation the sites k, k + n, k + 2n, …

    So the number of simulated nodes, which `flwr run` sets (to 2 unless told otherwise), does not change the federation.
    """
    if not simulated(node):
        return 1
    return len(range(int(node["partition-id"]), _site_count(config), _node_count(config, node)))


def _node_count(config: Config, node: Mapping[str, Any]) -> int:
    return int(node.get("num-partitions", 0)) or _site_count(config)


def enter(config: Config, node: Mapping[str, Any], place: int, run: str | None) -> Site:
    """The site that a message is for, once its policy has let the server's request in.

    Before that nothing of a hospital's cases is read but the table of its manifest, in which its patients are counted.

    Args:
        run: the server's name for it; None: it only asks who is there.

    Raises:
        PolicyRefusal: the policy refuses, or the hospital has none and the run is private, or reports may identify a person.
        LedgerError: the hospital's ledger is missing or damaged.
        ConfigError: see `open_site` and `mechanism_of`; or the policy cannot be read.
    """
    run = run if run is None else accepted_run(run)
    door = Door.of(policy_of(config, node, lambda: name_of(config, node, place)))
    if door.policy is None:
        if not simulated(node):
            _hold_own_reports(config, node, door)
        site = open_site(config, node, place)
        if config.privacy.enabled and len(site.data.train):  # of a simulation: with no finite ε it takes no part, and pays for none
            door.mechanism(config, site.data.train.patients)
        return site
    if simulated(node):
        site = open_site(config, node, place)
        door.admit(config, site.data.train.patients, code_digest(), run)
    else:
        door.admit(config, _listed_patients(config, node), code_digest(), run)
        _hold_own_reports(config, node, door)
        site = open_site(config, node, place)
        door.admit(config, site.data.train.patients, code_digest(), None)  # who has no case that can be read does not count
    return replace(site, door=door)


def hold_to_hospital(config: Config, node: Mapping[str, Any], run: str) -> None:
    """Answer nothing that a hospital has paused or left (`client.standing`).

    Raises:
        SiteAway: it has.
    """
    if not simulated(node):  # where it remembers things is its own decision, not the run's
        hold_to_standing(_own_state(config, node), run)


def _hold_own_reports(config: Config, node: Mapping[str, Any], door: Door) -> None:
    """Screen a hospital's reports before the first message is answered; also where it has no policy."""
    own, *_ = _own_site(config, node)
    rules = door.policy.reports if door.policy else ReportRules()
    hold_reports(Path(own.data.manifest), rules, _own_state(config, node) / "reports-passed")


def name_of(config: Config, node: Mapping[str, Any], place: int) -> str:
    """Name of the site at `place` of a node; at most the table of its manifest is read."""
    if simulated(node):
        return site_names(config)[int(node["partition-id"]) + place * _node_count(config, node)]
    return _own_site(config, node)[1]


def _listed_patients(config: Config, node: Mapping[str, Any]) -> int:
    """Patients that would train at a hospital, by the table of its manifest: cases with a mask, split as the run says."""
    own, _, names, place = _own_site(config, node)
    return len(training_patients(own).get(names[place], ()))


def open_site(config: Config, node: Mapping[str, Any], place: int = 0) -> Site:
    """The site that a node serves; of several, the one at `place`.

    A deployed node says so in its node-config: `manifest="/data/m.csv"`, where several sites share that manifest also
    `site="name"`, and optionally `policy="/file"` (see `enter`), `state="/folder"`, `cache="/folder"` and `allow-download=true`; the
    run-config, which is the server's, decides none of these. A node of a simulation has a `partition-id` instead.

    Raises:
        ConfigError: the node-config says neither, or names no site of the manifest, or there is none at `place`.
        PolicyRefusal: the run wants to download and the node does not allow it.
    """
    if not 0 <= place < max(1, places(config, node)):
        raise ConfigError(f"this node serves {places(config, node)} sites, and was asked for number {place}.")
    if not simulated(node):
        config = _own_settings(config, node)
    workspace = open_workspace(config)
    key: str | int
    if not simulated(node):
        key = f"{node.get('manifest', '')}\n{node.get('site', '')}"
        if key not in workspace.sites:
            workspace.sites[key] = _own_data(config, node)
    else:
        key = int(node["partition-id"]) + place * _node_count(config, node)
        if key not in workspace.sites:
            workspace.sites.update(_simulated_data(config, key))
        _forget(config, workspace.sites, key)
    data = workspace.sites[key]
    return Site(data.name, data, _state_folder(config, node), workspace, durable=not simulated(node))


@lru_cache(maxsize=1)
def _site_count(config: Config) -> int:
    return len(site_names(config))


def _own_settings(config: Config, node: Mapping[str, Any]) -> Config:
    """The run's settings at a hospital: where it keeps things and what it fetches is its own decision."""
    if config.network.allow_download and not node.get("policy") and node.get("allow-download") is not True:  # else the policy decides
        raise PolicyRefusal(
            "the run sets network.allow_download=true and this site does not allow that: set it to false and put the weights at the "
            "site beforehand, or let the site add allow-download=true to its --node-config."
        )
    return config.with_values({"data.cache_dir": str(node.get("cache", ""))})


def _simulated_data(config: Config, index: int) -> dict[str | int, SiteData]:
    """The site asked for; where the pool has to be read as a whole anyway, all of them."""
    if config.data.manifest or config.partition.by != "site":
        sites = load_sites(config)
        found: dict[str | int, SiteData] = {place: sites[name] for place, name in enumerate(site_names(config)) if name in sites}
        if index in found:
            return found
    return {index: load_site(config, index)}


def _forget(config: Config, sites: dict[str | int, SiteData], key: int) -> None:
    """Make `key` the newest, and drop the oldest sites above `simulation.resident_sites` where they can be generated anew."""
    sites[key] = sites.pop(key)
    if not config.data.manifest and config.partition.by == "site":
        for old in list(sites)[: -config.simulation.resident_sites]:
            del sites[old]


def _own_site(config: Config, node: Mapping[str, Any]) -> tuple[Config, str, list[str], int]:
    """A hospital's own data: settings that read its manifest, its name, the names in the manifest and the place of its own among them."""
    manifest, site = str(node.get("manifest", "")), str(node.get("site", ""))
    if not manifest:
        raise ConfigError("this node does not say which data it serves: start it with --node-config 'manifest=\"/path/of/manifest.csv\"'.")
    if not Path(manifest).is_file():
        raise ConfigError(f"the node's manifest {manifest} does not exist: correct manifest=… in its --node-config.")
    own = config.with_values({"data.manifest": manifest, "partition.by": "site"})
    names = site_names(own)
    if len(names) == 1:
        return own, site or names[0], names, 0
    if not site:
        raise ConfigError(f'{manifest} holds {len(names)} sites ({", ".join(names)}): add site="…" to the node\'s --node-config.')
    if site not in names:
        raise ConfigError(f"{manifest} has no site '{site}'; it has {', '.join(names)}.")
    return own, site, names, names.index(site)


def _own_data(config: Config, node: Mapping[str, Any]) -> SiteData:
    own, name, names, place = _own_site(config, node)
    if name != names[place]:
        log.info("the manifest's cases (site '%s') are served as site '%s'.", names[place], name)
    return replace(load_site(own, place), name=name)


def _own_state(config: Config, node: Mapping[str, Any]) -> Path:
    """A hospital's state folder; without `state` in its node-config below its own cache folder, never below one that the run names."""
    return _state_folder(config.with_values({"data.cache_dir": str(node.get("cache", ""))}), node)


def _state_folder(config: Config, node: Mapping[str, Any]) -> Path:
    from tmca_core.cases.decode import cache_folder

    if node.get("state"):
        return Path(str(node["state"]))
    if config.simulation.out and "manifest" not in node:
        return Path(config.simulation.out) / "sites"
    return cache_folder(config.data) / "sites"  # of a hospital: its own cache folder


@lru_cache(maxsize=1)
def code_root() -> Path:
    """Folder that this package and `tmca_core` were both imported from.

    Raises:
        FederationError: they come from two places, so that what runs is not what was submitted.
    """
    import tmca_core

    roots = [Path(str(package)).resolve().parents[1] for package in (__file__, tmca_core.__file__)]
    if roots[0] != roots[1]:
        log.error("'client' is imported from %s and 'tmca_core' from %s.", *roots)
        raise FederationError("'client' and 'tmca_core' are imported from two folders: start Flower from a directory that holds neither.")
    return roots[0]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """`source_digest` of the code that this process runs, computed once: a thousand simulated sites say hello from here."""
    return source_digest(code_root())
