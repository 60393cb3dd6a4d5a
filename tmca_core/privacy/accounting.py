"""ε of what has been released: privacy loss distributions as the headline, Opacus PRV and RDP beside it.

The headline bounds are pessimistic: discretisation and truncation err towards a larger ε. Gaussian differential privacy's
central-limit approximation is not among them, for it errs towards a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from tmca_core.errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Relation = Literal["add/remove", "replace-one"]

FINE = 1e-4  # grid of the privacy loss, the one of the published figures
GRID_ERROR = 1.5e-4  # ε grows by some 1.6 · steps · grid², so a finer grid is taken where steps · FINE² is larger than this
GRID_POINTS = 2e5  # and a coarser one where the composed loss would span more points than this
MOST_STEPS = 10**9  # far beyond any training, and beyond it composing takes minutes
PRV_SPAN = 500.0  # width of the loss beyond which Opacus' PRV accountant, whose grid is not adapted, runs out of memory


@dataclass(frozen=True)
class NoisySteps:
    """Steps of the Poisson-sampled Gaussian mechanism: one step of DP-SGD each.

    Attributes:
        noise_multiplier: σ, standard deviation of the noise over the clipping norm, above 0.
        sample_rate: q, probability with which each patient takes part in a step, (0, 1].
        steps: how many, at least 0.
        cap: most patients a step, surplus ones dropped at random; 0: every drawn patient takes part.
        patients: that are drawn from; needed with a cap only.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    cap: int = 0
    patients: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.noise_multiplier < math.inf):
            raise ConfigError(f"a noise multiplier of {self.noise_multiplier} has no finite ε; give one above 0.")
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(f"a sampling rate lies above 0 and is at most 1, not {self.sample_rate}.")
        if not 0 <= self.steps <= MOST_STEPS:
            raise ConfigError(f"{self.steps} steps cannot be accounted for: 0 to {MOST_STEPS} can.")
        if self.cap and self.cap >= self.patients > 0:
            object.__setattr__(self, "cap", 0)  # nobody is ever dropped
        if self.cap and not (self.patients > 0 and self.cap >= 2 * self.sample_rate * self.patients):
            raise ConfigError(
                f"a cap of {self.cap} patients a step, where {self.sample_rate * self.patients:g} are expected (rate {self.sample_rate:g} "
                f"of {self.patients}): dropping surplus patients costs privacy, and below twice the mean it costs too much. Raise the "
                "cap, or leave it out: a step takes any number of patients in parts."
            )


@dataclass(frozen=True)
class NoisyFigures:
    """Numbers released with their own pure or approximate guarantee under add/remove, e.g. a metric with Laplace noise."""

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.epsilon < math.inf and 0 <= self.delta <= 1):
            raise ConfigError(f"figures with ε = {self.epsilon} and δ = {self.delta} cannot be accounted for.")


PLAIN = NoisyFigures(0.0, 1.0)
"""A release without noise: it keeps no more than (0, 1), which is nothing, and no finite ε goes with it."""

Spend = NoisySteps | NoisyFigures


@dataclass(frozen=True)
class Epsilons:
    """ε of one composition by several accountants at one δ.

    Attributes:
        pld: add/remove, privacy loss distribution: the headline.
        prv, rdp: add/remove, by Opacus; None where it cannot account for what was spent (a cap, or losses far
            beyond any useful ε), or where δ is used up by figures.
        replace_one: by privacy loss distribution, where a neighbour has one patient exchanged.
    """

    pld: float
    prv: float | None
    rdp: float | None
    replace_one: float

    def to_json(self) -> dict[str, Any]:
        """As `tmca privacy plan` prints it."""
        return {
            "epsilon": {"pld": finite(self.pld), "prv": self.prv, "rdp": self.rdp},
            "relation": "add/remove",
            "replace_one": finite(self.replace_one),
        }


def finite(value: float) -> float | None:
    """A number as JSON has it: None where no ε holds, for JSON has no infinity."""
    return float(value) if math.isfinite(value) else None


def gathered(spends: Iterable[Spend]) -> tuple[Spend, ...]:
    """The same composition in its one canonical form: equal steps added up, sorted. Order plays no part in ε."""
    steps: dict[NoisySteps, int] = {}
    figures: list[NoisyFigures] = []
    for spend in spends:
        if isinstance(spend, NoisySteps):
            kind = replace(spend, steps=0, patients=spend.patients if spend.cap else 0)
            steps[kind] = steps.get(kind, 0) + spend.steps
        elif spend.epsilon or spend.delta:
            figures.append(spend)
    taken = [replace(kind, steps=number) for kind, number in steps.items() if number]
    ordered = sorted(taken, key=lambda s: (s.noise_multiplier, s.sample_rate, s.cap, s.patients))
    return (*ordered, *sorted(figures, key=lambda f: (f.epsilon, f.delta)))


def epsilon(spends: Iterable[Spend], delta: float, relation: Relation = "add/remove", *, coarse: bool = False) -> float:
    """Least ε for which the composition is (ε, δ)-private, by privacy loss distributions.

    Args:
        spends: everything released about the same patients, in any order.
        delta: of the whole composition, (0, 1).
        relation: what neighbouring data sets differ in.
        coarse: a tenth of the time, for an ε that is larger by less than 0.01 in ordinary cases; never smaller but for rounding.

    Returns:
        ε ≥ 0; infinity where no ε goes with this δ.

    Source: Koskela et al. 2020; Doroshenko et al. 2022 (connecting the dots); dp-accounting.
    """
    _check_delta(delta)
    return _epsilon(gathered(spends), delta, relation, 10.0 if coarse else 1.0)


def bounded(spend: Spend, delta: float) -> bool:
    """Whether a finite ε, of both relations, goes with this δ: none does where δ is below what the accountant leaves unaccounted."""
    ways: tuple[tuple[Relation, bool], ...] = (("add/remove", False), ("add/remove", True), ("replace-one", False))
    try:
        return all(math.isfinite(epsilon([spend], delta, relation, coarse=coarse)) for relation, coarse in ways)
    except ConfigError:
        return False


def epsilons(spends: Iterable[Spend], delta: float) -> Epsilons:
    """ε by all accountants and both neighbouring relations."""
    composition = gathered(spends)
    headline, replaced = epsilon(composition, delta), epsilon(composition, delta, "replace-one")
    return Epsilons(headline, _by_opacus("prv", composition, delta), _by_opacus("rdp", composition, delta), replaced)


def spend_to_json(spend: Spend) -> dict[str, Any]:
    """As a ledger keeps it; fields that say nothing are left out."""
    return {key: value for key, value in asdict(spend).items() if value}


def spend_from_json(value: Mapping[str, Any]) -> Spend:
    """The inverse of `spend_to_json`."""
    return NoisySteps(**{"steps": 0, **value}) if "noise_multiplier" in value else NoisyFigures(**{"epsilon": 0.0, **value})


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"δ lies between 0 and 1, not at {delta}.")


@lru_cache(maxsize=512)
def _epsilon(composition: tuple[Spend, ...], delta: float, relation: Relation, coarseness: float) -> float:
    import numpy as np

    if sum(f.delta for f in composition if isinstance(f, NoisyFigures)) >= delta:
        return math.inf
    if not composition:
        return 0.0
    composed = None
    try:
        grid = _grid(composition, coarseness)
        with np.errstate(all="ignore"):  # logarithms of probabilities that underflow to 0
            for spend in composition:
                distribution = _figures(spend, grid, relation) if isinstance(spend, NoisyFigures) else _steps(spend, grid, relation)
                composed = distribution if composed is None else composed.compose(distribution)
            assert composed is not None
            return max(0.0, float(composed.get_epsilon_for_delta(delta)))
    except OverflowError:
        raise ConfigError(
            f"no ε can be computed for {'; '.join(map(str, composition))}: the privacy loss is beyond what numbers hold. Take a noise "
            "multiplier σ between 0.02 and 1e6, and fewer steps where it is small."
        ) from None


def _grid(composition: tuple[Spend, ...], coarseness: float) -> float:
    """Spacing of the privacy loss: a power of two times `FINE`, so that cached distributions serve again."""
    steps = sum(s.steps for s in composition if isinstance(s, NoisySteps) and s.sample_rate < 1)
    finest = min(FINE, math.sqrt(GRID_ERROR / max(steps, 1))) * coarseness
    return float(FINE * 2.0 ** math.floor(math.log2(max(finest, _span(composition) / GRID_POINTS) / FINE)))


def _span(composition: tuple[Spend, ...]) -> float:
    """Rough width of the composed privacy loss, by a central-limit argument: it sizes grids, and no ε follows from it."""
    inverse = [(s.steps, s.sample_rate, s.noise_multiplier**-2) for s in composition if isinstance(s, NoisySteps)]
    squares = sum(n * min(w, q * q * math.expm1(min(w, 500.0))) for n, q, w in inverse)
    return squares / 2 + 6 * math.sqrt(squares) + sum(f.epsilon for f in composition if isinstance(f, NoisyFigures))


def _steps(spend: NoisySteps, grid: float, relation: Relation) -> PrivacyLossDistribution:
    if spend.sample_rate == 1 and not spend.cap:  # n Gaussians are one with the √n-th part of the noise
        return _one_step(spend.noise_multiplier / math.sqrt(spend.steps), 1.0, 0, 0, grid, relation)
    return _one_step(spend.noise_multiplier, spend.sample_rate, spend.cap, spend.patients, grid, relation).self_compose(spend.steps)


@lru_cache(maxsize=32)
def _one_step(sigma: float, rate: float, cap: int, patients: int, grid: float, relation: Relation) -> PrivacyLossDistribution:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    neighbours = NeighboringRelation.ADD_OR_REMOVE_ONE if relation == "add/remove" else NeighboringRelation.REPLACE_ONE
    if cap:
        return pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=patients,
            sampling_probability=rate,
            truncated_batch_size=cap,
            noise_multiplier=sigma,
            value_discretization_interval=grid,
            neighboring_relation=neighbours,
        )
    return pld.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=grid, neighboring_relation=neighbours)


def _figures(spend: NoisyFigures, grid: float, relation: Relation) -> PrivacyLossDistribution:
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as pld

    epsilon, delta = spend.epsilon, spend.delta
    if relation == "replace-one":  # one patient out, one in: a group of two (Vadhan 2017, lemma 2.2)
        epsilon, delta = 2 * epsilon, min(1.0, delta * (1 + math.exp(min(epsilon, 700.0))))
    return pld.from_privacy_parameters(common.DifferentialPrivacyParameters(epsilon, delta), value_discretization_interval=grid)


def _by_opacus(mechanism: Literal["prv", "rdp"], composition: tuple[Spend, ...], delta: float) -> float | None:
    """ε by an accountant of Opacus; figures with their own ε are added (basic composition), which is never too little."""
    if mechanism == "prv" and _span(composition) > PRV_SPAN:
        return None
    steps = [s for s in composition if isinstance(s, NoisySteps)]
    figures = [f for f in composition if isinstance(f, NoisyFigures)]
    left = delta - sum(f.delta for f in figures)
    if any(s.cap for s in steps) or left <= 0:
        return None
    added = sum(f.epsilon for f in figures)
    if not steps:
        return added
    found = _opacus_epsilon(mechanism, tuple((s.noise_multiplier, s.sample_rate, s.steps) for s in steps), left)
    return None if found is None else added + found


@lru_cache(maxsize=128)
def _opacus_epsilon(mechanism: Literal["prv", "rdp"], history: tuple[tuple[float, float, int], ...], delta: float) -> float | None:
    import warnings

    import numpy as np
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism)
    accountant.history = list(history)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # which order of RDP was best is no news
            found = float(accountant.get_epsilon(delta=delta))
    except (ValueError, RuntimeError, MemoryError, OverflowError):
        return None  # its own grid does not hold losses this large
    return found if math.isfinite(found) else None
