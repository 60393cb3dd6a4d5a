"""The SuperLink's database waits for its turn."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from flwr.supercore import sql_mixin
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from server.superlink import PATIENCE, wait_longer


def test_a_database_opened_from_now_on_waits_longer_than_flowers_five_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)  # put back afterwards
    wait_longer()
    store = SqlObjectStore(str(tmp_path / "state.db"))
    store.initialize()
    assert store.query("PRAGMA busy_timeout") == [{"timeout": 1000 * PATIENCE}]
    assert store.query("PRAGMA journal_mode") == [{"journal_mode": "wal"}]
    # Another writer holds the database for longer than that: what waits for it comes through all the same.
    other = sqlite3.connect(tmp_path / "state.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    release.start()
    store.clear()
    release.join()
    other.close()
