"""Rows: files that are not what they say."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

from simulations.rehearsal.asked import base
from simulations.rehearsal.interface import Row, expect
from simulations.rehearsal.live import short
from simulations.rehearsal.stage import Stage


def climbing(stage: Stage) -> str:
    """Rows of a manifest that name images outside of its folder: by dots, by a link, by an absolute path."""
    place = stage.scratch("climbing")
    site = stage.names[0]
    lines = stage.manifest(site).read_text().splitlines()
    header, row = lines[0].split(","), lines[1]
    image = row.split(",")[header.index("image")]
    mask = row.split(",")[header.index("mask")]
    data = place / "data"
    for name in (image, mask):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(stage.folder / "data" / name, data / name)
    outside = place / "outside.png"
    shutil.copy(stage.folder / "data" / image, outside)
    (data / "link.png").symlink_to(outside)
    climbers = ("../outside.png", "link.png", str(outside))
    bad = [row.replace(image, path).replace("-p000-1,", f"-p00{number}-9,", 1) for number, path in enumerate(climbers, 1)]
    (data / "manifest.csv").write_text("\n".join([lines[0], row, *bad]) + "\n")
    shutil.copy(stage.manifest(site).with_suffix(".toml"), data / "manifest.toml")
    done = stage.run("tmca", "data", "check", data / "manifest.csv", "--json")
    said = json.loads(done.stdout)
    reasons = {entry["row"]: entry["reason"] for entry in said["skipped"] if entry["column"] == "image"}
    expect(
        sorted(reasons) == [3, 4, 5] and said["cases"] == 1, f"{said['cases']} cases, refused rows {sorted(reasons)}: {done.stderr[-200:]}"
    )
    return f"each named and refused ({short(reasons[3], 90)}); the sound row is a case"


def pickled(stage: Stage) -> str:
    """A checkpoint that is a pickle, which would run a command when it is loaded."""
    run = base(stage)
    place = stage.scratch("pickle")
    mark = place / "ran"
    checkpoint = place / "run"
    shutil.copytree(run.folder, checkpoint)
    last = sorted((checkpoint / "checkpoints").glob("round-*"))[-1]
    (last / "model.safetensors").write_bytes(pickle.dumps(_Trap(mark)))
    done = stage.run("tmca", "evaluate", last, "--manifest", stage.manifest(stage.names[0]), "--out", place / "out")
    expect(not mark.exists(), "the command in the pickle ran")
    expect(done.returncode == 2, f"ended with {done.returncode}: {done.stdout[-200:]}{done.stderr[-200:]}")
    return f"exit code 2: {short(done.stderr.strip().splitlines()[-1], 140)} Nothing in it ran"


class _Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.mark,)


ROWS = (
    Row("climbing-manifest", "intrusion", "a manifest whose paths lead out of its folder", "each such row is named and refused", climbing),
    Row("pickled-checkpoint", "intrusion", "a checkpoint that is a pickle", "refused with exit code 2; nothing in it runs", pickled),
)  # fmt: skip
