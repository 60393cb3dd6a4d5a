"""Breaking a run for real: in a process of its own that is killed, starved of disk, or lied to at a chosen moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmca_core.config import Config, parse
from tmca_core.errors import TmcaError
from tmca_core.run import Run

PATIENCE = 300.0
"""Seconds after which a process that has not ended is called hung."""
Action = Callable[[], None]


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        code: its exit code; below 0 the signal that killed it.
        error: name of what was raised; "" where nothing was.
        told: its message. `teaches`: it is an error of this project, or an interruption, not a crash.
    """

    code: int | None
    error: str = ""
    told: str = ""
    teaches: bool = False

    @property
    def done(self) -> bool:
        """The run went through."""
        return self.code == 0 and not self.error


def run_broken(config: Config, out: Path, trap: str = "", whole: bool = False) -> Ending:
    """Run or resume a simulation in a process of its own, with a trap set.

    Args:
        trap: one of `TRAPS`; "": none.
        whole: as `tmca simulate` does it, with its checks of the data and its lock, and not the federation alone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulations.experiment", "server.rounds", "client.site", "simulations.inprocess"])
    account = out.with_name(f"{out.name}.ending.json")
    account.unlink(missing_ok=True)
    process = context.Process(target=_work, args=(config.flat(), str(out), trap, whole, str(account)))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        return Ending(process.exitcode, "Hung", f"it did not end within {PATIENCE:g} s")
    told = json.loads(account.read_text()) if account.exists() else {}
    return Ending(process.exitcode, **told)


def _work(values: Mapping[str, Any], out: str, trap: str, whole: bool, account: str) -> None:
    from simulations.engine import simulate
    from simulations.experiment import run_experiment
    from tmca_core.training.device import set_threads

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line has it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever was started in the background of a shell ignores it
    config = parse(values)
    set_threads(config.training)
    if trap:
        TRAPS[trap]()
    try:
        if whole:
            run_experiment(config, Path(out), lambda event: None)
        else:
            simulate(config, Path(out))
    except BaseException as error:  # all of it is the result
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        teaches = isinstance(error, (TmcaError, KeyboardInterrupt))
        told = {"error": type(error).__name__, "told": " ".join(str(error).split()), "teaches": teaches}
        Path(account).write_text(json.dumps(told))


# --- moments ----------------------------------------------------------------------------------------
def _at_event(kind: str, round: int, action: Action) -> None:
    """Act when the first event of a kind in a round has been logged."""
    log, left = Run.log, [action]

    def logged(self: Run, event: str, **fields: Any) -> None:
        log(self, event, **fields)
        if event == kind and fields.get("round") == round and left:
            left.pop()()

    Run.log = logged  # type: ignore[method-assign]


def _at_call(owner: Any, name: str, applies: Callable[..., bool], action: Callable[..., None]) -> None:
    """Act, with its arguments, in the place of the first call that applies; then go on with the call."""
    real, left = getattr(owner, name), [action]

    def called(*arguments: Any, **options: Any) -> Any:
        if left and applies(*arguments, **options):
            left.pop()(*arguments, **options)
        return real(*arguments, **options)

    setattr(owner, name, called)


def _in_file(part: str, action: Callable[..., None]) -> None:
    """Act when tensors are about to be written to a path that contains `part`."""
    import safetensors.torch

    _at_call(safetensors.torch, "save_file", lambda tensors, path, *rest: part in str(path), action)


# --- actions ----------------------------------------------------------------------------------------
def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_half_written(tensors: Any, path: Any, *rest: Any) -> None:
    import safetensors.torch

    content = safetensors.torch.save(tensors)
    Path(path).write_bytes(content[: len(content) // 2])
    _kill()


def _no_room() -> None:
    """From now on no file of this process may grow beyond a kilobyte."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))


def _all_fail(round: int) -> None:
    import client.site

    train = client.site.train

    def fails(site: Any, content: Any) -> Any:
        if content.config_records["settings"]["round"] == round:
            raise MemoryError("out of memory")
        return train(site, content)

    client.site.train = fails


TRAPS: dict[str, Action] = {
    "kill before the first checkpoint": lambda: _at_call(Run, "save_checkpoint", lambda *_, **__: True, lambda *_, **__: _kill()),
    "kill in a round": lambda: _at_event("site_train", 3, _kill),
    "kill in a validation": lambda: _at_event("site_eval", 3, _kill),
    "kill in a checkpoint": lambda: _in_file("/checkpoints/.round-003", _kill_half_written),
    "kill before its rename": lambda: _at_call(
        Path, "replace", lambda path, target: str(target).endswith("/checkpoints/round-003"), lambda *_: _kill()
    ),
    "kill between rounds": lambda: _at_event("round", 3, _kill),
    "kill in the final test": lambda: _at_event("site_test", ROUNDS, _kill),
    "kill before run.json": lambda: _at_call(Run, "write_json", lambda self, name, value: name == "run.json", lambda *_: _kill()),
    "kill in a site's memory": lambda: _in_file("/sites/", _kill_half_written),
    "SIGTERM": lambda: _at_event("site_train", 3, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "SIGINT": lambda: _at_event("site_train", 3, lambda: os.kill(os.getpid(), signal.SIGINT)),
    "disk full": lambda: _at_event("round", 2, _no_room),
    "all fail": lambda: _all_fail(3),
}
"""What happens to a process, by name; every one happens once, in the middle of a run of `ROUNDS` rounds."""
ROUNDS = 5
