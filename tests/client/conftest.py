"""A hospital for the tests of its door."""

from pathlib import Path

import pytest
from hospital import Hospital


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital.make(tmp_path)
