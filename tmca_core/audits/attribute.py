"""Attribute: does a site's update tell what kind of hospital it is: how ill its patients, which side its reports call left, its scanner?

No patient's privacy covers this, for it is true of the hospital whoever is left out; so the audit measures, and refutes nothing unless
one's own policy says what is too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tmca_core.audits.bounds import clopper_pearson_upper
from tmca_core.audits.interface import AUDITS, Arm, Audit, Bound, Claim, Evidence
from tmca_core.audits.scores import FEWEST, Numbers, Scores, dealt_anew
from tmca_core.audits.subjects import REMADE, Beta, ConfigFile, RunFolder, Settings, prepared
from tmca_core.errors import AuditInvalid, ConfigError

if TYPE_CHECKING:
    from tmca_core.audits.rehearsal import Subject
    from tmca_core.cases.case import CaseTensors

QUESTION = (
    "Can the server tell from one update of a site how ill its patients are, in which convention its reports name sides, or its scanner?"
)
THREAT = (
    "The server knows network, settings and the weights that a round starts from, sees the update of every single site, and has films and "
    "reports of its own, from which it makes updates of hospitals of either kind and learns to tell them apart."
)
FEW, MANY = 0.2, 0.8  # share of films with a large target at the two kinds of hospital
DARK, BRIGHT = 1.25, 0.8  # exponents of the display curve of the two scanners
BUCKETS, RIDGE = 256, 1.0
CONTROL = 0.1  # share of the error probability for the negative control


@AUDITS.register("attribute")
def attribute(
    run: RunFolder = None,
    config: ConfigFile = None,
    shadows: Annotated[int, typer.Option(min=1, help="Updates made for each property, in pairs: half of either kind on average.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Local steps of such an update.")] = 4,
    most: Annotated[float, typer.Option(min=0, max=1, help="AUC that one's own policy tolerates; 0: nothing is promised.")] = 0.0,
    beta: Beta = 0.05,
    assignments: Settings = None,
) -> Audit:
    """Make updates of hospitals of two kinds each, and try to tell from an update which kind it is of."""
    if shadows < FEWEST:
        raise ConfigError(f"--shadows {shadows}: {FEWEST} of either kind at least, or no share is worth stating.")
    subject, _ = prepared(run, config, assignments, 0.0, beta)
    tolerated = most or math.inf
    claim = Claim(math.inf, subject.config.privacy.delta, "hospital", "another hospital", "none", "the audit's own --most" if most else "")
    target = cache(lambda: told_apart(subject, shadows, steps))

    def measure(arm: Arm) -> Evidence:
        if subject.hidden:
            raise AuditInvalid(
                "no single site's update is seen (training in one place, or secure aggregation): there is nothing to tell from."
            )
        bare = arm == "positive" and bool(subject.mechanisms)
        found = told_apart(subject.with_values({"privacy.enabled": False}), shadows, steps) if bare else target()
        if arm == "negative":
            found = {name: dealt_anew(scores) for name, scores in found.items()}
        share = CONTROL if arm == "negative" else 1 - CONTROL
        limit = {"target": tolerated, "positive": most or 0.5, "negative": 0.5}[arm]
        bounds = tuple(bounded(name, scores, limit, share * beta / len(found)) for name, scores in found.items())
        figures: dict[str, Any] = {f"AUC of {name}": scores.auc for name, scores in found.items()}
        return Evidence(bounds, scores=max(found.values(), key=lambda scores: scores.auc), figures=figures)

    return Audit(
        "attribute",
        QUESTION,
        THREAT,
        claim,
        beta,
        {
            **subject.identity,
            "shadows": f"{2 * shadows}, the kind of each by a fair coin",
            "local_steps": steps,
            "properties": ", ".join(PROPERTIES),
            "classifier": f"ridge regression on lengths by tensor and {BUCKETS} sums of coordinates with random signs",
            "bound": "right guesses of all updates but the first quarter, each by those before it (Clopper-Pearson)",
            "tolerated_auc": most or "nothing is promised",
            "positive_control": "the same updates without noise" if subject.mechanisms else "the target, which has none",
            "negative_control": "the target's scores, kinds dealt anew",
            "share_of_error_negative_control": CONTROL,
        },
        measure,
        informs_only=not most,
        scope=REMADE if run else "",
    )


def _prevalence(pool: CaseTensors, size: int, kind: bool, rng: np.random.Generator) -> CaseTensors:
    area = pool.masks.flatten(1).float().mean(1).numpy()
    large = area > np.median(area)
    rows = np.where(
        rng.random(size) < (MANY if kind else FEW), rng.choice(np.flatnonzero(large), size), rng.choice(np.flatnonzero(~large), size)
    )
    return pool.subset(rows.tolist())


def _sides(pool: CaseTensors, size: int, kind: bool, rng: np.random.Generator) -> CaseTensors:
    from tmca_core.text.sides import swap_sides

    drawn = pool.subset(rng.choice(len(pool), size).tolist())
    if not kind:
        return drawn
    return replace(drawn, cases=[replace(case, text=swap_sides(case.text)) for case in drawn.cases])


def _scanner(pool: CaseTensors, size: int, kind: bool, rng: np.random.Generator) -> CaseTensors:
    import torch

    drawn = pool.subset(rng.choice(len(pool), size).tolist())
    curved = (drawn.images.float() / 255) ** (BRIGHT if kind else DARK)
    return replace(drawn, images=(255 * curved).round().to(torch.uint8))


Kinds = np.ndarray[Any, np.dtype[np.bool_]]
Property = Callable[["CaseTensors", int, bool, np.random.Generator], "CaseTensors"]

PROPERTIES: Mapping[str, Property] = {"prevalence": _prevalence, "side convention": _sides, "scanner": _scanner}
"""How cases of the one or the other kind of hospital are drawn: pool, number, kind, generator → cases."""


def told_apart(subject: Subject, shadows: int, steps: int) -> dict[str, Scores]:
    """Scores of updates of hospitals whose kind a coin dealt, each by a classifier that was fitted to those before it, by property."""
    from tmca_core.audits.subjects import fair_coins
    from tmca_core.training.centralised import concatenate

    pool = concatenate([site.train for site in subject.sites.values()])
    site = max(subject.sites, key=lambda name: len(subject.sites[name].train))
    size = min(len(subject.sites[site].train), max(1, len(pool) // 2))
    rng = np.random.default_rng(np.frombuffer(fair_coins(128).tobytes(), np.uint8))
    subject = subject.with_values({"training.steps": steps, "federation.rounds": 1})
    if subject.mechanisms:
        subject = replace(subject, mechanisms={name: replace(m, steps=steps) for name, m in subject.mechanisms.items()})
    found = {}
    for name, draw in PROPERTIES.items():
        if name == "side convention" and not subject.network.uses_text:
            continue
        kinds = fair_coins(2 * shadows)
        features = np.stack([_features(subject, site, draw(pool, size, bool(kind), rng)) for kind in kinds])
        if not np.isfinite(features).all():
            raise AuditInvalid("an update is not finite: training diverged, so there is nothing to tell from.")
        scores, asked = one_after_another(features, kinds)
        found[name] = Scores(scores[asked], scores[~asked]).insist(FEWEST // 2)
    return found


def _features(subject: Subject, site: str, data: CaseTensors) -> Numbers:
    """(T + BUCKETS,) of one site's update: log-lengths of its T tensors, and its direction, sketched.

    Source of the sketch: Charikar, Chen and Farach-Colton 2002; inner products are kept on average.
    """
    import torch

    from tmca_core.audits.rehearsal import rehearse
    from tmca_core.networks import shared_state

    seen = next(rehearse(subject, {site: data})).sites[site]
    update = {name: seen[name] - subject.start[name] for name in shared_state(subject.network)}
    flat = torch.cat([tensor.flatten() for tensor in update.values()])
    generator = torch.Generator().manual_seed(0)  # of the attacker's choice: the same for every update
    bucket = torch.randint(BUCKETS, flat.shape, generator=generator)
    signs = torch.randint(2, flat.shape, generator=generator) * 2 - 1
    sketch = torch.zeros(BUCKETS).index_add_(0, bucket, flat / flat.norm().clamp_min(1e-20) * signs)
    lengths = torch.stack([tensor.norm() for tensor in update.values()]).clamp_min(1e-20).log()
    return torch.cat([lengths, sketch]).double().numpy()


def one_after_another(features: Numbers, kinds: Kinds) -> tuple[Numbers, Kinds]:
    """Scores of all updates but the first quarter, and their kinds: ridge regression of ±1 on standardised features of those before each.

    Args:
        features: (n, d).
        kinds: (n,).
    """
    truth, first = np.where(kinds, 1.0, -1.0), len(kinds) // 4
    scores = []
    for count in range(first, len(kinds)):
        mean, spread = features[:count].mean(0), features[:count].std(0) + 1e-9
        known, asked = (features[:count] - mean) / spread, (features[count] - mean) / spread
        gram = known @ known.T / features.shape[1]
        dual = np.linalg.solve(gram + RIDGE / count * np.eye(count), truth[:count] - truth[:count].mean())
        scores.append(float(asked @ known.T @ dual / features.shape[1]))
    return np.array(scores), kinds[first:]


def bounded(name: str, scores: Scores, limit: float, error: float) -> Bound:
    """The bound on AUC that right guesses by the sign of the score give (Clopper and Pearson 1934).

    Whatever an attacker learnt from the updates before, its guess of a kind that a fair coin dealt is right with probability
    (TPR + TNR)/2, which is at most the AUC of the best attack, whose ROC is concave. So n guesses are right no more often than n coins
    of that AUC, and the bound is exact however few they are.
    """
    right, guesses = int((scores.members > 0).sum() + (scores.others <= 0).sum()), len(scores.members) + len(scores.others)
    value, most = (1 - clopper_pearson_upper(guesses - count, guesses, error) for count in (right, guesses))
    return Bound(f"{name}, told from one update", "AUC", value, limit, most, 1 - error)
