"""report.html: one file that needs nothing else, made from a run's folder alone."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from tmca_core import __version__
from tmca_core.report import story
from tmca_core.report.charts import Line, Range, bar_chart, line_chart, range_chart
from tmca_core.report.consortium import consortium
from tmca_core.report.content import Content, Point, gather
from tmca_core.report.drawing import COLOURS, draw_film, draw_panel
from tmca_core.report.lenient import mapping, number
from tmca_core.report.privacy import privacy_part
from tmca_core.report.published import Figure, figures
from tmca_core.run import Run, write_atomically

MOST_PANELS = 12  # small charts, one a site
MOST_ROWS = 100  # of any table
MOST_OPEN = 3  # cases whose maps are unfolded


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's folder, from config.toml, run.json, metrics.jsonl and examples/.

    A part that the run lacks is left out with a sentence.

    Raises:
        ConfigError: the folder is not a run, or its config.toml or run.json cannot be read.
    """
    path = run.folder / "report.html"
    write_atomically(path, render(gather(run)))
    return path


def render(content: Content) -> str:
    """The page. Everything that comes from the run is escaped: reports and names are data, never markup."""
    here = files("tmca_core.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "figure": story.figure,
        "fine": lambda value: story.figure(value, 4),
        "percent": story.percent,
        "signed": story.signed,
        "size": story.size,
        "duration": story.duration,
    }
    template = environment.from_string((here / "report.html.j2").read_text(encoding="utf-8"))
    verdict, verdict_tone = story.text_verdict(content)
    swaps = [film for film in content.films if film.kind == "counterfactual" and "swapped" in film.paths]
    gallery = [film for film in content.films if film.kind != "counterfactual"]
    targets = content.config.data.target_names
    return template.render(
        c=content,
        css=(here / "report.css").read_text(encoding="utf-8"),
        version=__version__,
        headline=story.headline(content),
        verdict=verdict,
        verdict_tone=verdict_tone,
        tone=story.tone,
        tiles=story.tiles(content),
        facts=_facts(content),
        command=_command(content),
        counterfactual_chart=_counterfactual_chart(content),
        swaps=swaps,
        gallery=gallery,
        explained=[film for film in (*gallery, *swaps) if film.panels],
        most_open=MOST_OPEN,
        film=draw_film,
        panel=draw_panel,
        targets=[(name, f"t{k % COLOURS}") for k, name in enumerate(targets)] if len(targets) > 1 else [],
        without=mapping(mapping(content.summary.get("final")).get("without_report")),
        per_target=list(mapping(mapping(content.summary.get("final")).get("per_target")).items()),
        published=_published(content),
        marked=mark_changes,
        overall_chart=_overall_chart(content),
        site_charts=_site_charts(content),
        loss_chart=_loss_chart(content),
        range_chart=_range_chart(content),
        rows=sorted(content.sites, key=lambda row: (row.dice is None, row.dice or 0.0))[:MOST_ROWS],
        most_rows=MOST_ROWS,
        consortium=consortium(content.summary) if content.federated else None,
        bytes=mapping(content.summary.get("bytes")),
        seconds=mapping(content.summary.get("seconds")),
        privacy=privacy_part(content.summary, content.ledgers),
        counter=mapping(content.summary.get("counterfactual")),
        final=mapping(content.summary.get("final")),
    )


def mark_changes(before: str, after: str) -> Markup:
    """`after`, with the words that are not as in `before` marked."""
    old, new = re.findall(r"\S+|\s+", before), re.findall(r"\S+|\s+", after)
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = escape("".join(new[start:end]))
        parts.append(text if kind == "equal" or not text.strip() else Markup("<mark>{}</mark>").format(text))
    return Markup("").join(parts)


def _facts(content: Content) -> list[tuple[str, str]]:
    summary, config = content.summary, content.config
    cases = int(number(mapping(summary.get("final")).get("cases")) or 0)
    facts = [
        ("Network", str(summary.get("network", config.network.name))),
        ("Image encoder", config.network.image_encoder),
        ("Text encoder", config.network.text_encoder),
        ("Rounds", str(summary.get("rounds", config.federation.rounds))),
        ("Engine", str(summary.get("engine", config.simulation.engine))),
        ("Image size", f"{config.data.image_size} px"),
        ("Seed", str(summary.get("seed", config.seed))),
    ]
    if cases:
        facts.insert(0, ("Test cases", str(cases)))
    if summary.get("resumed_from") is not None:
        facts.append(("Resumed from round", str(summary["resumed_from"])))
    return facts


def _command(content: Content) -> str:
    """What makes this run again."""
    if content.federated:
        return "tmca simulate config.toml --out another-folder"
    kind, _, site = str(content.summary.get("arm", "")).partition(":")
    return f"tmca train config.toml{f' --site {shlex.quote(site)}' if kind == 'local' else ''} --out another-folder"


def _published(content: Content) -> list[tuple[str, str, list[Figure], float | None, float | None]]:
    """Two tables, never mixed: heading, explanation, published figures, and this run's Dice and IoU of the same kind."""
    name, final = content.config.evaluation.published, mapping(content.summary.get("final"))
    if not name:
        return []
    kinds = [
        ("pooled", "Pooled", "one value from the areas of all test cases"),
        ("image", "Per image", "mean over the test cases"),
    ]
    return [
        (heading, told, figures(name, pooled=key == "pooled"), number(final.get(f"dice_{key}")), number(final.get(f"iou_{key}")))
        for key, heading, told in kinds
    ]


def _counterfactual_chart(content: Content) -> Markup:
    counter = mapping(content.summary.get("counterfactual"))
    names = {"true": "its own report", "swapped": "left ↔ right swapped", "shuffled": "another case's report", "empty": "no report"}
    bars = [(label, value, key) for key, label in names.items() if (value := number(counter.get(key))) is not None]
    return bar_chart("Dice per image against the true mask, by the report the network was given", bars)


def _overall_chart(content: Content) -> Markup:
    lines = []
    pooled, federated = content.curves.get(("pooled", ""), []), content.curves.get(("federated", ""), [])
    if local := mean_curve([points for (arm, site), points in content.curves.items() if arm.startswith("local:") and site]):
        name = "alone (mean over sites)" if content.federated else "this run"
        lines.append(Line(name, local, "local" if content.federated else "federated"))
    if pooled:
        lines.append(Line("pooled" if content.federated else "this run", pooled, "pooled" if content.federated else "federated"))
    if federated:
        lines.append(Line("federated", federated, "federated"))
    return line_chart("Validation Dice by round", lines, x_label="round", y_label="Dice per image, validation")


def _site_charts(content: Content) -> list[tuple[str, Markup]]:
    """One small chart a site, all on one scale; the sites with the lowest last Dice where there are too many."""
    by_site: dict[str, list[Line]] = {}
    for (arm, site), points in sorted(content.curves.items(), key=lambda item: item[0][0] == "federated"):
        if not site or not points or (arm.startswith("local:") and arm != f"local:{site}" and content.federated):
            continue
        kind = "local" if arm.startswith("local:") else arm if arm in ("pooled", "federated") else "single"
        label = {"local": "alone", "pooled": "pooled", "federated": "federated"}.get(kind, arm)
        by_site.setdefault(site, []).append(Line(f"{site}, {label}", points, kind if content.federated else "federated"))
    every = [y for lines in by_site.values() for line in lines for _, y in line.points]
    worst = sorted(by_site, key=lambda site: by_site[site][-1].points[-1][1])[:MOST_PANELS]
    return [
        (
            site,
            line_chart(
                f"Validation Dice by round, {site}",
                by_site[site],
                x_label="round",
                y_label="Dice",
                width=300,
                height=150,
                y_range=(min(every), max(every)),
                small=True,
            ),
        )
        for site in sorted(worst)
    ]


def _loss_chart(content: Content) -> Markup:
    style = "single" if content.federated else "federated"
    lines = [Line(site, points, style) for (arm, site), points in content.losses.items() if arm == "federated" or not content.federated]
    lines = lines[:MOST_PANELS]
    if content.federated and (mean := mean_curve([line.points for line in lines])) and len(lines) > 1:
        lines.append(Line("mean over sites", mean, "federated"))
    return line_chart("Training loss by round", lines, x_label="round", y_label="loss", height=220)


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Mean over curves at every round that all of them have."""
    tables = [dict(points) for points in curves if points]
    if not tables:
        return []
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in shared]


def _range_chart(content: Content) -> Markup:
    scored = sorted((row for row in content.sites if row.dice is not None), key=lambda row: -(row.dice or 0.0))
    if len(scored) > 24:
        return Markup("")
    rows: list[Any] = [Range(row.name, row.dice, row.ci95, row.local) for row in scored]
    value = "federated" if content.federated else "Dice"
    return range_chart(
        "Dice a site on held-out patients", rows, x_label="Dice per image, held-out patients", value_label=value, other_label="alone"
    )
