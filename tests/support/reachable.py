"""Folders that a process of another user has to get to."""

import os
from pathlib import Path


def make_reachable(folder: Path) -> None:
    """Let everybody pass through `folder` and the test run's own folders above it; how many there are depends on how pytest was started."""
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
