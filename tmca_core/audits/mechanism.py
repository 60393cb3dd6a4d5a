"""Mechanism: does one step of training hide a canary as well as its noise promises? Fast enough for a gate in CI."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmca_core.audits import claims
from tmca_core.audits.interface import AUDITS, Arm, Audit, Claim, Evidence, Fixed
from tmca_core.audits.subjects import REMADE
from tmca_core.errors import AuditInvalid, ConfigError
from tmca_core.run import Run

if TYPE_CHECKING:
    from tmca_core.audits.canaries import Test
    from tmca_core.audits.scores import Numbers
    from tmca_core.config import Config

QUIET = 1e-3  # noise of the positive control, in parts of the noise claimed
COPIED = 1e-3  # by which σ as somebody copies it from a printed line may differ from the run's
MOST_NUMBERS = 4_000_000  # of a network whose own noise is tested beside the small one's: ten seconds and half a gigabyte


@AUDITS.register("mechanism")
def mechanism(
    run: Annotated[Path | None, typer.Option(help="A run's folder: its configuration and noise are audited.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (TOML) to audit, in the place of a run.")] = None,
    noise: Annotated[float, typer.Option(min=0, help="σ that is claimed; 0: as run or configuration say, else 1.")] = 0.0,
    delta: Annotated[float, typer.Option(help="δ at which ε is stated.")] = 1e-5,
    epsilon: Annotated[float, typer.Option(help="ε that is claimed for somebody else's step or scores; 0: by σ.")] = 0.0,
    runs: Annotated[int, typer.Option(min=2, help="One-step runs with the canary, and as many without.")] = 1000,
    beta: Annotated[float, typer.Option(help="Error probability of the whole audit.")] = 0.05,
    whole: Annotated[bool, typer.Option(help="Run on the configured network, not on a small one in the same step.")] = False,
    step: Annotated[str, typer.Option(help="Somebody else's step, MODULE:FUNCTION; called with True (canary) or False.")] = "",
    quiet: Annotated[str, typer.Option(help="The same step without noise, where there is one: finds the canary's trace exactly.")] = "",
    clip: Annotated[float, typer.Option(min=0, help="The clipping norm in the units of that step's releases; 0: not known.")] = 0.0,
    scores: Annotated[Path | None, typer.Option(help="Somebody else's scores: a CSV file, or a folder of them.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Fixed threshold of those scores; else half of them choose it.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="A setting; of a run only one that changes no result, e.g. data.manifest.")
    ] = None,
) -> Audit:
    """Thousands of one-step runs with and without a canary: is it hidden as well as the noise claims, and is the noise fresh and full?"""
    if not 0 < beta < 1:
        raise ConfigError(f"--beta {beta:g}: an error probability lies between 0 and 1.")
    if sum(map(bool, (run, config, step, scores))) > 1:
        raise ConfigError("give one of --run, --config, --step and --scores.")
    if step or scores:
        if not (noise > 0) != (epsilon > 0):
            raise ConfigError("say what is claimed: --noise SIGMA for one step of the Gaussian mechanism, or --epsilon with --delta.")
        claim = claims.of_one_step(noise, delta) if noise else claims.of_epsilon(epsilon, delta)
        from tmca_core.audits.external import load_step
        from tmca_core.audits.foreign import of_scores, of_step

        if scores:
            return of_scores(scores, claim, beta=beta, threshold=threshold)
        theirs, own = load_step(step), load_step(quiet, "--quiet") if quiet else None
        return of_step(theirs, claim, runs=runs, beta=beta, quiet=own, clip=clip, name=step, quiet_name=quiet)
    settings, sigma, identity = _settings(run, config, noise, assignments)
    stated = settings.privacy.delta if run or config else delta
    audit = of_configuration(settings, sigma, delta=stated, runs=runs, beta=beta, whole=whole, named=bool(run or config))
    return replace(audit, registered={**identity, **audit.registered}, scope=REMADE if run else "")


def of_configuration(
    config: Config, noise_multiplier: float, *, delta: float, runs: int, beta: float, whole: bool = False, named: bool = False
) -> Audit:
    """The audit of the shipped step.

    Args:
        config: loss, engine, chunk, views and data are taken from it; the network too where `whole`.
        noise_multiplier: σ, claimed and set.
        named: somebody asked for this configuration: the noise of its own network's tensors is tested as well.
    """
    from tmca_core.audits.canaries import BOUND, CONTROL, QUESTION, SIZE, THREAT, enough

    claim = claims.of_one_step(noise_multiplier, delta)
    both = named and not whole
    subject = _Subject(config, claim, noise_multiplier, runs, beta, whole, both, enough(claim.mu, BOUND * beta, runs))
    registered: dict[str, Fixed] = {
        "runs_each": runs,
        "control_runs_each": subject.control_runs,
        "threshold": "half a clip above the sum without the canary, along the canary's trace",
        "noise_multiplier": noise_multiplier,
        "network": config.network.name if whole else "small",
        "noise_size_tested_on": f"small, and {config.network.name} up to {MOST_NUMBERS} numbers" if both else "these releases",
        "share_of_error_bound": BOUND,
        "share_of_error_noise_size": SIZE,
        "share_of_error_negative_control": CONTROL,
    }
    return Audit("mechanism", QUESTION, THREAT, claim, beta, registered, subject.measure)


class _Subject:
    """The shipped step with its loudest canary; made when first measured, for all arms together."""

    def __init__(
        self, config: Config, claim: Claim, sigma: float, runs: int, beta: float, whole: bool, both: bool, control_runs: int
    ) -> None:
        self.config, self.claim, self.sigma, self.runs, self.beta, self.whole = config, claim, sigma, runs, beta, whole
        self.both, self.control_runs = both, control_runs
        self.material = cache(self._material)

    def _material(self) -> tuple[Callable[[bool, float], Numbers], Test, float, list[tuple[str, int]]]:
        """The release, the test, the canary's trace in clips, and the sizes of what is released."""
        import numpy as np

        from tmca_core.audits.canaries import Test
        from tmca_core.audits.shipped import BITES, adversaries, shipped_step, with_record

        step = shipped_step(self.config, small=not self.whole)
        records = adversaries(step.others)
        lengths = {name: step.lengths(record) for name, record in records.items()}
        step = step.with_clip(BITES * max(math.hypot(*found.values()) for found in lengths.values()))
        without = step.sum_of(step.others)
        traces = {name: step.sum_of(with_record(step.others, record)) - without for name, record in records.items()}

        def loudness(name: str) -> tuple[float, float]:
            """How far a record moves the sum; among those that clipping holds alike, how loud it is in every tensor."""
            return round(float(np.linalg.norm(traces[name])), 2), sum(math.log(length + 1e-9) for length in lengths[name].values())

        canary = max(records, key=loudness)
        trace = traces[canary]
        neighbours = {True: with_record(step.others, records[canary]), False: step.others}
        length = float(np.linalg.norm(trace))
        if not (math.isfinite(length) and length > 0):
            raise AuditInvalid("the canary leaves no trace in a step: nothing could be found.")
        direction = trace / length
        test = Test(direction, float(direction @ without) + 0.5)
        return lambda member, noise: step.released(neighbours[member], noise), test, length, list(step.sizes.items())

    def measure(self, arm: Arm) -> Evidence:
        """Evidence of one arm."""
        from tmca_core.audits import canaries, repeats

        release, test, trace, sizes = self.material()
        if arm == "positive":
            scores = canaries.run(lambda member: release(member, QUIET * self.sigma), test, self.control_runs)
            return Evidence((canaries.bound(scores, test.threshold, self.claim.mu, canaries.BOUND * self.beta),), scores=scores)
        if arm == "negative":
            scores = canaries.run(lambda member: release(False, self.sigma), test, self.control_runs)
            return Evidence((canaries.bound(scores, test.threshold, 0.0, canaries.CONTROL * self.beta),), scores=scores)
        plain = partial(release, False, self.sigma)
        error = canaries.SIZE * self.beta / (2 if self.both else 1)
        configured, told = self._configured(error)
        alarms = [*configured, *canaries.beyond(trace)]
        if (again := repeats.repeated(plain)) or (again := repeats.too_small(plain, self.sigma, sizes, error)):
            alarms.append(again)
        scores = canaries.run(lambda member: release(member, self.sigma), test, self.runs)
        bound = canaries.bound(scores, test.threshold, self.claim.mu, canaries.BOUND * self.beta)
        told |= canaries.figures(bound.value, self.claim, trace, len(test.direction))
        return Evidence((bound,), tuple(alarms), scores=scores, figures=told)

    def _configured(self, error: float) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Alarms of the configured network and loss themselves, on its own data; where it was named of its noise too, and what was done."""
        from tmca_core.audits import repeats
        from tmca_core.audits.sensitivity import declared
        from tmca_core.audits.shipped import adversaries, shipped_step

        step = shipped_step(self.config, small=False)
        alarms, numbers = declared(step, next(iter(adversaries(step.others).values()))), sum(step.sizes.values())
        if not self.both:
            return alarms, {}
        what = f"noise of the network '{self.config.network.name}'"
        if numbers > MOST_NUMBERS:
            return alarms, {what: f"NOT TESTED: {numbers} numbers are more than {MOST_NUMBERS}; --whole tests them, and takes long"}
        plain = partial(step.released, step.others, self.sigma)
        small = repeats.too_small(plain, self.sigma, list(step.sizes.items()), error)
        told = {what: f"tested in {repeats.DRAWS} releases, on each of {len(step.sizes)} tensors"}
        return ((*alarms, f"in the network '{self.config.network.name}' {small}") if small else alarms), told


def _settings(
    run: Path | None, config: Path | None, noise: float, assignments: list[str] | None
) -> tuple[Config, float, Mapping[str, str]]:
    """The configuration, σ (of the option, of the configuration, or of the noise that its target asks for), and digests of what is audited.

    Raises:
        ConfigError: the option names another σ than the run's.
    """
    from tmca_core.audits.sensitivity import configured

    settings, _, identity = configured(run, config, [*(QUICK if not (run or config) else ()), *(assignments or [])], noise)
    own = _noise_of(settings, run) if run or not noise else noise
    if noise and not math.isclose(noise, own, rel_tol=COPIED):
        raise ConfigError(
            f"--noise {noise:g}: {run} trained with σ = {own:g}, and a run is audited as it was made. Leave out --noise, or --run."
        )
    return settings, own, identity


def _noise_of(settings: Config, run: Path | None) -> float:
    """A configuration's σ, the least of its places of training: of its sites, or the one of a centralised run; 1 where nobody said.

    Raises:
        AuditInvalid: the data hold no site that a centralised run trained on.
    """
    if settings.privacy.noise_multiplier:
        return settings.privacy.noise_multiplier
    if settings.privacy.target_epsilon:
        from tmca_core.privacy.planning import mechanism_of, training_patients

        patients, summary = training_patients(settings), Run(run).read_json("run.json") if run else {}
        if summary.get("engine") == "centralised":  # one place, at the rate of all who were trained on there
            arm = str(summary.get("arm"))
            patients = {name: ids for name, ids in patients.items() if arm in ("pooled", f"local:{name}")}
            if not patients:
                raise AuditInvalid(f"the data hold no site of the run's arm '{arm}'.")
            patients = {arm: sorted(set().union(*patients.values()))}
        return min(mechanism_of(settings, len(ids)).noise_multiplier for ids in patients.values())
    return 1.0


QUICK = ("data.image_size=32", "phantom.sites=1", "phantom.cases=12", "network.width=16", "network.heads=2")
"""What is audited where nothing is named: the phantom at a size at which a step takes milliseconds."""
