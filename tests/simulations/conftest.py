"""What several tests of real deployments start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes of a test, ended with their children when it is over."""
    started = Processes(tmp_path)
    yield started
    started.stop()
