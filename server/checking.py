"""The data check: every site is asked for figures of its data before anything trains, and what looks wrong is said."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from tmca_core.cases.figures import COUNTS, PREFIX, Figure, figures_of
from tmca_core.cases.laterality import CLEAR
from tmca_core.messages import CHECK, KEPT, METRICS, SETTINGS, part_of
from tmca_core.privacy.policy import PrivacyRules

if TYPE_CHECKING:
    from server.rounds import Federation

FILE = "data_check.json"
EMPTY, MISSING, SKIPPED = 0.5, 0.2, 0.2  # shares of empty masks, missing reports and unusable rows beyond which a site is named
BRIGHTER = 0.15  # of the range of grey, from the median of the other sites
FLATTER, LARGER = 2.0, 2.0  # ratio of contrast, and of image sides, to the median of the other sites
FEWEST_TO_COMPARE = 2  # other sites

Checked = dict[str, Any]


def check_data(federation: Federation, again: bool) -> Checked:
    """Ask every site, write what comes to `data_check.json`, and say what looks wrong.

    Each asking releases figures, so a run that goes on takes those that it has.

    Args:
        federation: whose sites have said hello.
        again: ask although there is an answer; data may have been put right since.

    Returns:
        {"sites": site → {figure → value or None}, "withheld": site → names, "failed": site → reason, "warnings": [...],
        "table": rows of text, the first its head}; shares between 0 and 1, sizes in pixels.
    """
    found: Checked = {} if again else federation.run.read_json(FILE)
    if not found:
        found = _ask(federation)
        federation.run.write_json(FILE, found)
        for site, values in found["sites"].items():
            federation.emit("data_check", round=federation.round, site=site, figures=values, withheld=found["withheld"][site])
    for line in (table_of(found), *found["warnings"]):
        federation.note(line)
    return found


def _ask(federation: Federation) -> Checked:
    figures = figures_of(federation.config.data.target_names)
    fields: dict[str, str | int] = {"run": federation.progress.run}
    requests = {site: federation.request(CHECK, site, None, fields, "check") for site in sorted(federation.roster.nodes)}
    sites: dict[str, dict[str, float | None]] = {}
    withheld: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    for answer in federation.ask(requests):
        reason, told = answer.failure, dict[str, float]()
        if answer.content is not None:
            told, kept, reason = read_check(answer.content, figures)
        if reason:
            if answer.kind != "duplicate":
                failed[answer.site] = reason
            federation.fault("check", answer.site, reason, answer.kind or "figures")
            continue
        shown = {name: figures[name].shown(value) if name in figures else value for name, value in told.items()}
        sites[answer.site] = {name.removeprefix(PREFIX): shown.get(name) for name in (*COUNTS, *figures)}
        withheld[answer.site] = kept
    found: Checked = {
        "sites": dict(sorted(sites.items())),
        "withheld": dict(sorted(withheld.items())),
        "failed": dict(sorted(failed.items())),
    }
    return {**found, "warnings": warnings_of(found, federation.config.data.target_names), "table": rows_of(found)}


def read_check(content: RecordDict, figures: Mapping[str, Figure]) -> tuple[dict[str, float], list[str], str]:
    """The declared figures of an answer, the names of those that the site keeps, and why it cannot be used ("" where it can).

    Whatever else is in it is dropped.
    """
    record: Mapping[str, Any] = part_of(content, METRICS, MetricRecord) or {}
    settings: Mapping[str, Any] = part_of(content, SETTINGS, ConfigRecord) or {}
    told: dict[str, float] = {}
    for name in (*COUNTS, *figures):
        value = record.get(name)
        if value is None:
            continue
        bound = math.inf if name in COUNTS else 1.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value <= bound and math.isfinite(value)):
            return {}, [], f"the data check's '{name}' is {value!r}, which no such figure is"
        told[name] = float(value)
    said = settings.get(KEPT)
    kept = [name for name in (*COUNTS, *figures) if isinstance(said, list) and name in said]
    lost = [name for name in (*COUNTS, *figures) if name not in told and name not in kept]
    return told, [name.removeprefix(PREFIX) for name in kept], f"the data check lacks '{lost[0]}'" if lost else ""


def warnings_of(found: Checked, targets: tuple[str, ...]) -> list[str]:
    """What a coordinator should look at before spending GPU hours, one sentence each; nothing is said of what a site keeps."""
    sites: dict[str, dict[str, float | None]] = found["sites"]
    lines = [f"data check: site '{site}' did not answer: {reason}" for site, reason in found["failed"].items()]
    for site, values in sites.items():
        said = [*_sides(site, sites), *_labels(values, targets), *_language(site, sites), *_images(site, sites), *_amount(values)]
        lines += [f"data check: site '{site}': {text}" for text in said]
    return lines


def rows_of(found: Checked) -> list[list[str]]:
    """The head of the table, and a row a site, of what one wants to see first; "–" is not told."""
    columns = {
        "patients": ("patients", "{:.0f}"),
        "cases": ("cases", "{:.0f}"),
        "width": ("image_width", "{:.0f}"),
        "height": ("image_height", "{:.0f}"),
        "grey": ("intensity_mean", "{:.2f}"),
        "contrast": ("intensity_deviation", "{:.2f}"),
        "words": ("report_words", "{:.0f}"),
        "no report": ("missing_reports", "{:.0%}"),
        "sides": ("agreement", "{:.0%}"),
        "masked": ("masked", "{:.0%}"),
    }
    rows = [["site", *columns]]
    for site, values in found["sites"].items():
        every = {**values, "agreement": agreement(values)[0], "masked": _least_prevalence(values)}
        cells = [_cell(every.get(name), form, name in found["withheld"][site]) for name, form in columns.values()]
        rows.append([site, *cells])
    return rows


def table_of(found: Checked) -> str:
    """`rows_of` in columns, and what is withheld."""
    rows = rows_of(found)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) if not k else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows
    ]
    kept = [f"  withheld by {site}'s policy: {', '.join(names)}" for site, names in found["withheld"].items() if names]
    return "\n".join(["data check, before any training (– is not told):", *lines, *kept])


def agreement(values: Mapping[str, float | None]) -> tuple[float | None, str]:
    """Share of one-sided reports that agree with their masks, and whose left they then mean; (None, "") where that is not told."""
    patient, image = values.get("sides_patient"), values.get("sides_image")
    if patient is None or image is None:
        return None, ""
    return (patient, "patient") if patient >= image else (image, "image")


def _cell(value: float | None, form: str, kept: bool) -> str:
    return "–" if value is None or kept else form.format(value)


def _sides(site: str, sites: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    share, convention = agreement(sites[site])
    if share is None:
        return []
    if share < CLEAR:
        return [f"reports and masks agree on the side in {share:.0%} only; at {CLEAR:.0%} a convention counts as clear."]
    others = [agreement(values) for name, values in sites.items() if name != site]
    clear = [other for at, other in others if at is not None and at >= CLEAR]
    if clear and sum(other != convention for other in clear) * 2 > len(clear):
        return [f"its reports mean the {convention}'s left, those of most others not: its manifest must say so (laterality)."]
    return []


def _labels(values: Mapping[str, float | None], targets: tuple[str, ...]) -> list[str]:
    said = []
    for target in targets:
        name = f"prevalence:{target}" if len(targets) > 1 else "prevalence"
        share = values.get(name)
        if share is not None and 1 - share > EMPTY:
            said.append(f"{1 - share:.0%} of its masks{f' of {target}' if len(targets) > 1 else ''} are empty.")
    missing = values.get("missing_reports")
    if missing is not None and missing > MISSING:
        said.append(f"{missing:.0%} of its cases have no report.")
    cases, skipped = values.get("cases"), values.get("skipped")
    if cases is not None and skipped is not None and skipped > SKIPPED * (cases + skipped):
        said.append(f"{skipped:.0f} rows of its manifest cannot be used, beside {cases:.0f} cases.")
    return said


def _language(site: str, sites: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    def main(values: Mapping[str, float | None]) -> str:
        shares = {name.removeprefix("language_"): share for name, share in values.items() if name.startswith("language_") and share}
        return max(shares, key=lambda name: shares[name] or 0.0) if shares else ""

    own, others = main(sites[site]), [found for name, values in sites.items() if name != site and (found := main(values))]
    usual = statistics.multimode(others)
    if own and usual and own not in usual:
        return [f"most of its reports are in another language ('{own}') than those of the others ('{usual[0]}')."]
    return []


def _images(site: str, sites: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    said = []
    own = sites[site]

    def others(name: str) -> float | None:
        told = [value for other, values in sites.items() if other != site and (value := values.get(name)) is not None]
        return statistics.median(told) if len(told) >= FEWEST_TO_COMPARE and own.get(name) is not None else None

    if (usual := others("intensity_mean")) is not None and abs((own["intensity_mean"] or 0.0) - usual) > BRIGHTER:
        said.append(f"its images have a mean grey of {own['intensity_mean']:.2f}, the others of {usual:.2f}: inverted, or another window?")
    for name, limit, what in (
        ("intensity_deviation", FLATTER, "contrast"),
        ("image_width", LARGER, "width in pixels"),
        ("image_height", LARGER, "height in pixels"),
    ):
        if (usual := others(name)) is not None:
            low, high = sorted((own[name] or 0.0, usual))
            if high > limit * low:
                said.append(f"the {what} of its images is {own[name]:.4g}, that of the others {usual:.4g}.")
    return said


def _amount(values: Mapping[str, float | None]) -> list[str]:
    patients, fewest = values.get("patients"), PrivacyRules().min_patients
    if patients is None or patients >= fewest:
        return []
    return [f"{patients:.0f} patients are too few for privacy: policies ask for {fewest} that train unless they say otherwise."]


def _least_prevalence(values: Mapping[str, float | None]) -> float | None:
    return min((value for name, value in values.items() if name.startswith("prevalence") and value is not None), default=None)
