"""What a site remembers between rounds, on its own disk: optimiser state and personal tensors, one file a round."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from tmca_core.errors import PolicyRefusal, WeightsError
from tmca_core.run import sync_folder
from tmca_core.training.state import TrainState

log = logging.getLogger(__name__)

KEEP = 2


@dataclass(frozen=True)
class Memory:
    """Files `round-NNN.safetensors` of one site in one run.

    A round starts from the newest file BEFORE it and ends by writing its own, so a round that is repeated after a crash
    starts from the same state as the first time.
    """

    folder: Path

    @classmethod
    def of(cls, state: Path, site: str, run: str) -> Memory:
        """The memory of a site in the run that the server names.

        Raises:
            PolicyRefusal: the server's name is none that a server of this project gives; it becomes part of a path here.
        """
        if not re.fullmatch(r"[0-9a-f]{1,32}", run):
            raise PolicyRefusal(f"the server calls its run {run!r}: only up to 32 hexadecimal digits are accepted.")
        name = quote(site, safe="")
        return cls(state / (f"_{name}" if name.startswith(".") else name) / run)

    def load(self, before: int) -> tuple[TrainState | None, dict[str, Tensor]]:
        """State and personal tensors after the newest round below `before`; None and {} where there is none.

        Raises:
            WeightsError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        earlier = [number for number in self._rounds() if number < before]
        if not earlier:
            if before > 1:
                log.info("%s: nothing remembered before round %d, the optimiser starts afresh.", self.folder, before)
            return None, {}
        path = self._path(earlier[-1])
        try:
            tensors = load_file(str(path))
            state = TrainState.from_tensors(tensors)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise WeightsError(f"cannot read the site's state {path}: {error}. Delete it to start this site's optimiser afresh.") from None
        personal = {name.removeprefix("personal/"): tensor for name, tensor in tensors.items() if name.startswith("personal/")}
        return (state if state.moments else None), personal

    def save(self, round: int, state: TrainState | None, personal: dict[str, Tensor]) -> None:
        """Write a round's file whole, and drop all but the two newest up to it (later ones are of an interrupted attempt).

        The file is there, whole, when this returns, whatever kills the process then. Bringing it to the platter is left to
        a thread, for that takes longer than the write: only a power cut within that moment can cost the newest file.
        """
        from safetensors.torch import save_file

        tensors = (state or TrainState()).as_tensors()
        tensors |= {f"personal/{name}": tensor.detach().cpu().contiguous() for name, tensor in personal.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        tmp = self.folder / f".round-{round:03d}.{os.getpid()}.tmp"
        save_file(tensors, str(tmp))
        tmp.replace(self._path(round))
        threading.Thread(target=_make_durable, args=(self._path(round),)).start()
        numbers = self._rounds()
        for number in set(numbers) - set([n for n in numbers if n <= round][-KEEP:]):
            self._path(number).unlink(missing_ok=True)

    def _rounds(self) -> list[int]:
        found = (re.fullmatch(r"round-(\d+)\.safetensors", path.name) for path in self.folder.glob("round-*"))
        return sorted(int(match[1]) for match in found if match)

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:03d}.safetensors"


def _make_durable(path: Path) -> None:
    """Bring a file and its name to the platter; one that was dropped meanwhile needs no more."""
    with contextlib.suppress(FileNotFoundError):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
