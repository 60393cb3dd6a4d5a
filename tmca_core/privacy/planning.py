"""Before any training: the ε of a noise, the noise for an ε, and whether enough patients are there for the signal to survive it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tmca_core.config import Config
from tmca_core.errors import BudgetExhausted, ConfigError
from tmca_core.privacy.accounting import PLAIN, Epsilons, NoisySteps, Spend, bounded, epsilon, epsilons
from tmca_core.privacy.mechanism import Mechanism

WORKABLE, DROWNED = 1.0, 4.0
"""Length of the noise over the longest signal, over a whole run: up to the first half of a fine-tuning's gain stays or more, from the
second on a third or less. Measured: docs/privacy.md, "How many patients"."""

USEFUL_EPSILON = 10.0  # beyond it the guarantee says little, so patients who need more are too few
SMALLEST_NOISE, LARGEST_NOISE = 0.02, 1e6
NOISE_STEP = 1e-4  # noise multipliers are rounded up to multiples of it; from 10 on, to five digits


@dataclass(frozen=True)
class Signal:
    """How loud the noise is, beside a signal as strong as clipping lets it be: every patient's gradient of norm C, all alike.

    With N patients, rate q, T steps and d trained numbers, along any one direction the mean update's noise is σ/(qN) of C a step and
    σ/(qN√T) of the whole way; over all directions together √d times that. At a given ε the last depends on N alone: σ/(q√T) is
    hardly below the noise of one full-batch release of that ε, however steps and rate are chosen.

    Attributes:
        step: σ/(qN).
        run: σ/(qN√T).
        length: run·√d, what the verdict goes by.
        parameters: d.
        verdict: workable, weak or drowned.
        patients_needed: for a workable length at this σ, q and T.
        patients_useful: for a length that is not drowned, at the largest useful ε and the best σ, q and T.
    """

    step: float
    run: float
    length: float
    parameters: int
    verdict: str
    patients_needed: int
    patients_useful: int


@dataclass(frozen=True)
class Plan:
    """What a run will cost at one hospital.

    Attributes:
        rate, noise_multiplier, steps, delta: q, σ, T and δ.
        epsilon: of the run, with everything spent before.
        spent: ε before the run; 0 where nothing was.
        patients: that train; None where nobody said.
        signal: None where nobody said how many patients.
    """

    rate: float
    noise_multiplier: float
    steps: int
    delta: float
    epsilon: Epsilons
    spent: float = 0.0
    patients: int | None = None
    signal: Signal | None = None

    def to_json(self) -> dict[str, Any]:
        """As `tmca privacy plan --json` prints it."""
        more = {} if self.signal is None else {"patients": self.patients, "signal": asdict(self.signal)}
        numbers = {"noise_multiplier": self.noise_multiplier, "rate": self.rate, "steps": self.steps, "delta": self.delta}
        return {**self.epsilon.to_json(), **numbers, "spent": self.spent, **more}


def make_plan(
    rate: float,
    steps: int,
    delta: float,
    *,
    noise: float = 0.0,
    target: float = 0.0,
    before: Sequence[Sequence[Spend]] = ((),),
    patients: int | None = None,
    parameters: Callable[[], int] | None = None,
) -> Plan:
    """The plan for one hospital.

    Args:
        rate: q.
        steps: T, of the whole run.
        delta: δ.
        noise: σ; 0: the least that keeps `target`.
        target: ε that must not be passed, spent before included; 0: as the noise gives.
        before: what was released about the patients, one list for each group of them (`Spent.compositions`).
        patients: N that train; None: no word about the signal.
        parameters: gives d, the trained numbers; needed with `patients`.

    Raises:
        ConfigError: no noise with a finite ε, δ of one over the patients or more, or noise that does not keep the target.
        BudgetExhausted: what is spent leaves nothing of the target.
    """
    if patients is not None and delta * patients >= 1:
        raise ConfigError(
            f"δ = {delta:g} is not below one over the {patients} patients: it would allow to publish a whole patient at random. "
            f"Take less than {1 / patients:.2g}, better {10 ** math.floor(math.log10(0.1 / patients)):g}."
        )
    if not noise and not target:
        raise ConfigError("without noise there is no finite ε: give a noise multiplier above 0, or a target for ε.")
    if any(PLAIN in spends for spends in before):
        raise BudgetExhausted(
            "plain updates of these patients have left before (`tmca privacy ledger show`): no noise gives them a finite ε. Without the "
            "ledger the plan is of the run alone."
        )
    spent = max(epsilon(spends, delta) for spends in before)
    sigma = noise or noise_for(target, rate, steps, delta, before)
    run = NoisySteps(sigma, rate, steps)
    worst = max(([*spends, run] for spends in before), key=lambda spends: epsilon(spends, delta))
    found = epsilons(worst, delta)
    if not math.isfinite(found.pld):
        raise ConfigError(f"no finite ε goes with δ = {delta:g}: it is too small or used up. Take a larger δ, below one over the patients.")
    if target and found.pld > target:
        raise ConfigError(
            f"a noise multiplier of {noise:g} gives ε = {found.pld:.4f}, above the target of {target:g}. "
            "Leave it out to have the least sufficient noise found, or raise the target."
        )
    signal = None
    if patients is not None:
        if parameters is None:
            raise ConfigError("how far noise drowns the signal depends on the number of trained parameters: give it.")
        signal = signal_of(run, patients, parameters(), delta)
    return Plan(rate, sigma, steps, delta, found, spent, patients, signal)


def noise_for(target: float, rate: float, steps: int, delta: float, before: Sequence[Sequence[Spend]] = ((),)) -> float:
    """Least σ, rounded up in its fourth decimal, whose ε (PLD, add/remove) stays within `target`.

    Raises:
        BudgetExhausted: what is spent leaves nothing of the target.
    """
    from scipy.optimize import brentq

    def excess(sigma: float, coarse: bool) -> float:
        return max(epsilon([*spends, NoisySteps(sigma, rate, steps)], delta, coarse=coarse) for spends in before) - target

    spent = max(epsilon(spends, delta) for spends in before)
    if spent >= target:
        raise BudgetExhausted(f"ε = {spent:.4f} is spent already, and the target is {target:g}: nothing is left for a run.")
    high = 1.0
    while excess(high, True) > 0:
        if high > LARGEST_NOISE:
            raise BudgetExhausted(f"no noise keeps ε within {target:g}, of which {spent:.4f} is spent: nothing is left for a run.")
        high *= 2
    low = high / 2
    while low > SMALLEST_NOISE and excess(low, True) <= 0:
        high, low = low, low / 2
    if excess(low, True) <= 0:
        return low
    rough = float(brentq(excess, low, high, args=(True,), xtol=NOISE_STEP))
    tick = NOISE_STEP * 10.0 ** max(0, math.floor(math.log10(rough)))
    slope = tick * (excess(0.99 * rough, True) - excess(1.01 * rough, True)) / (0.02 * rough)  # of ε, a tick
    ticks = math.ceil(rough / tick)
    for _ in range(4):  # the fine grid asks for a little less noise than the coarse one: a Newton step or two
        move = math.ceil(excess(ticks * tick, False) / slope) if slope > 0 else 0
        if move == 0:
            break
        ticks += move
    while excess(round(ticks * tick, 9), False) > 0:
        ticks += 1
    return round(ticks * tick, 9)


def signal_of(run: NoisySteps, patients: int, parameters: int, delta: float) -> Signal:
    """How loud a run's noise is, and for how many patients it would not be too loud."""
    total = run.noise_multiplier / (run.sample_rate * math.sqrt(run.steps))  # of one patient's signal; the more patients, the less
    length = total / patients * math.sqrt(parameters)
    best = min(total, noise_for(USEFUL_EPSILON, 1.0, 1, delta)) * math.sqrt(parameters)
    verdict = "workable" if length <= WORKABLE else "weak" if length < DROWNED else "drowned"
    return Signal(
        step=run.noise_multiplier / (run.sample_rate * patients),
        run=total / patients,
        length=length,
        parameters=parameters,
        verdict=verdict,
        patients_needed=math.ceil(total * math.sqrt(parameters) / WORKABLE),
        patients_useful=math.ceil(best / DROWNED),
    )


def schedule(config: Config, patients: int) -> tuple[float, int]:
    """Sampling rate, and steps a round, of private training with so many patients: `epochs` passes are epochs/q steps."""
    rate = config.privacy.sample_rate or min(1.0, config.training.batch_size / patients)
    return rate, config.training.steps or config.training.epochs * math.ceil(1 / rate)


def mechanism_of(config: Config, patients: int) -> Mechanism:
    """What a site with so many training patients does in every step: from public settings and a public count alone.

    Raises:
        ConfigError: see `make_plan`.
    """
    rate, steps = schedule(config, patients)
    privacy = config.privacy
    sigma = _planned(rate, steps * config.federation.rounds, privacy.delta, privacy.noise_multiplier, privacy.target_epsilon, patients)
    return Mechanism(sigma, privacy.clip, rate, rate * patients, steps)


@lru_cache(maxsize=1024)
def _planned(rate: float, steps: int, delta: float, noise: float, target: float, patients: int) -> float:
    if delta * patients >= 1:
        make_plan(rate, steps, delta, noise=noise, target=target, patients=patients)  # says what is wrong
    sigma = noise or noise_for(target, rate, steps, delta)
    if not bounded(NoisySteps(sigma, rate, steps), delta):
        raise ConfigError(
            f"no finite ε goes with δ = {delta:g} for {steps} steps of σ = {sigma:g} and q = {rate:g}: take a larger privacy.delta (below "
            "one over the patients, such as 1e-5), or more noise."
        )
    return sigma


def training_patients(config: Config) -> dict[str, list[str]]:
    """Ids of every site's training patients, by the manifest and the split of the seed; of the phantom where there is no manifest.

    Raises:
        ManifestError: the manifest cannot be used.
    """
    from tmca_core.cases.sites import load_sites, manifest_of, split_as_set

    if config.data.manifest and config.partition.by == "site":
        table = manifest_of(Path(config.data.manifest), config.data, own_sides=config.privacy.enabled)
        listed = [case for case in table.cases if case.masks]
        cases = split_as_set(listed, config)
    else:
        cases = [case for site in load_sites(config).values() for case in site.train.cases]
    found: dict[str, set[str]] = {}
    for case in cases:
        if case.split == "train":
            found.setdefault(case.site, set()).add(case.patient_id)
    return {site: sorted(found[site]) for site in sorted(found)}


def trained_numbers(config: Config) -> int:
    """Trainable numbers of the configured network that leave a site: what noise is added to."""
    from tmca_core.networks import build_network, shared_state

    return sum(tensor.numel() for tensor in shared_state(build_network(config, started=False)).values())
