"""Differential privacy of whole hospitals, by clipping and noise at the server: what a round does, and what it costs.

Who is protected against whom: a hospital, with all it has, against everybody who sees the models, the other hospitals among them; not
against the server, which sees single updates. With the few hospitals of a consortium it costs nearly everything
(docs/secure.md), so ε is said before a run begins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmca_core.config import CentralSettings
from tmca_core.errors import ConfigError
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.randomness import Stream, gaussian, noised

_SAFETY = 1 - 2.0**-40
"""A clipped update is this much shorter than the bound, so that rounding does not make it longer."""


# --- what a round does ------------------------------------------------------------------------------
def clipping(tensors: Mapping[str, Tensor], clip: float) -> tuple[float, bool]:
    """(factor that brings an update to a norm of `clip` at most, whether it was within).

    An update of nothing but zeros is within, with the factor 1; one with a value that is not finite counts with the factor 0, and not
    as within. Norms are taken in float64, for float32's own sum over millions of squares may be too small.
    """
    norm = math.hypot(*(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in tensors.values()))
    if not math.isfinite(norm):
        return 0.0, False
    return (1.0, True) if norm <= clip else (clip / norm * _SAFETY, False)


def split_noise(noise_multiplier: float, count_noise: float) -> float:
    """Noise multiplier of the updates where the noised count of unclipped ones is released too: z_Δ = (z⁻² − (2σ_b)⁻²)^−½.

    Both together are then one Gaussian mechanism of multiplier z. Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, theorem 1.

    Args:
        noise_multiplier: z, of both together.
        count_noise: σ_b, standard deviation of the noise on Σ (b − ½), to which a hospital adds ½ or takes it away.

    Raises:
        ConfigError: the count alone would use up more than all.
    """
    if not 2 * count_noise > noise_multiplier:
        raise ConfigError(
            f"central.count_noise={count_noise:g} is too little: the noised count of unclipped updates alone would cost more than "
            f"central.noise_multiplier={noise_multiplier:g} allows. It must be above {noise_multiplier / 2:g}."
        )
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * count_noise) ** -2)


def adapted(clip: float, within: int, answered: int, asked: int, settings: CentralSettings, stream: Stream) -> float:
    """The next round's bound: C · exp(−η (b̄ − γ)), with b̄ the noised share of updates that were within the bound, UNCLIPPED.

    Where more than γ of them were unclipped the bound is too wide and falls; Flower 1.41 has the sign the other way round.
    b̄ = ½ + (Σ (b − ½) + N(0, σ_b²)) / n over the n that were asked: who does not answer counts as undecided, and n is public.
    Source: Andrew et al. 2021, algorithm 1.

    Args:
        within: updates that were not clipped. `answered`: all of them. `asked`: n.
        stream: of the noise.
    """
    noise = settings.count_noise * float(gaussian(1, stream)[0])
    share = 0.5 + (within - answered / 2 + noise) / asked
    return clip * math.exp(-settings.clip_rate * (share - settings.quantile))


def with_noise(sums: Mapping[str, Tensor], std: float, stream: Stream) -> dict[str, Tensor]:
    """The sums with Gaussian noise, float64; same names and shapes."""
    found = {}
    for name, total in sums.items():
        flat = noised(total.reshape(-1).numpy(), std, stream)
        found[name] = torch.from_numpy(flat).view(total.shape)
    return found


def drawn_secretly(count: int, size: int, stream: Stream) -> list[int]:
    """`size` of `count` indices, every set alike, ascending; by the operating system's randomness, for what a seed draws is known."""
    keys = np.frombuffer(stream.read(8 * count), np.uint64)
    return sorted(int(index) for index in np.argsort(keys, kind="stable")[:size])


# --- what it costs ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Draw:
    """A round's cohort: so many hospitals were asked of so many that were there."""

    sites: int
    asked: int

    def __post_init__(self) -> None:
        if not 1 <= self.asked <= self.sites:
            raise ConfigError(f"a cohort of {self.asked} hospitals cannot be drawn from {self.sites}.")


@dataclass(frozen=True)
class CentralEpsilons:
    """ε of a hospital at one δ.

    Attributes:
        epsilon: against who sees the models; `relation`: which neighbours it is for, `accountant`: who computed it.
        replace_one: the same where a hospital is exchanged for another.
        draws_known: add/remove, against who knows in which rounds the hospital was asked as well, for one that was asked in all.
    """

    epsilon: float
    relation: str
    accountant: str
    replace_one: float
    draws_known: float

    def as_values(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def central_epsilons(draws: Iterable[Draw], noise_multiplier: float, delta: float) -> CentralEpsilons:
    """ε of rounds in which the sum of the clipped updates got noise of σ clipping norms.

    Where all were asked in every round, that is a composition of Gaussians, accounted under add/remove by PLD. A cohort of fixed size is
    not Poisson sampling, whose ε is smaller: it is accounted as sampling without replacement, which has a proof under replace-one only.
    Exchanging a hospital moves the sum by up to 2 clips, so the noise counts there with σ/2. Never more than without any sampling.

    Args:
        draws: one for each round that released a model.
        noise_multiplier: σ, in clipping norms.
        delta: of all rounds together, below one over the hospitals.

    Source: Wang, Balle, Kasiviswanathan 2019, theorem 27, by dp-accounting's RDP accountant.
    """
    rounds = Counter(draws)
    known = NoisySteps(noise_multiplier, 1.0, sum(rounds.values()))
    every, exchanged = epsilon([known], delta), epsilon([known], delta, "replace-one")
    if all(draw.asked == draw.sites for draw in rounds):
        return CentralEpsilons(every, "add/remove", "PLD", exchanged, every)
    sampled = min(_without_replacement(rounds, noise_multiplier, delta), exchanged)
    return CentralEpsilons(sampled, "replace-one", "RDP of sampling without replacement", sampled, every)


def _without_replacement(rounds: Mapping[Draw, int], noise_multiplier: float, delta: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
    for draw, count in rounds.items():
        accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(draw.sites, draw.asked, gaussian), count)
    return float(accountant.get_epsilon(delta))
