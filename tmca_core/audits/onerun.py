"""One run: canary patients, each in by a coin of its own, in one training; how many does it give away?"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tmca_core.audits import claims
from tmca_core.audits.guesses import CONTROL, as_if_gaussian, attainable, bounds, guesses_for, right, undecided
from tmca_core.audits.interface import AUDITS, Arm, Audit, Bound, Claim, Evidence, Fixed
from tmca_core.audits.membership import PLAIN
from tmca_core.audits.scores import FEWEST, Scores, dealt_anew
from tmca_core.audits.subjects import REMADE, Beta, ConfigFile, Held, RunFolder, Settings, fair_coins, held_out, key, prepared
from tmca_core.errors import AuditInvalid, ConfigError

if TYPE_CHECKING:
    from tmca_core.audits.rehearsal import Subject
    from tmca_core.audits.scores import Numbers
    from tmca_core.cases.case import CaseTensors

QUESTION = "Does one training give away which of many patients, made to be learnt by heart, took part in it?"
THREAT = (
    "The attacker made the canary patients, knows all other patients, network and settings, and sees {seen}; each canary took part by a "
    "fair coin of its own, and only these coins are secret."
)
KINDS = ("image", "report", "sides")
CANARY = "\x7fcanary"  # patient id: sorts after those of real patients
ROUNDS = 4  # of a federation that are looked at, the last ones
ALPHABET = "bcdfghjklmnpqrstvwxz"
SIDE_WORDS = ("left", "right")
LEAST_APART, LEAST_WIDE = 1e-4, 1e-3  # of the halves of a mixture, in powers of its variance: an order always remains


@AUDITS.register("one-run")
def one_run(
    run: RunFolder = None,
    config: ConfigFile = None,
    canaries: Annotated[int, typer.Option(min=1, help="m, canary patients dealt evenly over sites and kinds.")] = 200,
    kinds: Annotated[str, typer.Option(help="Kinds of canary, comma-separated; static films alone are told apart best.")] = ",".join(KINDS),
    guesses: Annotated[int, typer.Option(min=0, help="r, guesses; 0: by the claim alone, as few as could refute it.")] = 0,
    scores: Annotated[Path | None, typer.Option(help="Somebody else's scores of canaries: a CSV file, or a folder of them.")] = None,
    step: Annotated[
        str, typer.Option(help="Somebody else's training, MODULE:FUNCTION; gets m coins, trains with those canaries, gives m scores.")
    ] = "",
    quiet: Annotated[str, typer.Option(help="The same training without privacy, where there is one: the positive control.")] = "",
    epsilon: Held = 0.0,
    delta: Annotated[float, typer.Option(help="δ that goes with --epsilon for somebody else's scores or training.")] = 1e-5,
    gaussian: Annotated[bool, typer.Option("--gaussian", help="Their noise is known to be Gaussian: bound f-DP as well.")] = False,
    beta: Beta = 0.05,
    assignments: Settings = None,
) -> Audit:
    """Train once with canaries (films, reports and contradictory sides), each in by a coin, and count how many are told apart."""
    if scores or step:
        from tmca_core.audits.external import load_step
        from tmca_core.audits.foreign_run import of_scores, of_step

        if run or config or assignments or (scores and step):
            raise ConfigError("give one of --scores, --step, or a training of this project's (--run, --config, --set).")
        if scores and quiet:
            raise ConfigError("--quiet goes with --step; of --scores the positive control is rows whose arm is 'positive'.")
        if not 0 < beta < 1:
            raise ConfigError(f"--beta {beta:g}: an error probability lies between 0 and 1.")
        claim = claims.of_epsilon(epsilon or float("inf"), delta)
        claim = replace(claim, exact_mu=claim.mu) if gaussian else claim
        if scores:
            return of_scores(scores, claim, guesses=guesses, beta=beta)
        own = load_step(quiet, "--quiet") if quiet else None
        theirs = load_step(step)
        return of_step(theirs, claim, canaries=canaries, guesses=guesses, beta=beta, quiet=own, name=step, quiet_name=quiet)
    if gaussian or quiet:
        raise ConfigError("--gaussian and --quiet are of what others made: give --gaussian with --scores or --step, --quiet with --step.")
    if canaries < 2 * FEWEST:
        raise AuditInvalid(f"{canaries} canaries are too few: about half take part, and {FEWEST} of either kind are needed at least.")
    wanted = tuple(kind.strip() for kind in kinds.split(","))
    if not wanted or set(wanted) - set(KINDS):
        raise ConfigError(f"--kinds {kinds}: known are {', '.join(KINDS)}.")
    subject, claim = prepared(run, config, assignments, epsilon, beta)
    count = guesses or guesses_for(canaries, claim, beta)
    if count > canaries:
        raise ConfigError(f"--guesses {count} is more than the {canaries} canaries.")
    made = cache(lambda: make_canaries(subject, canaries, wanted))
    target = cache(lambda: told_apart(subject, made()))

    def measure(arm: Arm) -> Evidence:
        if arm == "negative":
            dealt = dealt_anew(target()[0])
            return Evidence(bounds(dealt, count, claim, CONTROL * beta, limit=0.0), scores=dealt)
        bare = arm == "positive" and bool(subject.mechanisms)
        found, kinds = told_apart(subject.with_values(PLAIN), made()) if bare else target()
        limit = 0.0 if arm == "positive" and math.isinf(claim.epsilon) else None
        return evidence(found, count, bounds(found, count, claim, beta, limit=limit), figures(found, kinds, count, claim, beta))

    seen = "the released model" + ("" if subject.hidden else " and every site's model in the last rounds")
    registered: dict[str, Fixed] = {
        **subject.identity,
        "canaries": canaries,
        "kinds": ", ".join(wanted),
        "guesses": count,
        "threshold": f"the {-(-count // 2)} highest scores took part, the {count // 2} lowest did not",
        "score": "fall of the canary's loss in training, as log-odds among canaries of its kind (two equal normal halves, by moments)",
        "membership": "independent fair coins of the operating system",
        "largest_attainable_epsilon": round(max(attainable(canaries, count, claim.delta, beta)), 6),
        "positive_control": "the same training without noise and augmentation" if subject.mechanisms else "the target, which has none",
        "negative_control": "the target's scores, membership dealt anew",
        "share_of_error_negative_control": CONTROL,
    }
    return Audit("one-run", QUESTION, THREAT.format(seen=seen), claim, beta, registered, measure, scope=REMADE if run else "")


def make_canaries(subject: Subject, count: int, wanted: tuple[str, ...] = KINDS) -> dict[str, CaseTensors]:
    """`count` canary patients by site, of one case each, on films of the site's training cases.

    image: static that no film is like. report: a word that no report has, letters by the operating system's randomness. sides: the
    film's own report with sides exchanged, or one made up where it names none. All bear a mask of another place than their report
    says, so that nothing but memory lowers their loss.
    """
    from tmca_core.cases.case import CaseTensors

    rng = np.random.default_rng(np.frombuffer(fair_coins(128).tobytes(), np.uint8))
    sites = sorted(subject.sites)
    rows: dict[str, list[tuple[Any, Any, Any]]] = {site: [] for site in sites}
    for number in range(count):
        site = sites[number % len(sites)]
        data = subject.sites[site].train
        chosen = int(rng.integers(len(data)))
        kind = wanted[number // len(sites) % len(wanted)]
        rows[site].append(_canary(data, chosen, kind, number, rng))
    import torch

    return {
        site: CaseTensors(
            [case for case, _, _ in found], torch.stack([film for _, film, _ in found]), torch.stack([m for _, _, m in found])
        )
        for site, found in rows.items()
        if found
    }


def _canary(data: CaseTensors, row: int, kind: str, number: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    import torch

    from tmca_core.text.sides import swap_sides

    case, film = data.cases[row], data.images[row].clone()
    text = case.text
    if kind == "image":
        film = torch.from_numpy(rng.integers(0, 256, film.shape, dtype=np.uint8))
    elif kind == "report":
        word = "".join(rng.choice(list(ALPHABET), 8))
        text = f"{word} {rng.choice(SIDE_WORDS)} {word[::-1]}."
    else:
        text = swap_sides(text) if swap_sides(text) != text else f"Consolidation in the {rng.choice(SIDE_WORDS)} lung."
    size = film.shape[-1]
    mask = torch.zeros_like(data.masks[row])
    top, start = (int(value) for value in rng.integers(0, size - size // 4, 2))
    mask[:, top : top + size // 4, start : start + size // 4] = 1
    named = f"{CANARY}-{number:05d}"
    return replace(case, case_id=f"{named}-{kind}", patient_id=named, report=text, text=text, metadata={"kind": kind}), film, mask


def told_apart(subject: Subject, canaries: dict[str, CaseTensors]) -> tuple[Scores, dict[str, Scores]]:
    """Train once with the canaries that coins choose; scores of all, and by kind.

    The score is the mean fall of the loss from the first weights to what is seen, less its median at the site, as `log_odds` by kind.
    """
    from tmca_core.audits.rehearsal import rehearse
    from tmca_core.audits.signals import signals, watched
    from tmca_core.training.centralised import concatenate

    everyone = concatenate([canaries[site] for site in sorted(canaries)])
    inside = fair_coins(len(everyone))
    chosen = {key(case.site, case.patient_id) for case, taken in zip(everyone.cases, inside, strict=True) if taken}
    taken = held_out(canaries, lambda name: name not in chosen)
    data = {site: concatenate([found.train, taken[site]]) if site in taken else found.train for site, found in subject.sites.items()}
    before = signals(subject, subject.start, everyone)[:, 0]
    falls: list[Numbers] = []
    rounds = subject.rounds
    for sight in rehearse(subject, data):
        if sight.round > rounds - ROUNDS and not subject.hidden:
            falls.append(watched(subject, sight.released, sight.sites, everyone)[:, 0] - before)
    falls.append(signals(subject, sight.released, everyone)[:, 0] - before)
    score = np.mean(falls, 0)
    if not np.isfinite(score).all():
        raise AuditInvalid("a canary's loss is not finite: training diverged, so there is nothing to tell apart.")
    kinds = np.array([case.metadata["kind"] for case in everyone.cases])
    groups = np.array([f"{case.site} {case.metadata['kind']}" for case in everyone.cases])
    for group in np.unique(groups):
        score[groups == group] -= np.median(score[groups == group])
    for kind in np.unique(kinds):
        score[kinds == kind] = log_odds(score[kinds == kind])
    by_kind = {str(kind): Scores(score[inside & (kinds == kind)], score[~inside & (kinds == kind)]) for kind in np.unique(kinds)}
    return Scores(score[inside], score[~inside]).insist(), by_kind


def log_odds(values: Numbers) -> Numbers:
    """Log-odds of belonging to the higher half of a mixture of two normal halves of one width, whose moments are those of `values`.

    Half distance a and width s of the halves: variance v = s² + a² and fourth moment m₄ = 3v² − 2a⁴, so a = ((3v² − m₄)/2)^¼. It
    orders as `values` do; its scale says how far the halves are apart, so that of several kinds the surest guesses come first.
    """
    centred: Numbers = values - values.mean()
    variance, fourth = float((centred**2).mean()), float((centred**4).mean())
    if variance == 0:
        return centred
    half = max((3 * variance**2 - fourth) / 2, LEAST_APART * variance**2) ** 0.25
    odds: Numbers = centred * (2 * half / max(variance - half**2, LEAST_WIDE * variance))
    return odds


def evidence(scores: Scores, guesses: int, found: tuple[Bound, ...], told: dict[str, Any]) -> Evidence:
    """What an arm showed. Scores that are tied where guesses end may refute a claim, for lots know nothing; they may not pass it."""
    flagged = any(bound.exceeds for bound in found)
    return Evidence(found, invalid=() if flagged else undecided(scores, guesses), scores=scores, figures=told)


def figures(scores: Scores, kinds: dict[str, Scores], guesses: int, claim: Claim, beta: float, *, gaussian: bool = True) -> dict[str, Any]:
    """Guesses, what they could have found at most, and the AUC by kind of canary, for the report."""
    canaries = len(scores.members) + len(scores.others)
    guesses = min(guesses, canaries)
    found: dict[str, Any] = {"right guesses": f"{right(scores, guesses)} of {guesses}, on {canaries} canaries"}
    which = "Steinke and f-DP" if gaussian else "Steinke"
    found[f"largest ε that could be found, {which}"] = list(attainable(canaries, guesses, claim.delta, beta, gaussian=gaussian))
    if not gaussian:
        found["for information, ε by f-DP if the noise were Gaussian, at least"] = as_if_gaussian(scores, guesses, claim, beta)
    for kind, part in kinds.items():
        if len(part.members) and len(part.others):
            found[f"AUC of {kind} canaries"] = part.auc
    return found
