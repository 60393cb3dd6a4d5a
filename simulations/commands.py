"""`tmca simulate` and `tmca demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tmca_core.cli import emit


def simulate(
    config_file: Annotated[Path | None, typer.Argument(help="Configuration (TOML).")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Table of cases with a site column; without it the phantom is used.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; the same folder resumes.")] = None,
    engine: Annotated[Literal["inprocess", "ray"] | None, typer.Option(help="One process, or Flower's Ray runtime.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of splits, weights and augmentation.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A setting, e.g. federation.rounds=5; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Simulate a federation of hospitals on this machine, with its baselines and a report."""
    from tmca_core.config import load
    from tmca_core.training.commands import given

    values = given({"data.manifest": manifest, "simulation.engine": engine, "seed": seed})
    config = load(config_file, assignments or []).with_values(values)
    _run(config, out, "simulate", as_json)


def demo(
    out: Annotated[Path | None, typer.Option(help="The run's folder; the same folder resumes.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A setting, e.g. federation.rounds=5; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Four phantom hospitals, trained together in about a minute: start here."""
    from tmca_core.config import parse

    config = parse(DEMO).with_values({})
    if assignments:
        from tmca_core.config import load

        config = config.with_values(
            {k: v for k, v in load(None, assignments).flat().items() if k in {a.split("=")[0] for a in assignments}}
        )
    _run(config, out, "demo", as_json)


# What fits a minute and a half on two cores.
DEMO = {"phantom.cases": 60, "data.image_size": 96, "federation.rounds": 8, "training.epochs": 1}


def _run(config: Any, out: Path | None, kind: str, as_json: bool) -> None:
    from simulations.experiment import run_experiment
    from tmca_core.console import RoundTable, run_folder
    from tmca_core.training.commands import headline

    folder = run_folder(out or config.simulation.out, kind)
    with RoundTable(config.federation.rounds, quiet=as_json) as table:
        summary = run_experiment(config, folder, table)
    if config.federation.check == "only":
        from server.checking import table_of

        checked = summary["data_check"]
        told = [table_of(checked), *(checked["warnings"] or ["nothing that looks wrong"])]
        emit(as_json, summary, "\n".join([*told, f"nothing was trained; the same --out without federation.check trains in {folder}"]))
        return
    lines = [headline(summary)]
    if "local_mean" in summary["baselines"] and summary["final"]["dice_image"] is not None:
        dice, others = summary["final"]["dice_image"], summary["baselines"]
        lines.append(f"federated {dice:.3f}, pooled {others['pooled']:.3f}, each site alone {others['local_mean']:.3f} on average")
    if summary["skipped"]:
        lines.append(f"{summary['skipped']} rows of the manifest were skipped; they are listed in run.json and in the report")
    lines.append(f"{summary['seconds']['total']:.0f} s; report: {folder / 'report.html'}")
    emit(as_json, summary, "\n".join(lines))
