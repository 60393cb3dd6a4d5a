"""A simulation in which things go wrong: sites that drop out, are slow, or are poisoned. All of it is outside of server and sites."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from simulations.attacks import ON_ANSWER, ON_DATA, Turn
from simulations.inprocess import Weather
from tmca_core.cases.sites import SiteData, site_names
from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.messages import PLACE, SETTINGS, TRAIN, part_of
from tmca_core.seeds import numpy_rng

# These need the grid of this process, or what one process remembers.
IN_PROCESS_ONLY = ("duplicate", "replay")


class DroppedOut(ConnectionError):
    """The site does not answer in this round."""


@dataclass(frozen=True)
class Cast:
    """Who plays what: names of the poisoned and of the slow sites, a function of the seed and of the names.

    Attributes:
        names: of all sites, sorted.
    """

    names: tuple[str, ...]
    poisoned: frozenset[str]
    slow: frozenset[str]


def cast(config: Config) -> Cast:
    """Draw it.

    Raises:
        ConfigError: a poisoned site is not one of the run's.
    """
    scenario, names = config.scenario, tuple(site_names(config))
    if unknown := sorted(set(scenario.poison_names) - set(names)):
        raise ConfigError(f"scenario.poison_sites: there is no site '{unknown[0]}'; the sites are {', '.join(names[:20])}.")
    poisoned = frozenset(scenario.poison_names) or _drawn(config, names, "poisoned", scenario.poison_share)
    return Cast(names, poisoned if scenario.poison else frozenset(), _drawn(config, names, "slow", scenario.stragglers))


def _drawn(config: Config, names: tuple[str, ...], what: str, share: float) -> frozenset[str]:
    order = numpy_rng(config.seed, "scenario", what).permutation(len(names))
    return frozenset(names[i] for i in order[: math.ceil(share * len(names) - 1e-9)])


def staged(config: Config) -> bool:
    """Whether the scenario changes anything."""
    scenario = config.scenario
    return bool(scenario.dropout or scenario.poison or (scenario.stragglers and (scenario.delay or scenario.slowness > 1)))


@dataclass
class StagedApp:
    """A ClientApp in which sites drop out or are poisoned, around the real one.

    Attributes:
        sleeps: a straggler really waits; on engines that have no clock of their own.
    """

    config: Config
    app: ClientApp
    cast: Cast
    sleeps: bool
    _data: dict[int, SiteData] = field(default_factory=dict)
    _turn: Turn | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as the scenario has it."""
        scenario, index = self.config.scenario, number_of(message, context, len(self.cast.names))
        if not 0 <= index < len(self.cast.names):
            return self.app(message, context)
        site = self.cast.names[index]
        if site in self.cast.poisoned and scenario.poison in ON_DATA:
            self._poison(index, message, context)
        if message.metadata.message_type != TRAIN:
            return self.app(message, context)
        round = int(_settings(message)["round"])
        if scenario.dropout and numpy_rng(self.config.seed, "scenario", "dropout", site, round).random() < scenario.dropout:
            raise DroppedOut(f"site '{site}' does not answer in round {round} (scenario.dropout)")
        began = time.perf_counter()
        reply = self.app(message, context)
        if self.sleeps and site in self.cast.slow:
            time.sleep((time.perf_counter() - began) * (scenario.slowness - 1) + scenario.delay)
        if site not in self.cast.poisoned or scenario.poison not in ON_ANSWER or round < scenario.poison_round or reply.has_error():
            return reply
        cohort = self.config.federation.cohort or len(self.cast.names)
        self._turn = Turn(site, cohort, scenario.poison_scale, self._turn.before if self._turn else {})
        return Message(ON_ANSWER[scenario.poison](reply.content, self._turn), reply_to=message)

    def _poison(self, index: int, message: Message, context: Context) -> None:
        """Change a site's cases, as often as its process has read them anew."""
        from client.site import place_of
        from client.workspace import open_site

        site = open_site(self.config, context.node_config, place_of(message.content))
        if site.data is not self._data.get(index):
            self._data[index] = ON_DATA[self.config.scenario.poison](site.data)
            site.workspace.sites[index] = self._data[index]


@dataclass
class StagedWeather(Weather):
    """When answers arrive in this process, and how often."""

    config: Config
    cast: Cast

    def delay(self, message: Message, context: Context, usual: float) -> float:
        """Seconds that an answer takes beyond the usual."""
        scenario = self.config.scenario
        if message.metadata.message_type != TRAIN or self._site(message, context) not in self.cast.slow:
            return 0.0
        return usual * (scenario.slowness - 1) + scenario.delay

    def copies(self, message: Message, context: Context) -> int:
        """How often an answer arrives."""
        scenario = self.config.scenario
        twice = scenario.poison == "duplicate" and message.metadata.message_type == TRAIN
        late_enough = twice and int(_settings(message)["round"]) >= scenario.poison_round
        return 2 if late_enough and self._site(message, context) in self.cast.poisoned else 1

    def _site(self, message: Message, context: Context) -> str:
        return self.cast.names[number_of(message, context, len(self.cast.names))]


def stage(config: Config, app: ClientApp) -> tuple[ClientApp, Weather]:
    """The app and the weather of a run's scenario; the very app and fair weather where there is none.

    Raises:
        ConfigError: a poisoned site is not one of the run's, or the engine cannot play the scenario.
    """
    if not staged(config):
        return app, Weather()
    elsewhere = config.simulation.engine != "inprocess"
    if elsewhere and config.scenario.poison in IN_PROCESS_ONLY:
        raise ConfigError(f"scenario.poison={config.scenario.poison} can be played in one process only: set simulation.engine=inprocess.")
    roles = cast(config)
    return StagedApp(config, app, roles, sleeps=elsewhere), StagedWeather(config, roles)  # type: ignore[return-value]


def number_of(message: Message, context: Context, sites: int) -> int:
    """Place among the sorted names of the site that a message is for, as `client.workspace.open_site` reckons it."""
    node: Mapping[str, Any] = context.node_config
    place = int(_settings(message).get(PLACE, 0))
    return int(node["partition-id"]) + place * (int(node.get("num-partitions", 0)) or sites)


def _settings(message: Message) -> Mapping[str, Any]:
    content: RecordDict = message.content
    return part_of(content, SETTINGS, ConfigRecord) or ConfigRecord()
