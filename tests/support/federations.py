"""A small federation's description, and the folders that are made of it."""

from __future__ import annotations

from pathlib import Path

from tmca_core.deploy.folders import Made, make_folders
from tmca_core.deploy.schema import load_federation

LOCAL = 'host = "localhost"\noperators = ["tester"]'


def describe(
    folder: Path, *, name: str = "lungs", coordinator: str = LOCAL, sites: tuple[str, ...] = ("ghent", "hannover"), more: str = ""
) -> Path:
    """Write federation.toml; `sites` are names, or whole entries."""
    entries = "\n".join("[[sites]]\n" + (site if "=" in site else f'name = "{site}"') + "\n" for site in sites)
    path = folder / "federation.toml"
    path.write_text(f'name = "{name}"\n[coordinator]\n{coordinator}\n{entries}\n{more}', encoding="utf-8")
    return path


def made(path: Path, *, make_keys: bool = True) -> Made:
    """Make the folders beside a description."""
    return make_folders(load_federation(path), path.parent / "out", make_keys=make_keys)
