"""The table of `bench utility`: Dice, gain over the start, and the share of the gain that noise has left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmca_core.config import Config
from tmca_core.privacy.planning import trained_numbers


@dataclass(frozen=True)
class Trial:
    """One federation of the table.

    Attributes:
        arm: "start", "tuned" or "scratch".
        epsilon: 0 without privacy.
    """

    arm: str
    epsilon: float
    seed: int
    config: Config

    @property
    def folder(self) -> str:
        """Name of its folder below the table's `runs`."""
        return f"{self.arm}-{f'{self.epsilon:g}' if self.epsilon else 'plain'}-{self.seed}"


def rows_of(trials: Sequence[Trial], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm and ε; gain and share are taken within each seed, whose test images are the same for all arms."""
    kinds = dict.fromkeys((trial.arm, trial.epsilon) for trial in trials)
    rows = []
    for arm, epsilon in kinds:
        mine = [trial for trial in trials if (trial.arm, trial.epsilon) == (arm, epsilon)]
        found = [results[trial.folder] for trial in mine]
        bare = [results[f"start-plain-{trial.seed}"]["dice"] for trial in mine]
        full = [results[f"tuned-plain-{trial.seed}"]["dice"] for trial in mine]
        dice = [result["dice"] for result in found]
        gains = [after - before for after, before in zip(dice, bare, strict=True)]
        whole = [after - before for after, before in zip(full, bare, strict=True)]
        shares = [gain / of for gain, of in zip(gains, whole, strict=True) if of > 0]
        sites = [site for result in found for site in result["sites"].values()]
        rows.append(
            {
                "name": f"{arm}.{f'{epsilon:g}' if epsilon else 'plain'}",
                "arm": arm,
                "epsilon": epsilon,
                "dice": _spread(dice),
                "gain": _spread(gains),
                "kept": _spread(shares) if arm == "tuned" and len(shares) == len(mine) else None,
                "spent": max((site["epsilon"] for site in sites if "epsilon" in site), default=None),
                "patients": [min(site["patients"] for site in sites), max(site["patients"] for site in sites)],
                "noise_multiplier": statistics.fmean(s["noise_multiplier"] for s in sites) if epsilon else None,
                "length": statistics.fmean(s["length"] for s in sites) if epsilon else None,
                "trained": trained_numbers(mine[0].config),
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None, "values": list(values)}


NAMES = {"start": "the start", "tuned": "fine-tuned", "scratch": "from scratch, all weights"}


def table_of(rows: Sequence[Mapping[str, Any]], config: Config, seeds: int) -> str:
    """Markdown: what was run, then a line an arm."""
    low, high = (pick(row["patients"][i] for row in rows) for i, pick in enumerate((min, max)))
    lines = [
        f"{config.phantom.sites} sites of shift {config.phantom.shift:g} with {low} to {high} training patients each, {seeds} seeds, "
        f"δ = {config.privacy.delta:g} per patient (add/remove), `{config.network.name}` at {config.data.image_size} pixels; fine-tuned: "
        f"{config.network.trainable}, {config.federation.rounds} rounds of {config.training.steps} steps.",
        "",
        "| | ε | σ | trained numbers | noise, length | Dice per image | gain | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        trained = "–" if row["arm"] == "start" else f"{row['trained']:,}"
        noise = ["–" if row["arm"] == "start" else "∞", "–"]
        if row["epsilon"]:
            noise = [f"{row['epsilon']:g}", f"{row['noise_multiplier']:.2f}"]
        length = f"{row['length']:.2f}" if row["epsilon"] else "–"
        cells = [NAMES[row["arm"]], *noise, trained, length, _cell(row["dice"]), _cell(row["gain"]), _cell(row["kept"], percent=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, Any] | None, percent: bool = False) -> str:
    if value is None:
        return "–"
    scale, digits, unit = (100, 0, " %") if percent else (1, 4, "")
    spread = "" if value["sd"] is None else f" ± {scale * value['sd']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}{unit}"
