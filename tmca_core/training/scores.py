"""From scores of cases to the figures of a run, in one place and in two halves: what a site may send, and their sum.

`site_summary` is the site's half: sums, counts and intervals, no single case. `combine` is the server's: it adds them.
`summarise` does both on scores held in one place, so a federation and a pooled evaluation give the same figures.
Of several targets every figure is the mean over targets, save sides and counts of empty masks, which are of their union.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmca_core.training.intervals import patient_bootstrap
from tmca_core.training.metrics import COUNTERFACTUALS, dice, iou

SiteSummary = dict[str, float]

_COLUMNS = ("dice", "iou", "hd95", "laterality", "floor", "loss", "true", *COUNTERFACTUALS, "sided_true", "sided_swapped")
_AREAS = ("intersection", "predicted", "truth", "laterality_area", "laterality_wrong")
_COUNTS = ("laterality_empty", "empty_truth", "empty_predicted", "empty_both")
ALWAYS = ("cases", "patients", *_AREAS, *_COUNTS, *(f"{name}_{kind}" for name in _COLUMNS for kind in ("sum", "cases")))
"""Keys that every site summary has. One of a case or more has `dice_image` besides, and may have all of `INTERVAL`."""
INTERVAL = ("ci95_low", "ci95_high", "dice_se")
WITHOUT_REPORT = ("without_report_sum", "without_report_cases")
"""Dice of the cases without a report; both, or neither (see `FEWEST_PATIENTS`)."""
FEWEST_PATIENTS = 5
"""A site tells the figures of its cases without a report only if they are of so many patients, and so are the others: the mean of
one patient's cases is that patient's, and so is the difference of two sums."""
_OF_TARGET = ("intersection", "predicted", "truth", "dice_sum", "iou_sum", "hd95_sum", "hd95_cases", "empty_truth", "empty_predicted")
MAY_BE_NEGATIVE = ("loss_sum",)
"""All other figures of a site summary are 0 or above."""


def of_targets(number: int) -> tuple[str, ...]:
    """Keys that the summary of a case or more has besides `ALWAYS` where there are several targets: "target0:dice_sum" …"""
    return tuple(f"target{k}:{name}" for k in range(number) for name in _OF_TARGET) if number > 1 else ()


@dataclass(frozen=True, slots=True)
class TargetScore:
    """One of several targets in one case; fields as in `CaseScore`."""

    intersection: int
    predicted: int
    truth: int
    dice: float
    iou: float
    hd95: float | None


@dataclass(frozen=True, slots=True)
class CaseScore:
    """Everything measured on one case.

    Attributes:
        intersection: |P ∩ T|, pixels; with `predicted` |P| and `truth` |T| it pools exactly. Of several targets their unions.
        dice: per image, 0..1; 1 where both masks are empty, 0 where one is. Of several targets the mean.
        hd95: pixels; None where one mask is empty, or where it was not asked for. Of several targets the mean of those that have one.
        laterality_error: share of the predicted area on the side a one-sided report does not name; None for other reports.
        laterality_floor: the same share of the TRUE area: what label noise and midline cases cost a perfect network.
        loss: None where no loss was given.
        counterfactual: Dice against the true mask when the report is `swapped`, `shuffled` or `empty`; {} if not asked for.
        without_report: the case has none.
        targets: in the order of `data.targets`; () where there is one.
    """

    case_id: str
    patient_id: str
    site: str
    intersection: int
    predicted: int
    truth: int
    dice: float
    iou: float
    hd95: float | None
    laterality_error: float | None
    laterality_floor: float | None
    loss: float | None
    counterfactual: dict[str, float]
    without_report: bool = False
    targets: tuple[TargetScore, ...] = ()


def site_summary(scores: Sequence[CaseScore], *, bootstrap: int, seed: int) -> SiteSummary:
    """One site's aggregates as flat scalars, fit for an Update's metrics.

    Keys: `cases`, `patients`; summed areas `intersection`, `predicted`, `truth`; `NAME_sum` and `NAME_cases` of dice, iou,
    hd95, laterality, floor, loss, true and swapped Dice of one-sided reports and the counterfactuals; counts of empty
    masks; `laterality_wrong` and `laterality_area` in pixels: all of these are `ALWAYS` there. With a case or more,
    `dice_image` (mean) and the figures `of_targets`; with two patients and more, `INTERVAL`; where `FEWEST_PATIENTS` allows it,
    `WITHOUT_REPORT`.

    Args:
        scores: of one site; patients are told apart by `patient_id`.
        bootstrap: resamplings of patients; 0: no interval.
        seed: of the resampling.
    """
    sided = [s for s in scores if s.laterality_error is not None]
    summary: SiteSummary = {
        "cases": float(len(scores)),
        "patients": float(len({s.patient_id for s in scores})),
        "intersection": float(sum(s.intersection for s in scores)),
        "predicted": float(sum(s.predicted for s in scores)),
        "truth": float(sum(s.truth for s in scores)),
        "laterality_area": float(sum(s.predicted for s in sided)),
        "laterality_wrong": math.fsum(s.predicted * (s.laterality_error or 0.0) for s in sided),
        "laterality_empty": float(sum(s.predicted == 0 for s in sided)),
        "empty_truth": float(sum(s.truth == 0 for s in scores)),
        "empty_predicted": float(sum(s.predicted == 0 for s in scores)),
        "empty_both": float(sum(s.truth == 0 and s.predicted == 0 for s in scores)),
    }
    columns: dict[str, list[float | None]] = {
        "dice": [s.dice for s in scores],
        "iou": [s.iou for s in scores],
        "hd95": [s.hd95 for s in scores],
        "laterality": [s.laterality_error for s in scores],
        "floor": [s.laterality_floor for s in scores],
        "loss": [s.loss for s in scores],
        "true": [s.dice for s in scores if s.counterfactual],
        **{name: [s.counterfactual.get(name) for s in scores] for name in COUNTERFACTUALS},
        "sided_true": [s.dice for s in sided if s.counterfactual],
        "sided_swapped": [s.counterfactual.get("swapped") for s in sided],
    }
    for name, column in columns.items():
        present = [value for value in column if value is not None]
        summary[f"{name}_sum"], summary[f"{name}_cases"] = math.fsum(present), float(len(present))
    for k, column_N in enumerate(zip(*(s.targets for s in scores), strict=True)):
        summary |= {f"target{k}:{name}": value for name, value in _target_sums(column_N).items()}
    silent = [s.dice for s in scores if s.without_report]
    patients = [len({s.patient_id for s in scores if s.without_report is missing}) for missing in (True, False)]
    if patients[0] >= FEWEST_PATIENTS and not 0 < patients[1] < FEWEST_PATIENTS:
        summary |= dict(zip(WITHOUT_REPORT, (math.fsum(silent), float(len(silent))), strict=True))
    if scores:
        summary["dice_image"] = summary["dice_sum"] / len(scores)
        name = scores[0].site
        interval = patient_bootstrap([s.dice for s in scores], [s.patient_id for s in scores], bootstrap, seed, name)
        if interval is not None:
            summary |= {"ci95_low": interval.low, "ci95_high": interval.high, "dice_se": interval.standard_error}
    return summary


def _target_sums(scores: Sequence[TargetScore]) -> dict[str, float]:
    """Figures `_OF_TARGET` of one target in all cases of a site."""
    distances = [s.hd95 for s in scores if s.hd95 is not None]
    return {
        "intersection": float(sum(s.intersection for s in scores)),
        "predicted": float(sum(s.predicted for s in scores)),
        "truth": float(sum(s.truth for s in scores)),
        "dice_sum": math.fsum(s.dice for s in scores),
        "iou_sum": math.fsum(s.iou for s in scores),
        "hd95_sum": math.fsum(distances),
        "hd95_cases": float(len(distances)),
        "empty_truth": float(sum(s.truth == 0 for s in scores)),
        "empty_predicted": float(sum(s.predicted == 0 for s in scores)),
    }


def combine(site_summaries: Mapping[str, SiteSummary], targets: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json's `final` and `counterfactual` from the sites' aggregates.

    Means and pooled figures equal those over all cases in one place. The overall `ci95` is built from the sites' standard
    errors, dice ± 1.96 √Σ (n_s/n)² se_s² (sites as strata), and is None unless every site with cases sent one.
    `without_report` is of the sites that sent `WITHOUT_REPORT`, and counts them and their cases; where none did it is left out.

    Args:
        site_summaries: by site.
        targets: names of several targets, for `per_target`; of one, or (), there is no such entry.

    Returns:
        (`final`, `counterfactual`); figures that have no meaning (no one-sided report, no case) are None.
        `counterfactual` is {} where no site predicted with other reports.
    """
    filled = {name: summary for name, summary in site_summaries.items() if summary["cases"]}

    def total(key: str) -> float:
        return math.fsum(summary[key] for summary in filled.values())

    number = _number_of_targets(filled.values())
    final: dict[str, Any] = {**_figures(total, number), "cases": int(total("cases")), "patients": int(total("patients"))}
    final["ci95"] = _stratified_interval(filled)
    final["hd95_undefined"] = int(total("cases") - total("hd95_cases")) if total("hd95_cases") else None
    final["laterality_error_pooled"] = _over(total("laterality_wrong"), total("laterality_area"))
    final["laterality_floor"] = _over(total("floor_sum"), total("floor_cases"))
    final["one_sided"] = {"cases": int(total("laterality_cases")), "empty_predictions": int(total("laterality_empty"))}
    final["empty_masks"] = {kind: int(total(f"empty_{kind}")) for kind in ("truth", "predicted", "both")}
    if number > 1 and targets:
        final["per_target"] = {name: _target_entry(total, k) for k, name in zip(range(number), targets, strict=True)}
    silent, silent_cases = (math.fsum(summary.get(key, 0.0) for summary in filled.values()) for key in WITHOUT_REPORT)
    if 0 < silent_cases < total("cases"):
        sites = sum(WITHOUT_REPORT[0] in summary for summary in filled.values())
        final["without_report"] = {"cases": int(silent_cases), "sites": sites, "dice_image": silent / silent_cases}
    final["per_site"] = {name: _site_entry(summary) for name, summary in site_summaries.items()}
    final["worst_site"] = min(filled, key=lambda name: (filled[name]["dice_image"], name)) if filled else None

    counterfactual: dict[str, Any] = {}
    if total("true_cases"):
        for name in ("true", *COUNTERFACTUALS):
            counterfactual[name] = _over(total(f"{name}_sum"), total(f"{name}_cases"))
        counterfactual["one_sided"] = {
            "cases": int(total("sided_true_cases")),
            "true": _over(total("sided_true_sum"), total("sided_true_cases")),
            "swapped": _over(total("sided_swapped_sum"), total("sided_swapped_cases")),
        }
    return final, counterfactual


def summarise(scores: Sequence[CaseScore], *, bootstrap: int, seed: int, targets: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """`{"final": …, "counterfactual": …}` of run.json from scores of all sites in one place.

    As `combine`, save that the overall `ci95` resamples the patients of all sites together. A patient is a
    `patient_id` within a site: two hospitals' numbering may coincide. `targets` as `combine` takes them.
    """
    by_site: dict[str, list[CaseScore]] = {}
    for score in scores:
        by_site.setdefault(score.site, []).append(score)
    summaries = {name: site_summary(by_site[name], bootstrap=bootstrap, seed=seed) for name in sorted(by_site)}
    final, counterfactual = combine(summaries, targets)
    interval = patient_bootstrap([s.dice for s in scores], [(s.site, s.patient_id) for s in scores], bootstrap, seed)
    final["ci95"] = None if interval is None else [interval.low, interval.high]
    return {"final": final, "counterfactual": counterfactual}


def _number_of_targets(summaries: Iterable[SiteSummary]) -> int:
    """How many targets the figures are of."""
    return max((sum(key.endswith(":dice_sum") for key in summary) for summary in summaries), default=0) or 1


def _overlap(total: Callable[[str], float], prefix: str = "") -> dict[str, float | None]:
    """Overlap and distance from summed figures, of all targets together or of one."""
    summed = [total(f"{prefix}{name}") for name in ("intersection", "predicted", "truth")]
    some = total("cases") > 0
    return {
        "dice_image": _over(total(f"{prefix}dice_sum"), total("cases")),
        "dice_pooled": float(dice(*summed)) if some else None,
        "iou_image": _over(total(f"{prefix}iou_sum"), total("cases")),
        "iou_pooled": float(iou(*summed)) if some else None,
        "hd95_px": _over(total(f"{prefix}hd95_sum"), total(f"{prefix}hd95_cases")),
    }


def _target_entry(total: Callable[[str], float], k: int) -> dict[str, Any]:
    """The entry of target number `k` in run.json."""
    empty = {kind: int(total(f"target{k}:empty_{kind}")) for kind in ("truth", "predicted")}
    return {**_overlap(total, f"target{k}:"), "empty_masks": empty}


def _figures(total: Callable[[str], float], number: int) -> dict[str, float | None]:
    """The figures that exist overall and a site, of `number` targets."""
    figures = _overlap(total)
    if number > 1 and total("cases"):
        each = [_overlap(total, f"target{k}:") for k in range(number)]
        figures |= {key: math.fsum(one[key] or 0.0 for one in each) / number for key in ("dice_pooled", "iou_pooled")}
    figures["laterality_error"] = _over(total("laterality_sum"), total("laterality_cases"))
    figures["loss"] = _over(total("loss_sum"), total("loss_cases"))
    return figures


def _site_entry(summary: SiteSummary) -> dict[str, Any]:
    interval = [summary["ci95_low"], summary["ci95_high"]] if "ci95_low" in summary else None
    counts = {"cases": int(summary["cases"]), "patients": int(summary["patients"])}
    return {**_figures(summary.__getitem__, _number_of_targets([summary])), "ci95": interval, **counts}


def _stratified_interval(filled: Mapping[str, SiteSummary]) -> list[float] | None:
    if not filled or any("dice_se" not in summary for summary in filled.values()):
        return None
    cases = sum(summary["cases"] for summary in filled.values())
    mean = math.fsum(summary["dice_sum"] for summary in filled.values()) / cases
    error = math.sqrt(math.fsum((summary["cases"] / cases * summary["dice_se"]) ** 2 for summary in filled.values()))
    return [max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)]


def _over(above: float, below: float) -> float | None:
    return above / below if below else None
