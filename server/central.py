"""Central differential privacy in the round loop: a fold around the algorithm's own, and what a hospital's ε is, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tmca_core.algorithms.interface import Fold, shared_only
from tmca_core.config import Config
from tmca_core.errors import BudgetExhausted, ConfigError, FederationError
from tmca_core.messages import Update
from tmca_core.privacy.central import Draw, adapted, central_epsilons, clipping, split_noise, with_noise
from tmca_core.privacy.randomness import SecureStream, Stream
from tmca_core.run import Run

if TYPE_CHECKING:
    from server.rounds import Federation

FILE = "central.json"
CLIP = "central/clip"


class CentralFold:
    """w ← the algorithm's step along (Σ_k clip_C(Δ_k) + N(0, (z_Δ·C)²)) / n, every hospital counting the same.

    n, the number that is asked, is public and does not depend on who answers. Every release is on the run's disk before its noise is
    drawn, so a round that is done again after a crash, which is another release with noise of its own, is counted again.

    Attributes:
        clip: C of the round under way.
    """

    linear = False

    def __init__(self, inner: Fold, like: Mapping[str, Tensor], config: Config, run: Run, stream: Stream | None = None) -> None:
        """Begin with the configured bound.

        Args:
            inner: of a mean-type algorithm.
            like: the shared tensors.
            config: of the run.
            run: its folder.
            stream: of the noise; None: the operating system's.
        """
        self._inner, self._config, self._run = inner, config, run
        self._stream = stream or SecureStream()
        self._sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}
        self.clip = config.central.clip
        self._within = self._answered = self._sites = 0

    def begin(self, total: int) -> None:
        """A round with `total` hospitals, each of weight 1."""
        self._sites, self._within, self._answered = total, 0, 0
        for sums in self._sums.values():
            sums.zero_()
        self._inner.begin(total)

    def add(self, update: Update) -> None:
        """Clip an update and add it; one that is not finite adds nothing."""
        factor, within = clipping({name: update.tensors[name] for name in self._sums}, self.clip)
        if factor:
            for name, sums in self._sums.items():
                sums.add_(update.tensors[name].double(), alpha=factor)
        self._answered += 1
        self._within += within

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Charge, add noise, and step.

        Raises:
            FederationError: no update was added.
            BudgetExhausted: the release would pass `central.max_epsilon`; nothing is released.
            StorageError: the release cannot be written down; nothing is released.
        """
        if not self._answered:
            raise FederationError("no update was folded, so there is no mean.")
        rules, draw = self._config.central, draw_of(self._config, self._sites)
        charge(self._run, self._config, draw)
        sigma = split_noise(rules.noise_multiplier, rules.count_noise) if rules.adaptive else rules.noise_multiplier
        noisy = with_noise(self._sums, sigma * self.clip, self._stream)
        self._inner.add(Update({name: total.div_(draw.asked) for name, total in noisy.items()}, draw.asked, {}, 0))
        self._inner.finish(weights)
        if rules.adaptive:
            self.clip = adapted(self.clip, self._within, self._answered, draw.asked, rules, self._stream)

    def state(self) -> dict[str, Tensor]:
        """The algorithm's, and C."""
        return {**self._inner.state(), CLIP: torch.tensor(self.clip, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take both back."""
        self.clip = float(state[CLIP])
        self._inner.restore({name: tensor for name, tensor in state.items() if name != CLIP})

    def broadcast(self) -> dict[str, Tensor]:
        """What the algorithm sends."""
        return self._inner.broadcast()


def draw_of(config: Config, sites: int) -> Draw:
    """How many of so many hospitals a round asks."""
    return Draw(sites, min(config.federation.cohort or sites, sites))


def releases(run: Run) -> list[Draw]:
    """The rounds that have released a model in this run, those that were done again more than once.

    Raises:
        LedgerError: the file is damaged, or missing though rounds were done.
    """
    return [Draw(sites, asked) for sites, asked in run.read_spent(FILE, lambda noted: len(noted.get("draws", []))).get("draws", [])]


def charge(run: Run, config: Config, draw: Draw) -> None:
    """Write a release down before it happens.

    Raises:
        BudgetExhausted: see `CentralFold.finish`.
        LedgerError: what was released before is not known any more.
        StorageError: it cannot be written.
    """
    rules, draws = config.central, [*releases(run), draw]
    if rules.max_epsilon:
        cost = central_epsilons(draws, rules.noise_multiplier, rules.delta).epsilon
        if cost > rules.max_epsilon:
            raise BudgetExhausted(
                f"release {len(draws)} of this run would bring a hospital's ε to {cost:.4g}, above central.max_epsilon="
                f"{rules.max_epsilon:g}: the round's model is not made. Rounds that were done again after a crash count each time."
            )
    run.write_json(FILE, {"draws": [[each.sites, each.asked] for each in draws]})


def refuse_uncentral(federation: Federation) -> None:
    """Refuse settings under which one hospital's update would count for more than its clipped norm.

    Raises:
        ConfigError: naming the setting and what to do.
    """
    config, settings = federation.config, federation.config.federation
    if not federation.fold.linear or federation.algorithm.sent is not shared_only:
        raise ConfigError(
            f"federation.algorithm={settings.algorithm} does more than add updates up, or has two sums, and noise for that is not known "
            "here: with central.enabled use fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedprox, fedbn, fedper, fedrep or ditto."
        )
    why = {
        f"federation.weighting={settings.weighting}": (
            settings.weighting != "uniform",
            "a weight would multiply the clipped norm: set uniform",
        ),
        f"federation.max_norm_ratio={settings.max_norm_ratio:g}": (
            settings.max_norm_ratio != 0,
            "one hospital's update would decide whether others' are taken; clipping bounds them all: set 0",
        ),
        f"federation.contribution_every={settings.contribution_every}": (
            settings.contribution_every != 0,
            "models without one of the hospitals tell what it adds: set 0",
        ),
        "federation.keep_replies=on": (
            settings.keep_replies == "on",
            "a round that is done again would release the same replies under the same draw a second time: set auto, which keeps none here",
        ),
        f"federation.oversample={settings.oversample:g}": (settings.oversample != 0, "who answers first would not be a random draw: set 0"),
    }
    for setting, (wrong, reason) in why.items():
        if wrong:
            raise ConfigError(f"central.enabled does not go with {setting}: {reason}.")
    if config.central.adaptive:
        split_noise(config.central.noise_multiplier, config.central.count_noise)


def announce(federation: Federation) -> None:
    """Say what the run will cost a hospital, before the first round.

    Raises:
        ConfigError: δ of one over the hospitals or more.
        BudgetExhausted: the run would pass `central.max_epsilon`.
    """
    config, rules = federation.config, federation.config.central
    sites, spent = len(federation.roster.trainers()), releases(federation.run)
    if rules.delta * sites >= 1:
        raise ConfigError(f"central.delta={rules.delta:g} is not below one over the {sites} hospitals: take less than {1 / sites:.2g}.")
    draw, left = draw_of(config, sites), config.federation.rounds - federation.round
    cost = central_epsilons([*spent, *[draw] * left], rules.noise_multiplier, rules.delta)
    others = f"{cost.replace_one:.4g} where it is exchanged for another, {cost.draws_known:.4g} against who knows when it was asked"
    text = (
        f"central differential privacy of a whole hospital among N = {sites}, {draw.asked} asked a round, {len(spent) + left} rounds, "
        f"σ = {rules.noise_multiplier:g}, δ = {rules.delta:g}: ε = {cost.epsilon:.4g} ({cost.relation}, {cost.accountant}); {others}. "
        "Against the server there is none, and the figures of evaluations are not covered."
    )
    if rules.max_epsilon and cost.epsilon > rules.max_epsilon:
        raise BudgetExhausted(
            f"{text} That is above central.max_epsilon={rules.max_epsilon:g}: more noise, fewer rounds or more hospitals."
        )
    federation.note(text)


def central_summary(config: Config, run: Run, clip: float) -> dict[str, Any]:
    """run.json's `central`: what a hospital has spent in this run."""
    rules, draws = config.central, releases(run)
    return {
        "unit": "hospital",
        **central_epsilons(draws, rules.noise_multiplier, rules.delta).as_values(),
        "delta": rules.delta,
        "noise_multiplier": rules.noise_multiplier,
        "clip": clip,
        "releases": len(draws),
        "sites": max((draw.sites for draw in draws), default=0),
        "asked": max((draw.asked for draw in draws), default=0),
        "not covered": "the server's own view, who was asked when, and the figures of evaluations",
    }
