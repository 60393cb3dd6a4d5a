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

from client.node import simulated
from tmca_core.cases.sites import SiteData, load_site, load_sites, site_names
from tmca_core.config import Config
from tmca_core.errors import ConfigError, FederationError, PolicyRefusal
from tmca_core.messages import source_digest
from tmca_core.networks import Network, build_network, frozen_digest, roles, shared_state
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
    """

    name: str
    data: SiteData
    state: Path
    workspace: Workspace
    durable: bool


@lru_cache(maxsize=1)
def open_workspace(config: Config) -> Workspace:
    """The process's network for a configuration, built once."""
    set_threads(config.training)
    device = resolve_device(config.training)
    network = build_network(config).to(device)
    state = network.state_dict()
    personal = {name: state[name] for name, role in roles(network).items() if role == "personal"}
    initial = {name: tensor.clone() for name, tensor in personal.items()}
    pipeline = build_pipeline(network, config)
    return Workspace(config, network, pipeline, device, shared_state(network), personal, initial, frozen_digest(network))


def places(config: Config, node: Mapping[str, Any]) -> int:
    """How many sites a node serves: a hospital's node its own; node k of n in a simulation the sites k, k + n, k + 2n, …

    So the number of simulated nodes, which `flwr run` sets (to 2 unless told otherwise), does not change the federation.
    """
    if not simulated(node):
        return 1
    return len(range(int(node["partition-id"]), _site_count(config), _node_count(config, node)))


def _node_count(config: Config, node: Mapping[str, Any]) -> int:
    return int(node.get("num-partitions", 0)) or _site_count(config)


def open_site(config: Config, node: Mapping[str, Any], place: int = 0) -> Site:
    """The site that a node serves; of several, the one at `place`.

    A deployed node says so in its node-config: `manifest="/data/m.csv"`, where several sites share that manifest also
    `site="name"`, and optionally `state="/folder"`, `cache="/folder"` and `allow-download=true`; the run-config, which is the
    server's, decides none of these. A node of a simulation has a `partition-id` instead.

    Raises:
        ConfigError: the node-config says neither, or names no site of the manifest, or there is none at `place`.
        PolicyRefusal: the run wants to download and the node does not allow it.
    """
    if not 0 <= place < max(1, places(config, node)):
        raise ConfigError(f"this node serves {places(config, node)} sites, and was asked for number {place}.")
    if not simulated(node):
        config = _own_settings(config, node)
    workspace = open_workspace(config)
    if "manifest" in node:
        key: str | int = f"{node['manifest']}\n{node.get('site', '')}"
        if key not in workspace.sites:
            workspace.sites[key] = _own_data(config, str(node["manifest"]), str(node.get("site", "")))
    elif "partition-id" in node:
        key = int(node["partition-id"]) + place * _node_count(config, node)
        if key not in workspace.sites:
            workspace.sites.update(_simulated_data(config, key))
        _forget(config, workspace.sites, key)
    else:
        raise ConfigError("this node does not say which data it serves: start it with --node-config 'manifest=\"/path/of/manifest.csv\"'.")
    data = workspace.sites[key]
    return Site(data.name, data, _state_folder(config, node), workspace, durable=not simulated(node))


@lru_cache(maxsize=1)
def _site_count(config: Config) -> int:
    return len(site_names(config))


def _own_settings(config: Config, node: Mapping[str, Any]) -> Config:
    """The run's settings at a hospital: where it keeps things and what it fetches is its own decision."""
    if config.network.allow_download and node.get("allow-download") is not True:
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


def _own_data(config: Config, manifest: str, site: str) -> SiteData:
    if not Path(manifest).is_file():
        raise ConfigError(f"the node's manifest {manifest} does not exist: correct manifest=… in its --node-config.")
    own = config.with_values({"data.manifest": manifest, "partition.by": "site"})
    names = list(site_names(own))
    if site and site not in names and len(names) == 1:
        log.info("the manifest's cases (site '%s') are served as site '%s'.", names[0], site)
        return replace(load_site(own, 0), name=site)
    if site and site not in names:
        raise ConfigError(f"{manifest} has no site '{site}'; it has {', '.join(names)}.")
    if not site and len(names) != 1:
        raise ConfigError(f'{manifest} holds {len(names)} sites ({", ".join(names)}): add site="…" to the node\'s --node-config.')
    return load_site(own, names.index(site) if site else 0)


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
