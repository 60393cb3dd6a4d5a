"""`tmca doctor`: is this machine ready?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tmca_core.cli import emit


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False) -> None:
    """Check packages, device, memory, disk and caches of this machine."""
    checks = [*_packages(), _device(), _memory(), _disk(), _pretrained()]
    failed = [check for check in checks if check["state"] == "missing"]
    marks = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}
    emit(as_json, {"ok": not failed, "checks": checks}, "\n".join(f"{marks[c['state']]} {c['what']}: {c['detail']}" for c in checks))
    if failed:
        raise typer.Exit(2)


def _check(what: str, state: str, detail: str) -> dict[str, Any]:
    return {"what": what, "state": state, "detail": detail}


def _packages() -> list[dict[str, Any]]:
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement
    from packaging.version import Version

    rows = []
    for text in requires("tmca-fl") or []:
        requirement = Requirement(text)
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            state = "note" if extra else "missing"
            rows.append(_check(requirement.name, state, f"not installed{' (optional)' if extra else ''}; wanted {requirement.specifier}"))
            continue
        good = requirement.specifier.contains(Version(found).base_version, prereleases=True)
        rows.append(_check(requirement.name, "ok" if good else "missing", found if good else f"{found}, wanted {requirement.specifier}"))
    return rows


def _device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return _check("device", "ok", f"CUDA: {names}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    return _check("device", "note", f"CPU only, {torch.get_num_threads()} torch threads; a GPU is wanted for ConvNeXt-Tiny at 224²")


def _memory() -> dict[str, Any]:
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return _check("memory", "ok" if total >= 4 else "note", f"{total:.1f} GiB")


def _disk() -> dict[str, Any]:
    import shutil

    from tmca_core.cases.decode import default_cache_dir

    folder = default_cache_dir()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 2**30
    return _check("disk", "ok" if free >= 2 else "note", f"{free:.1f} GiB free for caches in {folder}")


def _pretrained() -> dict[str, Any]:
    from tmca_core.errors import TmcaError
    from tmca_core.pretrained import efficientnet_lite0_weights, minilm_folder

    found, absent = [], []
    for name, load in (("MiniLM", minilm_folder), ("EfficientNet-Lite0", efficientnet_lite0_weights)):
        try:
            load()
            found.append(name)
        except TmcaError:
            absent.append(name)
    detail = f"verified: {', '.join(found) or 'none'}" + (f"; absent (optional): {', '.join(absent)}" if absent else "")
    return _check("pretrained weights", "ok" if not absent else "note", detail)
