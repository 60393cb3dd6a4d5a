"""Which cases of a manifest a trained model is measured on: never silently those that it learned from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tmca_core.cases.case import Case
from tmca_core.errors import ManifestError, WeightsError

Wanted = Literal["auto", "test", "val", "train", "all"]
SEEN = ("train", "val")  # val chooses among models: it is no test either


@dataclass(frozen=True)
class Selection:
    """The chosen cases and how they were chosen.

    Attributes:
        indices: positions of the chosen cases, ascending.
        counts: chosen cases by split (train, val, test, and "none": no split known); "left_out", those not chosen; and
            "seen_in_training", the chosen ones of patients that the run trained on or chose its model with, told by case ids
            (None: the run's folder does not say).
    """

    indices: Sequence[int]
    counts: Mapping[str, int | None]

    @property
    def warning(self) -> str:
        """One line where the figures are not those of unseen cases, else ""."""
        seen = self.counts["seen_in_training"]
        if not seen:
            return ""
        return (
            f"warning: {seen} of the {len(self.indices)} cases evaluated are, by their ids, of patients that this run trained on or chose "
            "its model with; the figures are not those of unseen cases."
        )

    @property
    def line(self) -> str:
        """What was evaluated, for people."""
        parts = ", ".join(f"{self.counts[name]} {name}" for name in ("test", "val", "train") if self.counts[name])
        without = f"{self.counts['none']} of no known split" if self.counts["none"] else ""
        left = f"; {self.counts['left_out']} others left out (--split all takes them)" if self.counts["left_out"] else ""
        return f"{len(self.indices)} cases evaluated: {', '.join(part for part in (parts, without) if part)}{left}"


def splits_of_run(checkpoint: Path) -> dict[str, str] | None:
    """Case id → split, from `splits.json` of the run that a checkpoint belongs to; None where the run has none.

    A federation over real sites has none: case ids do not leave the sites.

    Args:
        checkpoint: a run's folder or anything in it.

    Raises:
        WeightsError: the file is damaged.
    """
    place = checkpoint.resolve()
    home = next((folder for folder in (place, *place.parents) if (folder / "config.toml").exists()), None)
    if home is None or not (home / "splits.json").exists():
        return None
    try:
        sites = json.loads((home / "splits.json").read_text(encoding="utf-8"))
        return {str(case): str(split) for cases in sites.values() for case, split in cases.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"cannot read {home / 'splits.json'} ({error}), so which cases the model was trained on is unknown. "
            "Restore it, or move it away to evaluate without that knowledge."
        ) from None


def select_cases(cases: Sequence[Case], known: Mapping[str, str] | None, wanted: Wanted = "auto") -> Selection:
    """Choose among the cases of a manifest.

    `auto`: where the manifest has a split column, its test rows; else, where the run knows some of the cases, those that it
    neither trained on nor chose its model with (its test cases, and cases unknown to it of patients unknown to it); else all.
    A named split is the manifest's, or where a row states none, the run's.

    Args:
        cases: N cases, in the manifest's order.
        known: case id → split in the model's run; see `splits_of_run`.
        wanted: what was asked for.

    Raises:
        ManifestError: nothing is chosen; with the cases there are.
    """
    if not cases:
        raise ManifestError("no case of the manifest has a usable mask, so there is nothing to measure the model against.")
    run = known or {}
    split = [_split(case, run) for case in cases]
    # A further film of a patient that was trained on is no unseen case.
    patients = {case.patient_id for case in cases if run.get(case.case_id) in SEEN}
    if wanted == "all":
        chosen = list(range(len(cases)))
    elif wanted != "auto" or any(case.split for case in cases):
        name = "test" if wanted == "auto" else wanted
        chosen = [i for i, found in enumerate(split) if found == name]
    else:
        chosen = [i for i, case in enumerate(cases) if case.patient_id not in patients]
    if not chosen:
        there = ", ".join(f"{number} {name or 'of no known split'}" for name, number in sorted(Counter(split).items()))
        asked = "an unseen or test" if wanted == "auto" else f"a {wanted}"
        raise ManifestError(f"none of the {len(cases)} cases with a mask is {asked} case ({there}). Choose others: --split all.")
    found = Counter(split[i] or "none" for i in chosen)
    seen = sum(cases[i].patient_id in patients for i in chosen)
    counts = {name: found[name] for name in ("train", "val", "test", "none")}
    return Selection(chosen, {**counts, "left_out": len(cases) - len(chosen), "seen_in_training": seen if known is not None else None})


def _split(case: Case, run: Mapping[str, str]) -> str:
    """The row's split, else the run's; "val" where the run drew it from the rows that say "train"."""
    drawn = run.get(case.case_id, "")
    return drawn if not case.split or (case.split, drawn) == ("train", "val") else case.split
