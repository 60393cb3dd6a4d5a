"""Several runs side by side: one row a setting, mean and deviation over seeds, as JSON, Markdown and one self-contained page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tmca_core.dotted import Scalar
from tmca_core.errors import ConfigError
from tmca_core.report import story
from tmca_core.report.lenient import mapping, number, objects
from tmca_core.run import Run, write_atomically

# What does not make two runs different experiments.
_ASIDE = ("simulation.", "data.cache_dir")
MEASURES: dict[str, tuple[str, str]] = {
    "dice": ("Dice", "mean Dice per image over all held-out cases"),
    "worst": ("Worst site", "lowest mean Dice of a site"),
    "gain": ("Gain over alone", "mean over sites of Dice minus that of the site's own model"),
    "least_gain": ("Least gain", "of the site that gains least"),
    "pooled_share": ("Of pooled", "Dice over that of one model trained on all cases in one place"),
    "swapped": ("Sides swapped", "Dice when left and right are exchanged in the report"),
    "bytes_up": ("Up", "bytes a site sends a round"),
    "bytes_down": ("Down", "bytes a site receives a round"),
    "seconds": ("Time", "seconds in all"),
    "faults": ("Turns lost", "turns of sites that were lost or refused"),
    "suspects": ("Suspects", "sites that the run names"),
}


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only.

    Attributes:
        label: the settings in which this row differs from others, "a=1, b=2".
        settings: the same as values.
        seeds: of its runs.
        values: measure → a value a run, in the order of `seeds`; runs that lack it are left out.
        named: sites that any of its runs suspects.
    """

    label: str
    settings: Mapping[str, Scalar]
    seeds: Sequence[int]
    values: Mapping[str, Sequence[float]]
    named: Sequence[str]

    def mean(self, measure: str) -> float | None:
        """Over seeds; None where no run has it."""
        return statistics.fmean(self.values[measure]) if self.values.get(measure) else None

    def deviation(self, measure: str) -> float | None:
        """Sample deviation over seeds; None of fewer than two."""
        return statistics.stdev(self.values[measure]) if len(self.values.get(measure, ())) > 1 else None


def runs_below(folders: Sequence[Path]) -> list[Run]:
    """The runs that `folders` are, or that lie directly in them, each once, sorted.

    Raises:
        ConfigError: a folder neither is a run nor holds one.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        here = [folder] if Run(folder).config_path.is_file() else sorted(p for p in folder.glob("*") if Run(p).config_path.is_file())
        if not here:
            raise ConfigError(
                f"{folder} is no run and holds none (no config.toml). Give folders that `tmca simulate` or `tmca sweep` wrote."
            )
        found |= {path.resolve(): Run(path.resolve()) for path in here}
    return list(found.values())


def compare(runs: Sequence[Run]) -> list[Row]:
    """Rows by the settings in which the runs differ, in the order of the runs; runs that have not ended are left out.

    Raises:
        ConfigError: fewer than one run has ended, or a run.json cannot be read.
    """
    ended: list[tuple[dict[str, Scalar], Mapping[str, Any]]] = []
    for run in runs:
        try:
            summary: Mapping[str, Any] = run.read_json("run.json")
        except ValueError as error:
            raise ConfigError(
                f"cannot read {run.folder / 'run.json'}: {error}. Repeat the command that wrote the run; it resumes."
            ) from None
        if mapping(mapping(summary).get("final")):
            ended.append(({k: v for k, v in run.config().flat().items() if not k.startswith(_ASIDE)}, summary))
    if not ended:
        raise ConfigError("none of these runs has ended, so there is nothing to compare. Repeat the commands that wrote them; they resume.")
    first = ended[0][0]
    differing = [key for key in first if key != "seed" and any(settings[key] != first[key] for settings, _ in ended)]
    groups: dict[str, list[tuple[dict[str, Scalar], Mapping[str, Any]]]] = {}
    for settings, summary in ended:
        label = ", ".join(f"{_short(key, differing)}={'none' if settings[key] == '' else settings[key]}" for key in differing) or "all runs"
        groups.setdefault(label, []).append((settings, summary))
    return [_row(label, members, differing) for label, members in groups.items()]


def _short(key: str, among: Sequence[str]) -> str:
    """The last part of a key, where no other has the same."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else key


def _row(label: str, members: Sequence[tuple[dict[str, Scalar], Mapping[str, Any]]], differing: Sequence[str]) -> Row:
    measured = [_measures(summary) for _, summary in members]
    values = {name: [value for one in measured if (value := one[name]) is not None] for name in MEASURES}
    named = sorted({str(entry["site"]) for _, summary in members for entry in objects(summary.get("suspects")) if "site" in entry})
    settings = {key: members[0][0][key] for key in differing}
    return Row(label, settings, [int(one["seed"]) for one, _ in members], values, named)


def _measures(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """A run's measures; None where it has none."""
    final, baselines, traffic = (mapping(summary.get(key)) for key in ("final", "baselines", "bytes"))
    sites = {
        name: value for name, one in mapping(final.get("per_site")).items() if (value := number(mapping(one).get("dice_image"))) is not None
    }
    local = {name: value for name, one in mapping(baselines.get("local")).items() if (value := number(one)) is not None}
    gains = [sites[name] - local[name] for name in sites if name in local]
    dice, pooled = number(final.get("dice_image")), number(baselines.get("pooled"))
    return {
        "dice": dice,
        "worst": min(sites.values(), default=None),
        "gain": statistics.fmean(gains) if gains else None,
        "least_gain": min(gains, default=None),
        "pooled_share": dice / pooled if dice is not None and pooled else None,
        "swapped": number(mapping(summary.get("counterfactual")).get("swapped")),
        "bytes_up": number(traffic.get("up_per_site_round")),
        "bytes_down": number(traffic.get("down_per_site_round")),
        "seconds": number(mapping(summary.get("seconds")).get("total")),
        "faults": float(len(objects(summary.get("faults")))),
        "suspects": float(len(objects(summary.get("suspects")))),
    }


# --- writing ----------------------------------------------------------------------------------------
_SHOWN: dict[str, Callable[[float], str]] = {
    "gain": story.signed,
    "least_gain": story.signed,
    "pooled_share": story.percent,
    "bytes_up": story.size,
    "bytes_down": story.size,
    "seconds": story.duration,
    "faults": lambda value: f"{value:g}",
    "suspects": lambda value: f"{value:g}",
}
_WITH_DEVIATION = ("dice", "worst", "gain", "least_gain", "swapped", "pooled_share")


def cell(row: Row, measure: str) -> str:
    """Mean ± deviation as people read it."""
    mean, deviation = row.mean(measure), row.deviation(measure)
    if mean is None:
        return "–"
    text = _SHOWN[measure](mean) if measure in _SHOWN else f"{mean:.3f}"
    if deviation is None or measure not in _WITH_DEVIATION:
        return text
    if measure == "pooled_share":
        return f"{text.removesuffix(' %')} ± {100 * deviation:.1f} %"
    return f"{text} ± {deviation:.3f}"


def shown(rows: Sequence[Row]) -> list[str]:
    """Measures that some row has and that are not 0 everywhere."""
    return [name for name in MEASURES if any(value for row in rows for value in row.values[name])]


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "rows": [
            {
                "label": row.label,
                "settings": dict(row.settings),
                "seeds": list(row.seeds),
                "suspects": list(row.named),
                **{name: {"mean": row.mean(name), "sd": row.deviation(name), "values": list(row.values[name])} for name in MEASURES},
            }
            for row in rows
        ]
    }


def as_markdown(rows: Sequence[Row]) -> str:
    """The comparison as one table."""
    columns = shown(rows)
    lines = [
        "| run | seeds | " + " | ".join(MEASURES[name][0] for name in columns) + " |",
        "|---|---|" + "---|" * len(columns),
        *(
            f"| {row.label.replace('|', '/')} | {len(row.seeds)} | " + " | ".join(cell(row, name) for name in columns) + " |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def write_comparison(runs: Sequence[Run], folder: Path) -> tuple[Path, list[Row]]:
    """Write comparison.html, comparison.md and comparison.json into `folder`; returns the page and the rows.

    Raises:
        ConfigError: as `compare`.
    """
    import json

    rows = compare(runs)
    write_atomically(folder / "comparison.json", json.dumps(as_json(rows), indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "comparison.md", as_markdown(rows))
    page = folder / "comparison.html"
    write_atomically(page, _page(rows, runs, folder))
    return page, rows


def _page(rows: Sequence[Row], runs: Sequence[Run], folder: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    from tmca_core import __version__
    from tmca_core.report.charts import Range, range_chart

    here = files("tmca_core.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "comparison.html.j2").read_text(encoding="utf-8"))
    ranked = sorted(rows, key=lambda row: -(row.mean("dice") or 0.0))
    chart = range_chart(
        "Mean Dice and worst site by run",
        [Range(row.label, row.mean("dice"), _spread(row), row.mean("worst")) for row in ranked],
        x_label="Dice per image, held-out patients",
        value_label="all sites",
        other_label="worst site",
    )
    best = ranked[0]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    return template.render(
        css=(here / "report.css").read_text(encoding="utf-8"),
        version=__version__,
        rows=ranked,
        best=best,
        best_dice=cell(best, "dice"),
        columns=[(name, *MEASURES[name]) for name in shown(rows)],
        cell=cell,
        tone=story.tone,
        chart=chart,
        count=sum(len(row.seeds) for row in rows),
        seeds=seeds,
        suspects=[(row.label, row.named) for row in rows if row.named],
        folders=[str(run.folder.relative_to(folder)) if run.folder.is_relative_to(folder) else run.folder.name for run in runs],
    )


def _spread(row: Row) -> tuple[float, float] | None:
    """Lowest and highest Dice over seeds."""
    values = row.values["dice"]
    return (min(values), max(values)) if len(values) > 1 else None
