"""The two baselines of a federation, trained beside it in other processes: all cases pooled, and every site alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tmca_core.cases.sites import SiteData, load_sites
from tmca_core.config import Config
from tmca_core.run import Run
from tmca_core.training.centralised import test_scores, train_arm


def arms(sites: Mapping[str, SiteData]) -> list[str]:
    """pooled, then local:NAME for every site that has held-out cases to be judged on; longest first."""
    local = sorted((s for s in sites.values() if len(s.test)), key=lambda s: -len(s.train))
    return ["pooled", *(f"local:{site.name}" for site in local)]


def run_arm(config: Config, folder: Path, arm: str, sites: Mapping[str, SiteData] | None = None) -> dict[str, Any]:
    """Train and test one baseline; its result is kept in the run's folder, so a resumed run does not repeat it.

    Returns:
        {"arm", "dice_image", "per_site": {site: dice_image}}: pooled is tested on all sites, a local model on its own.
    """
    run, name = Run(folder), quote(arm, safe="")
    result = run.read_json(f"baselines/{name}.json")
    if result:
        return result
    sites = sites or load_sites(config)
    kind, _, site = arm.partition(":")
    chosen = {site: sites[site]} if kind == "local" else sites
    if kind == "pooled" and config.training.steps:
        # A federation takes `training.steps` at every site; pooled training takes as many in all.
        config = config.with_values({"training.steps": config.training.steps * len(sites)})
    network, pipeline = train_arm(config, chosen, run, arm=arm, checkpoints=name)
    scores = test_scores(network, pipeline, chosen, config)
    by_site: dict[str, list[float]] = {}
    for score in scores:
        by_site.setdefault(score.site, []).append(score.dice)
    result = {
        "arm": arm,
        "dice_image": sum(s.dice for s in scores) / len(scores),
        "per_site": {name: sum(dice) / len(dice) for name, dice in by_site.items()},
    }
    run.write_json(f"baselines/{name}.json", result)
    return result


class Baselines:
    """Baselines running beside the federation; `finish` helps with those that have not begun."""

    def __init__(self, config: Config, folder: Path, sites: Mapping[str, SiteData]) -> None:
        self.config, self.folder, self.sites = config, folder, sites
        workers = config.simulation.workers - 1
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) if workers else None
        self.futures: dict[str, Future[dict[str, Any]] | None] = {
            arm: self.pool.submit(run_arm, config, folder, arm) if self.pool else None for arm in arms(sites)
        }

    def finish(self, note: Callable[[str], None]) -> dict[str, dict[str, Any]]:
        """Results by arm, once all are done."""
        results: dict[str, dict[str, Any]] = {}
        for arm in reversed(self.futures):  # the workers take them from the front
            future = self.futures[arm]
            if future is None or future.cancel():
                results[arm] = run_arm(self.config, self.folder, arm, self.sites)
                note(f"baseline {arm}: dice {results[arm]['dice_image']:.3f}")
        for arm, future in self.futures.items():
            if arm not in results and future is not None:
                results[arm] = future.result()
                note(f"baseline {arm}: dice {results[arm]['dice_image']:.3f}")
        return results

    def close(self) -> None:
        """Stop the workers; what they have begun is resumed by the next call."""
        if self.pool:
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
            self.pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: end at once when the main process is gone, however it went, so that a resumed run has its folder to itself."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
