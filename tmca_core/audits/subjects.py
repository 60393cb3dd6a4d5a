"""Which training is audited, and what is claimed for all of it: a run's folder, a configuration, or the phantom with settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from tmca_core.audits import claims
from tmca_core.audits.interface import Claim
from tmca_core.config import Config, load
from tmca_core.errors import ConfigError

if TYPE_CHECKING:
    from tmca_core.audits.rehearsal import Subject
    from tmca_core.cases.case import CaseTensors

RunFolder = Annotated[Path | None, typer.Option(help="A run's folder: its training is made again from its configuration and data.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Configuration (TOML) to audit, in the place of a run.")]
Held = Annotated[float, typer.Option(min=0, help="ε to hold against in the place of the run's own claim; 0: the run's.")]
Beta = Annotated[float, typer.Option(help="Error probability of the whole audit.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting; of a run only one that changes no result, e.g. data.manifest."),
]

REMADE = "on training made again from the run's configuration, the released weights themselves not being attacked"
REMADE_AND_RELEASED = "on training made again from the run's configuration, and on the released weights by a threshold on the loss"


def prepared(run: Path | None, config: Path | None, assignments: list[str] | None, epsilon: float, beta: float) -> tuple[Subject, Claim]:
    """The training, and what it promises of a patient.

    Args:
        epsilon: that is claimed in the place of what run or configuration state; 0: theirs.

    Raises:
        ConfigError: options that do not go together.
        AuditInvalid: a run that does not hold together, or whose training cannot be made again.
    """
    from tmca_core.audits.rehearsal import subject_of

    if run and config:
        raise ConfigError("give a run's folder or a configuration, not both.")
    if not 0 < beta < 1:
        raise ConfigError(f"--beta {beta:g}: an error probability lies between 0 and 1.")
    if run:
        claim, settings = claims.of_run(run), elsewhere(claims.config_of(run), assignments or [])
        subject = subject_of(run, settings)
    else:
        subject = subject_of(None, load(config, assignments or []))
        claim = planned(subject)
    if epsilon:
        claim = claims.of_epsilon(epsilon, claim.delta, claim.unit, claim.relation)
    return subject, claim


def planned(subject: Subject) -> Claim:
    """What a whole training will cost by its configuration: the largest ε of its sites."""
    from tmca_core.privacy.accounting import NoisySteps, epsilon

    delta, rounds = subject.config.privacy.delta, subject.rounds
    spent = {
        epsilon([NoisySteps(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps * rounds)], delta)
        for mechanism in set(subject.mechanisms.values())
    }
    if not spent:
        return Claim(float("inf"), delta, accountant="none", source="the configuration has no privacy")
    return Claim(max(spent), delta, source=f"the configuration, the largest of {len(subject.mechanisms)} places of training")


def held_out(sites: Mapping[str, CaseTensors], out: Callable[[str], bool]) -> dict[str, CaseTensors]:
    """The sites' cases without those of patients for whom `out` says so, called with `key`."""
    return {
        site: data.subset([i for i, case in enumerate(data.cases) if not out(key(site, case.patient_id))]) for site, data in sites.items()
    }


def key(site: str, patient: str) -> str:
    """A patient's name across hospitals, whose numberings may coincide."""
    return f"{site}/{patient}"


def fair_coins(*shape: int) -> NDArray[np.bool_]:
    """Independent fair coins of the operating system: nothing that an attack could learn from a seed."""
    count = int(np.prod(shape))
    bits = np.unpackbits(np.frombuffer(secrets.token_bytes(-(-count // 8)), np.uint8))[:count]
    return bits.astype(bool).reshape(shape)


def elsewhere(settings: Config, assignments: list[str]) -> Config:
    """A run's configuration with paths and the like set otherwise.

    Raises:
        ConfigError: a setting would make it another run.
    """
    named = {assignment.partition("=")[0].strip() for assignment in assignments}
    changed = settings.with_values({name: value for name, value in load(None, assignments).flat().items() if name in named})
    if changed.digest() != settings.digest():
        raise ConfigError(f"--set {', '.join(sorted(named))} would audit another training than the run's: leave out --run, or the setting.")
    return changed
