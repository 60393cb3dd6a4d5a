"""Simulated hospitals with a policy and a ledger each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hospital import POLICY, private

from tmca_core.config import Config
from tmca_core.privacy.ledger import Ledger

SITES = ("phantom-00", "phantom-01", "phantom-02")


def policies(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """A policy and a ledger for every site; a change is (site or "" for all, text, what stands there instead)."""
    for site in SITES:
        text = POLICY.format(epsilon=50, min_cases=2) + f'[ledger]\nfolder = "{site}"\n'
        for whose, old, new in changes:
            assert old in text
            text = text.replace(old, new) if whose in ("", site) else text
        (folder / f"{site}.toml").write_text(text)
        Ledger.create(folder / site)
    return folder


def config(folder: Path, **values: Any) -> Config:
    base = {"phantom__sites": 3, "phantom__cases": 24, "federation__rounds": 2, "federation__poll": 0.05, "evaluation__bootstrap": 20}
    base |= {"data__val_fraction": 0.25, "data__test_fraction": 0.3}  # each patient by itself: enough of them for `min_cases`
    own = {"data__cache_dir": str(folder / "cache"), "simulation__policies": str(folder), "simulation__baselines": False}
    return private(**base | own | values)
