"""A simulated federation from data to report: the federation itself, its baselines, examples and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from simulations.baselines import Baselines
from simulations.engine import simulate
from tmca_core.cases.sites import all_skips, load_sites
from tmca_core.config import Config
from tmca_core.networks import build_network
from tmca_core.report.examples import write_examples
from tmca_core.report.html import write_report
from tmca_core.run import Run
from tmca_core.training.centralised import build_pipeline, concatenate, describe_site, keep_data, peak_rss_mb, test_scores
from tmca_core.training.device import resolve_device, set_threads

OnEvent = Callable[[Mapping[str, Any]], None]


def run_experiment(config: Config, folder: Path, on_event: OnEvent) -> dict[str, Any]:
    """Run or resume everything that `tmca simulate` promises in `folder`; returns run.json.

    Raises:
        TmcaError: bad configuration or data, or a federation that cannot go on.
    """
    with Run(folder).held():
        return _run(config, folder, on_event)


def _run(config: Config, folder: Path, on_event: OnEvent) -> dict[str, Any]:
    start = time.perf_counter()
    set_threads(config.training)
    sites = load_sites(config)
    run = Run.create(folder, config)
    keep_data(run, sites)

    def note(text: str) -> None:
        on_event({"event": "note", "text": text})

    skips = all_skips(sites)
    for skip in skips:
        note(f"skipped row {skip.row}, column '{skip.column}': {skip.reason}")
    if len(sites) == 1:
        note(f"there is one site, '{next(iter(sites))}': give the manifest a site column, or deal its patients out with partition.by=iid")
    if config.federation.check == "only":
        return simulate(config, folder, on_event)
    policed = bool(config.simulation.policies)
    if policed and config.simulation.baselines:
        note("no baselines: they would be trained on the sites' patients beside the sites' policies and ledgers")
    baselines = Baselines(config, folder, sites) if config.simulation.baselines and len(sites) > 1 and not policed else None
    try:
        began = time.perf_counter()
        summary = simulate(config, folder, on_event)
        beside = time.perf_counter() - began
        results = baselines.finish(note) if baselines else {}
    finally:
        if baselines:
            baselines.close()
    if not policed:  # else run.json holds what the policies let out, as between hospitals, and no film or report leaves a site
        _write_examples(config, run, sites, run.checkpoint(summary["tested_round"]).weights)
        summary["sites"] = [describe_site(site) for site in sites.values()]
        summary["skipped"] = len(skips)
        summary["skipped_rows"] = [{"row": s.row, "column": s.column, "reason": s.reason} for s in skips]
    if results:
        # Every site alone on its own held-out cases; the mean is by cases, as the federation's is.
        local = {arm.removeprefix("local:"): r["dice_image"] for arm, r in results.items() if arm != "pooled"}
        summary["baselines"] = {
            "pooled": results["pooled"]["dice_image"],
            "pooled_per_site": results["pooled"]["per_site"],
            "local": local,
            "local_mean": sum(dice * len(sites[name].test) for name, dice in local.items()) / sum(len(sites[name].test) for name in local),
        }
    # The federation counts its own seconds over all calls of a resumed run; what this call did beside it comes on top.
    summary["seconds"]["total"] += time.perf_counter() - start - beside
    summary["peak_rss_mb"] = peak_rss_mb()
    run.write_json("run.json", summary)
    write_report(run)
    return summary


def _write_examples(config: Config, run: Run, sites: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Pictures for the report: possible here because a simulation holds every site's images."""
    network = build_network(config)
    network.load_state_dict({**network.state_dict(), **weights})
    device = resolve_device(config.training)
    network.to(device)
    pipeline = build_pipeline(network, config)
    scores = test_scores(network, pipeline, sites, config)
    test = concatenate([site.test for site in sites.values() if len(site.test)])
    write_examples(run, network, test, scores, pipeline, config.evaluation, device)
