"""What a site remembers between rounds, on its own disk: optimiser state and named groups of tensors, one file a round."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from tmca_core.errors import FederationError, PolicyRefusal, WeightsError
from tmca_core.run import sync_folder, write_atomically
from tmca_core.training.state import TrainState

log = logging.getLogger(__name__)

# The server may still be writing the checkpoint of the round before when it dies; then that round is done again.
KEEP = 3

SCORES = "scores.jsonl"

Groups = dict[str, dict[str, Tensor]]
"""Group → name → tensor; "NAME" of group "personal" is "personal/NAME" in the file."""


@dataclass(frozen=True)
class Memory:
    """Files `round-NNN.safetensors` of one site in one run.

    Attributes:
        durable: a file is on the platter before it takes its name, so that no power cut leaves a torn one. Else that is left to a
            thread, for it takes longer than the write, and a simulation that was cut off can be repeated.

    A round starts from the newest file BEFORE it and ends by writing its own, so a round that is repeated after a crash
    starts from the same state as the first time.
    """

    folder: Path
    durable: bool = True

    @classmethod
    def of(cls, state: Path, site: str, run: str, durable: bool = True) -> Memory:
        """The memory of a site in the run that the server names.

        Raises:
            PolicyRefusal: the server's name is none that a server of this project gives; it becomes part of a path here.
        """
        name = quote(site, safe="")
        return cls(state / (f"%2E{name[1:]}" if name.startswith(".") else name) / accepted_run(run), durable)

    def load(self, before: int) -> tuple[TrainState | None, Groups]:
        """State and groups after the newest round below `before`; None and {} where there is none. An empty group is not there.

        Raises:
            WeightsError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        earlier = [number for number in self._rounds() if number < before]
        if not earlier:
            if before > 1:
                log.info("%s: nothing remembered before round %d, what this site keeps for itself begins anew.", self.folder, before)
            return None, {}
        path = self._path(earlier[-1])
        try:
            tensors = load_file(str(path))
            state = TrainState.from_tensors(tensors)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            before_it = f"go on from that of round {earlier[-2]}" if len(earlier) > 1 else "let this site begin anew"
            raise WeightsError(
                f"cannot read the site's state {path}: {error}. Delete it to {before_it}: what the site has learnt since is lost then."
            ) from None
        groups: Groups = {}
        for name, tensor in tensors.items():
            group, slash, own = name.partition("/")
            if slash and group not in TrainState.PREFIXES:
                groups.setdefault(group, {})[own] = tensor
        return (state if state.moments else None), groups

    def save(self, round: int, state: TrainState | None, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a round's file whole, and drop all but the three newest up to it (later ones are of an interrupted attempt).

        The file is there, whole, when this returns, whatever kills the process then.
        """
        from safetensors.torch import save_file

        tensors = (state or TrainState()).as_tensors()
        for group, members in groups.items():
            tensors |= {f"{group}/{name}": tensor.detach().cpu().contiguous() for name, tensor in members.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        tmp = self.folder / f".round-{round:03d}.{os.getpid()}.tmp"
        save_file(tensors, str(tmp))
        if self.durable:
            _sync(tmp)
        tmp.replace(self._path(round))
        if self.durable:
            sync_folder(self.folder)
        else:
            threading.Thread(target=_make_durable, args=(self._path(round),)).start()
        numbers = self._rounds()
        for number in set(numbers) - set([n for n in numbers if n <= round][-KEEP:]):
            self._path(number).unlink(missing_ok=True)

    def hold_to(self, cases: Mapping[str, Sequence[str]]) -> None:
        """Note which cases this run stands on at this site; ever after they must be the same.

        A manifest that changes in the middle of a run deals its patients to training and test anew: what was trained on would be
        tested with.

        Args:
            cases: split → one text a case, which names it and what is read of it.

        Raises:
            FederationError: they are others than before. The message, which leaves the site, holds neither names nor counts.
        """
        found = {split: {"cases": len(texts), "sha256": sha256("\x1e".join(texts).encode()).hexdigest()} for split, texts in cases.items()}
        path = self.folder / "cases.json"
        if not path.exists():
            write_atomically(path, json.dumps(found))
            return
        before = json.loads(path.read_text())
        if changed := [split for split in found if before.get(split) != found[split]]:
            for split in changed:
                log.error("%s: %d cases then, %d now", split, before.get(split, {}).get("cases", 0), found[split]["cases"])
            raise FederationError(
                f"the site's cases are not those that this run began with ({', '.join(changed)}). Put its manifest back as it was, or "
                "start a new run."
            )

    def note_scores(self, round: int, split: str, dice: float, cases: int) -> None:
        """Keep what a model reaches on the site's own cases for its own people (`tmca site view`); it is no part of what leaves."""
        line = {"round": round, "split": split, "dice_image": dice, "cases": cases}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / SCORES).open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("%s cannot be written (%s): `tmca site view` will not show round %d.", self.folder / SCORES, error, round)

    def _rounds(self) -> list[int]:
        found = (re.fullmatch(r"round-(\d+)\.safetensors", path.name) for path in self.folder.glob("round-*"))
        return sorted(int(match[1]) for match in found if match)

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:03d}.safetensors"


def is_run(run: str) -> bool:
    """Whether it is such a name as servers of ours give their runs."""
    return re.fullmatch(r"[0-9a-f]{1,32}", run) is not None


def accepted_run(run: str) -> str:
    """The server's name for its run, if it is one that may become part of a path and of a ledger.

    Raises:
        PolicyRefusal: it is not.
    """
    if not is_run(run):
        raise PolicyRefusal(f"the server calls its run {run!r}: only up to 32 hexadecimal digits are accepted.")
    return run


def _make_durable(path: Path) -> None:
    """Bring a file and its name to the platter; one that was dropped meanwhile needs no more."""
    with contextlib.suppress(FileNotFoundError):
        _sync(path)
        sync_folder(path.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
