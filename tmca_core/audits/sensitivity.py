"""Sensitivity: how far one patient can move the sum that noise is added to, on the real step of a real configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tmca_core.audits import claims
from tmca_core.audits.interface import AUDITS, Arm, Audit, Bound, Claim, Evidence
from tmca_core.audits.subjects import REMADE, elsewhere

if TYPE_CHECKING:
    from tmca_core.audits.shipped import Shipped
    from tmca_core.config import Config

SLACK = 1e-4  # of float32 sums; the start-up self-test allows the same
ONE_OFF = 1e-3  # relative error of one case's gradient, or coupling of cases, that is no rounding

RunFolder = Annotated[Path | None, typer.Option(help="A run's folder: its configuration is audited.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Configuration (TOML) to audit, in the place of a run.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, e.g. privacy.clip=0.5; of a run only one that changes no result, e.g. data.manifest."),
]


@AUDITS.register("sensitivity")
def sensitivity(run: RunFolder = None, config: ConfigFile = None, assignments: Settings = None) -> Audit:
    """Remove and exchange one patient in a real step, with records made to do harm: is the sum moved by more than was accounted?"""
    from tmca_core.audits.shipped import shipped_step

    settings, claim, identity = configured(run, config, assignments)
    shipped = cache(lambda: shipped_step(settings, small=False))
    return Audit(
        name="sensitivity",
        question="Can one patient, whatever the images and reports, move the sum of a training step by more than the clip that the "
        "noise is measured in?",
        threat_model="None: the auditor reads the sum of a step before noise is added, with and without one patient, on this very network, "
        "loss and configuration. What is found here is not a probability but a fact about the sum.",
        claim=claim,
        beta=0.0,
        registered={
            **identity,
            "network": settings.network.name,
            "clip": settings.privacy.clip,
            "slack": SLACK,
            "neighbours": "remove-one ≤ 1 clip, replace-one ≤ 2 clips",
        },
        measure=lambda arm: measured(shipped(), arm),
        scope=REMADE if run else "",
    )


def configured(
    run: Path | None, config: Path | None, assignments: list[str] | None, noise: float = 0.0
) -> tuple[Config, Claim, Mapping[str, str]]:
    """The configuration to audit, the claim that goes with it, and digests of it and its data: of a run, of a file, or of the phantom.

    Args:
        noise: σ that is claimed of a configuration's step whatever it says itself; 0: none is.

    Raises:
        ConfigError: both a run and a file are given, or a setting would make another run of it.
        NotApplicable: what is given has no privacy, so that its steps neither clip nor add noise.
        AuditInvalid: the folder is no whole run, or its ledger does not match it.
    """
    from tmca_core.audits.rehearsal import material_of
    from tmca_core.config import load
    from tmca_core.errors import ConfigError, NotApplicable

    if run and config:
        raise ConfigError("give a run's folder or a configuration, not both.")
    if run:
        claim, settings = claims.of_run(run), elsewhere(claims.config_of(run), assignments or [])
    else:
        settings = load(config, assignments or [])
        sigma = settings.privacy.noise_multiplier
        claim = claims.of_one_step(sigma, settings.privacy.delta) if sigma else claims.of_epsilon(float("inf"), settings.privacy.delta)
    if (run or (config and not noise)) and not settings.privacy.enabled:
        raise NotApplicable(f"{run or config} trains without privacy: its steps neither clip nor add noise, so there is none to audit.")
    return settings, claim, material_of(run, settings).identity


def measured(step: Shipped, arm: Arm) -> Evidence:
    """Evidence of one arm: of the step, of one as if nothing were clipped, and of two sums of the same patients."""
    from tmca_core.audits.shipped import BITES, adversaries

    records = adversaries(step.others)
    loudest = max(math.hypot(*step.lengths(record).values()) for record in records.values())
    if arm == "positive":  # as if nothing were clipped: a clip that no gradient reaches, held against a hundredth of it
        removed, exchanged = _moved(step.with_clip(loudest), records)
        return Evidence((_bound("remove-one", 100 * max(removed.values()), 1), _bound("replace-one", 100 * exchanged, 2)))
    tight = step.with_clip(BITES * loudest)
    if arm == "negative":  # the same patients twice: there is no neighbour
        return Evidence(bounds=(_bound("remove-one", float(np.linalg.norm(tight.sum_of(step.others) - tight.sum_of(step.others))), 1),))
    found = {clip: _moved(step.with_clip(clip), records) for clip in (step.clip, tight.clip)}
    alarms = declared(step, next(iter(records.values())))
    worst = {clip: max(removed, key=removed.__getitem__) for clip, (removed, _) in found.items()}
    figures: dict[str, Any] = {
        "trained numbers": sum(step.sizes.values()),
        "records tried": len(records),
        "longest gradient before clipping": loudest,
    }
    for clip, (removed, replaced) in found.items():
        figures[f"remove-one at clip {clip:.2g}"] = f"{removed[worst[clip]]:.6f} clips, by '{worst[clip]}'"
        figures[f"replace-one at clip {clip:.2g}"] = f"{replaced:.6f} clips"
    largest = max(removed[worst[clip]] for clip, (removed, _) in found.items())
    exchanged = max(replaced for _, replaced in found.values())
    return Evidence(bounds=(_bound("remove-one", largest, 1), _bound("replace-one", exchanged, 2)), alarms=alarms, figures=figures)


def _moved(step: Shipped, records: dict[str, Any]) -> tuple[dict[str, float], float]:
    """How far each record moves the sum, and how far the worst exchange of two, in clips."""
    from tmca_core.audits.shipped import with_record
    from tmca_core.privacy.training import patients_of

    without = step.sum_of(step.others)
    sums = {name: step.sum_of(with_record(step.others, record)) for name, record in records.items()}
    made_up = list(sums.values())
    for k, rows in enumerate(patients_of(step.others)):
        kept = [i for i in range(len(step.others)) if i not in rows]
        sums[f"the site's patient {k + 1}, left out"] = step.sum_of(step.others.subset(kept))
    removed = {name: float(np.linalg.norm(found - without)) for name, found in sums.items()}
    return removed, max(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(made_up, 2))


def declared(step: Shipped, record: Any) -> tuple[str, ...]:
    """Whether cases are looked at one by one, as losses declare: alarms where they are not."""
    from tmca_core.audits.shipped import BITES, with_record

    step = step.with_clip(BITES * math.hypot(*step.lengths(record).values()))
    step.sum_of(step.others)
    moved = step.uncovered()
    found = step.self_test(with_record(step.others, record))
    alarms = []
    if not found.gradient_error <= ONE_OFF:
        alarms.append(f"gradients of single cases are wrong by {found.gradient_error:.2g} against one backward pass a case")
    if not found.coupling <= ONE_OFF:
        alarms.append(
            f"a case's loss changes with the other cases of its batch (its gradient by {found.coupling:.2g}), although the loss declares "
            "itself decomposable"
        )
    if not found.influence <= 1 + SLACK:
        alarms.append(
            f"removing one patient moves the sum of the configured network by {found.influence:.4g} clips, and 1 is accounted for"
        )
    if moved:
        alarms.append(f"tensors that no noise covers are moved by a step: {', '.join(moved[:5])}")
    return tuple(alarms)


def _bound(name: str, value: float, clips: int) -> Bound:
    return Bound(name, "clips", value, clips * (1 + SLACK))
