"""The page's part on privacy: what every site has spent, by round and by entry of its ledger, and against what bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from markupsafe import Markup

from tmca_core.errors import LedgerError
from tmca_core.report.charts import Line, line_chart
from tmca_core.report.lenient import mapping, number
from tmca_core.run import Run

MOST_LEDGERS = 24
"""Ledgers that are drawn; reading one and composing it takes a fraction of a second."""
PLACES = 12
"""Entries of a ledger at which ε is computed."""

Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Spending:
    """One site's row; None where the run does not say.

    Attributes:
        epsilon: add/remove, by privacy loss distributions. `replace_one`: where a neighbour has one patient exchanged.
        patients: None: the site's policy keeps their number.
    """

    name: str
    epsilon: float | None
    replace_one: float | None
    noise_multiplier: float | None
    sample_rate: float | None
    steps: float | None
    patients: float | None


@dataclass(frozen=True)
class PrivacyPart:
    """Everything of the section.

    Attributes:
        head: unit, relation, δ and accountant, as text.
        rows: the largest ε first.
        by_round: chart of ε over rounds. `by_entry`: over entries of the ledgers that lie in the run's folder. Empty where there is none.
        worst, worst_ledger: the site that is drawn bold in each.
        bound: what the run was to stay within; None: its noise decided.
        all_runs: ε with everything else on the ledger; None where the run does not know.
        plain: updates without noise that have left of the same patients, so that there is none.
    """

    head: Mapping[str, str]
    rows: Sequence[Spending]
    by_round: Markup
    by_entry: Markup
    worst: str
    worst_ledger: str
    bound: float | None
    all_runs: float | None
    plain: float | None


def ledger_curves(run: Run, summary: Mapping[str, Any], remarks: list[str]) -> dict[str, list[tuple[float, float]]]:
    """[entry, ε of the worst-off patient] of every ledger below the run's folder, by site; what cannot be read becomes a remark."""
    delta = number(mapping(summary.get("privacy")).get("delta"))
    folders = sorted(path for path in (run.folder / "ledger").glob("*") if path.is_dir())
    if delta is None or not folders:
        return {}
    from tmca_core.privacy.ledger import Ledger

    curves: dict[str, list[tuple[float, float]]] = {}
    for folder in folders[:MOST_LEDGERS]:
        try:
            spent = Ledger.open(folder).read()
        except LedgerError as error:
            remarks.append(f"The ledger of {unquote(folder.name)} is not drawn: {error}")
            continue
        entries = [int(entry["n"]) for entry in spent.charges]
        shown = sorted({*entries[:: -(-len(entries) // PLACES) or 1], *entries[-1:]})
        curves[unquote(folder.name)] = [(n, spent.epsilon(delta, until=n, coarse=True)) for n in shown]
    return curves


def privacy_part(summary: Mapping[str, Any], ledgers: Curves) -> PrivacyPart | None:
    """From run.json and the ledgers' curves; None of a run without privacy."""
    stated = mapping(summary.get("privacy"))
    if not stated:
        return None
    sites, bound = mapping(stated.get("sites")), number(stated.get("target"))
    spent = mapping(stated.get("epsilon"))
    rows = [_row(str(name), number(spent[name]), mapping(sites.get(name))) for name in spent]
    rounds = {str(name): _points(mapping(one).get("history")) for name, one in sites.items()}
    by_round, worst = _chart("ε spent by round", rounds, bound, "round")
    by_entry, worst_ledger = _chart("ε spent by entry of the ledger", ledgers, bound, "entry of the ledger")
    return PrivacyPart(
        {key: str(stated.get(key, "–")) for key in ("unit", "relation", "delta", "accountant", "clip")},
        sorted(rows, key=lambda row: -(row.epsilon or 0.0)),
        by_round,
        by_entry,
        worst,
        worst_ledger,
        bound,
        number(stated.get("over_all_runs")),
        number(stated.get("plain_updates")),
    )


def _row(name: str, spent: float | None, own: Mapping[str, Any]) -> Spending:
    keys = ("replace_one", "noise_multiplier", "sample_rate", "steps", "patients")
    return Spending(name, spent, *(number(own.get(key)) for key in keys))


def _points(value: object) -> list[tuple[float, float]]:
    pairs = value if isinstance(value, list) else []
    found = [(number(pair[0]), number(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2]
    return [(x, y) for x, y in found if x is not None and y is not None]


def _chart(title: str, curves: Curves, bound: float | None, x_label: str) -> tuple[Markup, str]:
    """Thin lines, the worst-off site bold, the bound dotted; with that site's name."""
    drawn = {name: [(0.0, 0.0), *points] for name, points in curves.items() if points}
    if not drawn:
        return Markup(""), ""
    worst = max(drawn, key=lambda name: (drawn[name][-1][1], name))
    lines = [Line(name, points, "single") for name, points in drawn.items() if name != worst]
    ends = [x for points in drawn.values() for x, _ in points]
    if bound is not None:
        lines.append(Line(f"bound of the run: {bound:g}", [(min(ends), bound), (max(ends), bound)], "local"))
    lines.append(Line(worst, drawn[worst], "federated"))
    top = max([y for points in drawn.values() for _, y in points] + ([bound] if bound is not None else []))
    return line_chart(title, lines, x_label=x_label, y_label="ε, add/remove", height=240, y_range=(0.0, top)), worst
