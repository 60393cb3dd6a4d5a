"""What a report says, gathered from a run's folder and from nothing else. Parts that a run does not have are None or empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.report.films import Film, load_films
from tmca_core.report.lenient import mapping, number, objects
from tmca_core.report.privacy import ledger_curves
from tmca_core.run import Run

Point = tuple[float, float]


@dataclass(frozen=True)
class SiteRow:
    """One line of the table of sites; None where the run does not know, or where the site's policy keeps the figure (`withheld`)."""

    name: str
    patients: int | None
    train_cases: int | None
    test_cases: int | None
    dice: float | None
    ci95: tuple[float, float] | None
    local: float | None
    laterality_error: float | None
    withheld: bool = False

    @property
    def gain(self) -> float | None:
        """What the site wins by taking part."""
        return None if self.dice is None or self.local is None else self.dice - self.local


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        summary: run.json, {} where the run has not ended.
        curves: (arm, site) → validation Dice by round; site "" is the mean over sites.
        losses: (arm, site) → training loss by round.
        faults: (round, site, reason), in order, none twice.
        skipped: (site, row, column, reason) of every case that could not be used; `skipped_counts` their number a site.
        remarks: what could not be shown and why.
        ledgers: (entry, ε) by site, of the ledgers that lie in the run's folder.
        checked: the check of all sites' data before training: rows of text, the first its head; `warnings`: what was wrong.
    """

    config: Config
    toml: str
    summary: Mapping[str, Any]
    sites: Sequence[SiteRow]
    curves: Mapping[tuple[str, str], Sequence[Point]]
    losses: Mapping[tuple[str, str], Sequence[Point]]
    faults: Sequence[tuple[int, str, str]]
    skipped: Sequence[tuple[str, str, str, str]]
    skipped_counts: Mapping[str, int]
    films: Sequence[Film]
    remarks: Sequence[str] = ()
    ledgers: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    checked: Sequence[Sequence[str]] = ()
    warnings: Sequence[str] = ()

    @property
    def federated(self) -> bool:
        """Whether this was a federation (else one network on one pool of cases)."""
        return self.summary.get("engine") != "centralised" and not (self.curves and all(arm != "federated" for arm, _ in self.curves))

    @property
    def withheld(self) -> bool:
        """Whether a policy keeps figures of the final test."""
        return bool(mapping(self.summary.get("final")).get("withheld"))

    def mean_local(self) -> float | None:
        """Mean of the local-only models, weighted by their test cases where all of these are known (as `dice_image` is)."""
        rows = [row for row in self.sites if row.local is not None]
        if not rows:
            return None
        weights = [row.test_cases or 0 for row in rows]
        if not all(weights):
            weights = [1] * len(rows)
        return sum(w * (row.local or 0.0) for w, row in zip(weights, rows, strict=True)) / sum(weights)


def gather(run: Run) -> Content:
    """Read a run's folder.

    Raises:
        ConfigError: the folder is not a run, or its config.toml or run.json cannot be read.
    """
    if not run.config_path.is_file():
        raise ConfigError(
            f"{run.folder} is not a run: it holds no config.toml. Give the folder that `tmca demo`, `tmca simulate` or `tmca train` "
            "wrote (its --out)."
        )
    config = run.config()
    try:
        summary = run.read_json("run.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {run.folder / 'run.json'}: {error}. Repeat the command that wrote the run; it resumes.") from None
    if not isinstance(summary, dict):
        raise ConfigError(f"{run.folder / 'run.json'} holds no JSON object. Repeat the command that wrote the run; it resumes.")
    remarks: list[str] = []
    curves, losses, faults = _events(run)
    films = load_films(run.folder / "examples", remarks)
    skipped = [
        (str(s.get("site", "")), str(s.get("row", "")), str(s.get("column", "")), str(s.get("reason", "")))
        for s in objects(summary.get("skipped_rows"))
    ]
    counts = {str(s["name"]): int(s["skipped"]) for s in objects(summary.get("sites")) if s.get("skipped") and "name" in s}
    toml = run.config_path.read_text(encoding="utf-8")
    ledgers = ledger_curves(run, summary, remarks)
    checked, warnings = _data_check(run, remarks)
    return Content(
        config, toml, summary, _sites(summary), curves, losses, faults, skipped, counts, films, remarks, ledgers, checked, warnings
    )


def _data_check(run: Run, remarks: list[str]) -> tuple[list[list[str]], list[str]]:
    """Table and warnings of the check of all sites' data before training; empty where there was none."""
    try:
        found = run.read_json("data_check.json")
    except (OSError, ValueError) as error:
        remarks.append(f"data_check.json cannot be read: {error}")
        return [], []
    rows, said = mapping(found).get("table"), mapping(found).get("warnings")
    table = [[str(cell) for cell in row] for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    return table, [str(line) for line in said] if isinstance(said, list) else []


def _sites(summary: Mapping[str, Any]) -> list[SiteRow]:
    per_site = mapping(mapping(summary.get("final")).get("per_site"))
    local = mapping(mapping(summary.get("baselines")).get("local"))
    known = {str(site["name"]): site for site in objects(summary.get("sites")) if "name" in site}
    rows = []
    for name in sorted({*known, *per_site}):
        site, scored = known.get(name, {}), mapping(per_site.get(name))
        interval = scored.get("ci95")
        ends = [number(v) for v in interval] if isinstance(interval, list) and len(interval) == 2 else [None]
        low_high = None if None in ends else (ends[0] or 0.0, ends[1] or 0.0)
        counts = (site.get("patients", scored.get("patients")), site.get("train_cases"), site.get("test_cases", scored.get("cases")))
        patients, train, test = (None if (n := number(c)) is None else int(n) for c in counts)
        dice, error = number(scored.get("dice_image")), number(scored.get("laterality_error"))
        kept = "withheld" in scored or ("patients" in site and site["patients"] is None)
        rows.append(SiteRow(name, patients, train, test, dice, low_high, number(local.get(name)), error, kept))
    return rows


def _events(
    run: Run,
) -> tuple[dict[tuple[str, str], list[Point]], dict[tuple[str, str], list[Point]], list[tuple[int, str, str]]]:
    """Curves, losses and faults. A round that a resumed run repeated counts once, as it was last."""
    curves: dict[tuple[str, str], dict[float, float]] = {}
    losses: dict[tuple[str, str], dict[float, float]] = {}
    weighted: dict[tuple[str, float], dict[str, tuple[float, float]]] = {}
    rounds: dict[str, dict[float, float]] = {}
    faults: dict[tuple[int, str, str], None] = {}
    for event in run.events():
        kind, at = event.get("event"), number(event.get("round"))
        if at is None:
            continue
        arm, site = str(event.get("arm", "federated")), str(event.get("site", ""))
        value, loss = number(event.get("dice_image")), number(event.get("loss"))
        if kind == "site_eval" and value is not None:
            curves.setdefault((arm, site), {})[at] = value
            weighted.setdefault((arm, at), {})[site] = (value, number(event.get("cases")) or 1.0)
        elif kind == "site_train" and loss is not None:
            losses.setdefault((arm, site), {})[at] = loss
        elif kind == "fault":
            faults[int(at), site, str(event.get("reason", ""))] = None
        elif kind == "round":
            if value is not None:
                rounds.setdefault(arm, {})[at] = value
            for name, reason in mapping(event.get("failed")).items():
                faults[int(at), str(name), str(reason)] = None
    for (arm, at), sites in weighted.items():
        mean = sum(v * w for v, w in sites.values()) / sum(w for _, w in sites.values())
        rounds.setdefault(arm, {}).setdefault(at, mean)
    for arm, values in rounds.items():
        curves[arm, ""] = values
    as_points = {key: sorted(values.items()) for key, values in curves.items()}
    return as_points, {key: sorted(values.items()) for key, values in losses.items()}, sorted(faults)
