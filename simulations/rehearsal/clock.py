"""A machine whose clock is wrong: Python processes that are started with this folder on their path read another time."""

from __future__ import annotations

import os
from pathlib import Path

_SITECUSTOMIZE = """
import datetime, time
_now, _ns, SHIFT = time.time, time.time_ns, {seconds}
time.time = lambda: _now() + SHIFT
time.time_ns = lambda: _ns() + SHIFT * 10**9
_true = datetime.datetime
class _Metaclass(type):
    def __instancecheck__(cls, instance): return isinstance(instance, _true)
class datetime_(_true, metaclass=_Metaclass):
    @classmethod
    def now(cls, tz=None): return _true.now(tz) + datetime.timedelta(seconds=SHIFT)
    @classmethod
    def utcnow(cls): return _true.utcnow() + datetime.timedelta(seconds=SHIFT)
datetime_.__name__ = datetime_.__qualname__ = "datetime"
datetime.datetime = datetime_
"""


def shifting(folder: Path, seconds: int) -> str:
    """Write what shifts the clock into a folder; returns the PYTHONPATH of a process on such a machine."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(seconds=seconds))
    before = os.environ.get("PYTHONPATH")
    return f"{folder}{os.pathsep}{before}" if before else str(folder)
