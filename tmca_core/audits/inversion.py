"""Inversion: can the film and the words of the report be got back from one update?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmca_core.audits.interface import AUDITS, Arm, Audit, Bound, Evidence
from tmca_core.audits.subjects import REMADE, ConfigFile, RunFolder, Settings, prepared
from tmca_core.errors import NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

    from tmca_core.audits.rehearsal import Subject
    from tmca_core.audits.taken import Recovered, Victim

QUESTION = "Can a film, or the words of its report, be got back from what one site sends in one round?"
THREAT = (
    "Worst case: the server is the attacker. It chose a smooth network, plain gradient descent at a large rate and a round of one step on "
    "one case, knows all weights before it, and sees {seen}. It does not know film or mask; the report's words as vectors are given to it "
    "(a row below: not given). It guesses film and mask whose gradient points where the update does."
)
MARGIN = 1.0  # dB above the better of two guesses without any update
CHANCE_WORDS = 2  # of a report, that a guess among thousands may hit
SEVERAL = 4  # cases in a batch, steps in a round, sites in a sum


@dataclass(frozen=True)
class Setting:
    """What an update is made under.

    Attributes:
        noise: σ of private training; 0: none.
        cases: in the one batch, or sites in the one sum.
        steps: local ones.
        compression: as `federation.compression`.
        told: the report is given to the attacker.
        meaningless: the update is replaced by noise of the same lengths.
    """

    noise: float = 0.0
    cases: int = 1
    steps: int = 1
    compression: str = "none"
    told: bool = True
    meaningless: bool = False


ROWS: dict[str, Setting] = {
    "plain": Setting(),
    "report unknown": Setting(told=False),
    "int8": Setting(compression="int8"),
    "int4": Setting(compression="int4"),
    f"{SEVERAL} local steps": Setting(steps=SEVERAL),
    f"{SEVERAL} cases or sites": Setting(cases=SEVERAL),
    "private, σ = 0.1": Setting(noise=0.1),
    "private, σ = 1": Setting(noise=1.0),
    "no update": Setting(meaningless=True),
}
"""Settings that the report puts side by side, whatever the run's own are."""


@AUDITS.register("inversion")
def inversion(
    run: RunFolder = None,
    config: ConfigFile = None,
    iterations: Annotated[int, typer.Option(min=1, help="Evaluations of the matching loss that an attack may take.")] = 300,
    side: Annotated[int, typer.Option(help="Side of the film, pixels, a multiple of 32; larger films take longer.")] = 32,
    only: Annotated[bool, typer.Option("--only-run", help="Attack the run's own setting only, not the table of others.")] = False,
    assignments: Settings = None,
) -> Audit:
    """Get film and report back from one update by matching gradients: plain, private, quantised, of several steps or cases."""
    subject, claim = prepared(run, config, assignments, 0.0, 0.05)
    own = setting_of(subject)
    subject.config.with_values({"data.image_size": side})  # says what a side may be
    victim = cache(lambda: _victim(subject, side))
    recovered = cache(lambda setting: _attack(victim(), setting, iterations))

    def measure(arm: Arm) -> Evidence:
        setting = {"target": own, "positive": Setting(), "negative": Setting(meaningless=True)}[arm]
        result, guess = recovered(setting), victim().guess
        bounds = [Bound("film from one update", "dB", result.psnr, guess + MARGIN)]
        if result.words:
            chance = CHANCE_WORDS / result.words
            bounds.append(Bound("words of the report from one update", "share of its words", result.recall, chance, 1.0))
        if arm != "target":
            return Evidence(tuple(bounds))
        rows = {"this run": own} | ({} if only else ROWS)
        results = {name: recovered(row) for name, row in rows.items()}
        return Evidence(tuple(bounds), figures=_figures(victim(), results, subject), pictures=(_picture(victim(), results),))

    seen = "the sum of the updates of several sites" if own.cases > 1 else "the site's update"
    return Audit(
        "inversion",
        QUESTION,
        THREAT.format(seen=seen),
        claim,
        0.0,
        {
            **subject.identity,
            "network": "glass: two convolutions, a dense layer with the mean word, a dense layer to the mask",
            "film_side": side,
            "iterations": iterations,
            "margin_dB": MARGIN,
            "noise_multiplier": own.noise,
            "compression": own.compression,
            "cases_or_sites": own.cases,
            "positive_control": "the update without noise, compression and company",
            "negative_control": "noise in the place of the update",
        },
        measure,
        scope=REMADE if run else "",
    )


def setting_of(subject: Subject) -> Setting:
    """The run's own protection of one update: its least noise, its compression, and the company of a secure sum."""
    config = subject.config
    noise = min((mechanism.noise_multiplier for mechanism in subject.mechanisms.values()), default=0.0)
    if subject.arm != "federation":
        raise NotApplicable("the run trains in one place and sends no update: there is nothing to invert.")
    cases = len(subject.sites) if config.federation.secure else 1
    return Setting(noise, min(cases, SEVERAL), compression=config.federation.compression)


def _victim(subject: Subject, side: int) -> Victim:
    from tmca_core.audits.taken import victim_of

    return victim_of(subject, side, SEVERAL)


def _attack(victim: Victim, setting: Setting, iterations: int) -> Recovered:
    from tmca_core.audits.taken import recover, update_of

    return recover(victim, update_of(victim, setting), setting, iterations)


def _figures(victim: Victim, results: dict[str, Recovered], subject: Subject) -> dict[str, Any]:
    from tmca_core.audits.taken import words_of_network

    found: dict[str, Any] = {"trained numbers": sum(tensor.numel() for tensor in victim.network.state_dict().values())}
    found["best guess without any update, dB"] = victim.guess
    for name, result in results.items():
        words = f", words {result.recall:.2f} of {result.words}" if result.words else ""
        found[name] = f"{result.psnr:.1f} dB, SSIM {result.ssim:.2f}{words}"
    share = words_of_network(subject)
    if share is not None:
        found[f"words from one plain step of the run's own network ({subject.config.network.name})"] = share
    return found


def _picture(victim: Victim, results: dict[str, Recovered]) -> tuple[str, Any]:
    from markupsafe import Markup

    from tmca_core.report.svg import picture, tag

    cell, text = 150, 20
    shown: list[tuple[str, Tensor, str]] = [("the film", victim.film, "")]
    shown += [(name, result.film, f"{result.psnr:.1f} dB") for name, result in results.items()]
    across = min(5, len(shown))
    parts: list[Markup] = []
    for i, (name, film, figure) in enumerate(shown):
        left, top = i % across * cell, i // across * (cell + 2 * text)
        parts.append(tag("text", name, class_="tick", x=left + 4, y=top + text - 5))
        parts.append(
            tag(
                "image",
                href=_data_uri(film, victim.film),
                style="image-rendering: pixelated",
                x=left + 4,
                y=top + text,
                width=cell - 8,
                height=cell - 8,
            )
        )
        parts.append(tag("text", figure, class_="tick", x=left + 4, y=top + cell + text))
    height = -(-len(shown) // across) * (cell + 2 * text)
    told = "; ".join(f"{name} {figure}" for name, _, figure in shown if figure)
    return "What the attack makes of one update, beside the film itself.", picture(
        "chart", "Films got back", told, across * cell, height, parts
    )


def _data_uri(film: Tensor, like: Tensor) -> str:
    """A PNG of (C, S, S), grey values stretched as the true film's."""
    import base64
    import io

    from PIL import Image

    low, high = float(like.min()), float(like.max())
    grey = ((film.mean(0) - low) / (high - low)).clamp(0, 1).mul(255).byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
