"""A site's half of secure aggregation: its keys, its roster, and the session on its own disk, which lets it answer each stage once.

Between two messages a hospital's ClientApp process ends, so what it must not forget lies on its disk: in its folder of the run the
session's secrets (`secure.json`, for its user only, destroyed when the sum is open); beside the runs' folders, which make room for newer
runs, which survivors it has signed in each round (`secure-signed/RUN.json`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from client.memory import Memory
from client.node import simulated
from client.site import run_of, weight_of
from client.workspace import Site
from tmca_core.compression.interface import FLOAT, Layout
from tmca_core.config import Config
from tmca_core.digests import tensors_digest
from tmca_core.errors import ConfigError, PolicyRefusal
from tmca_core.messages import MASKED, SETTINGS, part_of, spec_of
from tmca_core.run import sync_folder, write_atomically
from tmca_core.secure import site as protocol
from tmca_core.secure.keys import Identity, Roster, load_identity, load_roster, new_identity, private_pem
from tmca_core.secure.session import AGREE, KEYS, SHARES, UNMASK, Advert, Book, Occasion, Shares, as_text, bytes_by_site, from_text

_DONE = "done"
# Stage → the stage that must have been answered before.
_BEFORE = {SHARES: KEYS, MASKED: SHARES, AGREE: MASKED, UNMASK: AGREE}


# --- answers ----------------------------------------------------------------------------------------
def answer(site: Site, content: RecordDict, node: Mapping[str, Any]) -> RecordDict:
    """Answer a stage that is a message of its own.

    Raises:
        PolicyRefusal: the stage is out of its order or was answered before, or something is not as the protocol has it.
        ConfigError: the hospital has no key or roster.
    """
    if not site.workspace.config.federation.secure:
        raise PolicyRefusal("the run does not set federation.secure, and the server asks for its stages.")
    occasion, stage, body = _occasion(content), str(_said(content).get("stage")), from_text(_said(content).get("body"))
    folder = Memory.of(site.state, site.name, run_of(content)).folder
    identity, roster = company(site, node)
    with _alone(folder):
        if stage == KEYS:
            told: Any = _announce(site, folder, occasion, identity)
        elif stage == SHARES:
            told = _deal(site, folder, occasion, body, roster)
        elif stage == AGREE:
            told = _agree(site, folder, occasion, body, identity, roster)
        elif stage == UNMASK:
            told = _unmask(site, folder, occasion, body, roster)
        else:
            raise PolicyRefusal(f"the server asks for the stage '{stage}', and there is none of that name.")
    return RecordDict({SETTINGS: ConfigRecord({"round": occasion.round, "body": as_text(told)})})


def masked(
    site: Site, content: RecordDict, tensors: Mapping[str, Tensor], residual: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The answer to `train`: an update on the grid of the session, under all masks.

    Args:
        site: that has just trained.
        content: the server's message.
        tensors: the update, CPU.
        residual: what rounding has left of the rounds before, by name; names may be missing.

    Returns:
        (one tensor of bytes, little-endian numbers; what rounding leaves now by name: {} with 32 bits, whose steps are small enough).

    Raises:
        UpdateRejected: a value does not fit the range.
        PolicyRefusal: the stage is out of its order, or shares are not from whom the server says.
    """
    settings, occasion = site.workspace.config.federation, _occasion(content)
    if other := sorted(name for name, (_, dtype) in spec_of(tensors).items() if dtype != FLOAT):
        raise PolicyRefusal(f"tensor '{other[0]}' is not {FLOAT}: only such numbers can be masked, and nothing leaves without a mask.")
    folder = Memory.of(site.state, site.name, run_of(content)).folder
    with _alone(folder):
        # On the disk before anything is masked: masks that served twice would give the difference of two updates away.
        session = _at_stage(folder, MASKED, occasion)
        _write(folder, site.durable, {**session, "stage": MASKED})
    own, book = protocol.Secrets.from_values(session["own"]), _book(occasion, session, site.workspace.config)
    held = protocol.open_parcels(own, book, bytes_by_site(from_text(_said(content).get("body")).get("parcels")))
    book = book.on(tensors_digest(content))
    layout, weight = Layout.of(spec_of(tensors)), book[site.name].weight
    flat, grid = layout.join(tensors), book.fixed_point(settings.secure_bits, settings.secure_range)
    codes = grid.zeros(layout.total)
    for name, start, size in zip(layout.names, layout.starts, layout.sizes, strict=True):
        part = flat[start : start + size]
        if name in residual:
            part.add_(residual[name].reshape(-1))
        grid.encode(part.numpy(), weight, codes[start : start + size], name)
    unsent: dict[str, Tensor] = {}
    if settings.secure_bits < 32:
        unsent = layout.split(flat.sub_(torch.from_numpy(grid.decode(codes, weight))))
    with _alone(folder):
        _write(folder, site.durable, {**_at_stage(folder, AGREE, occasion), "held": held, "weights": book.weights})
    protocol.mask(own, book, list(held), codes)
    return {MASKED: torch.from_numpy(codes.view("u1"))}, unsent


# --- stages -----------------------------------------------------------------------------------------
def _announce(site: Site, folder: Path, occasion: Occasion, identity: Identity) -> dict[str, Any]:
    before = _read(folder)
    if before.get("session") == occasion.session:
        raise PolicyRefusal("the server asks once more for the keys of a session that this site has announced: it needs a new session.")
    weight = weight_of(site)
    if not weight:
        raise PolicyRefusal("this site keeps its weight to itself, and a sum needs it: set federation.weighting=uniform.")
    own, advert = protocol.announce(site.name, weight, occasion, identity)
    _write(folder, site.durable, {"stage": KEYS, "round": occasion.round, "session": occasion.session, "own": own.as_values()})
    return advert.as_values()


def _deal(site: Site, folder: Path, occasion: Occasion, body: Mapping[str, Any], roster: Roster) -> dict[str, Any]:
    session = _at_stage(folder, SHARES, occasion)
    session = {**session, "stage": SHARES, "adverts": body.get("adverts")}
    parcels = protocol.deal(protocol.Secrets.from_values(session["own"]), _book(occasion, session, site.workspace.config), roster)
    _write(folder, site.durable, session)
    return {"parcels": parcels}


def _agree(site: Site, folder: Path, occasion: Occasion, body: Mapping[str, Any], identity: Identity, roster: Roster) -> dict[str, bytes]:
    """Sign one set of survivors a round, whatever the session: of two attempts at a round the server may open one sum only.

    Where a site answered both, the difference of two sums over all sites but one would be that one's update.
    """
    session = _at_stage(folder, AGREE, occasion)
    survivors = _names(body.get("survivors"))
    path = folder.parent / "secure-signed" / f"{folder.name}.json"
    signed: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    before = signed.get(str(occasion.round), survivors)
    if before != survivors:
        missing, more = (", ".join(sorted({*a} - {*b})) or "none" for a, b in ((before, survivors), (survivors, before)))
        raise PolicyRefusal(
            f"in an earlier attempt at round {occasion.round} this site signed another set of survivors (missing now: {missing}; new: "
            f"{more}), and the difference of the two sums would be their updates: bring the same sites together, or start a new run."
        )
    own, book = protocol.Secrets.from_values(session["own"]), _book(occasion, session, site.workspace.config)
    signature = protocol.agree(own, book, list(session["held"]), survivors, identity, roster.fewest)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps({**signed, str(occasion.round): survivors}))
    _write(folder, site.durable, {**session, "stage": AGREE, "survivors": survivors})
    return {"signature": signature}


def _unmask(site: Site, folder: Path, occasion: Occasion, body: Mapping[str, Any], roster: Roster) -> dict[str, Any]:
    session = _at_stage(folder, UNMASK, occasion)
    own, book = protocol.Secrets.from_values(session["own"]), _book(occasion, session, site.workspace.config)
    held: Shares = {dealer: (masking, seed) for dealer, (masking, seed) in session["held"].items()}
    shares = protocol.reveal(own, book, held, session["survivors"], bytes_by_site(body.get("signatures")), roster)
    _write(folder, site.durable, {"stage": _DONE, "round": occasion.round, "session": occasion.session})
    return {"shares": {dealer: hex(share) for dealer, share in shares.items()}}


# --- who this is, and who the others are ------------------------------------------------------------
def company(site: Site, node: Mapping[str, Any]) -> tuple[Identity, Roster]:
    """The site's signing key and the sites it knows: by the files that a hospital's node-config names; in a simulation made on the spot.

    Raises:
        ConfigError: a file is not named or cannot be read, or the roster has another key for this site.
    """
    if simulated(node):
        return _simulated_company(site)
    for key in ("signing-key", "roster"):
        if not node.get(key):
            raise ConfigError(
                f'secure aggregation needs {key}="/path" in the --node-config: signing-key is this hospital\'s own (`ssh-keygen -t ecdsa '
                "-b 384 -N ''`), roster the file with the public keys of all (docs/secure.md)."
            )
    identity, roster = load_identity(Path(str(node["signing-key"]))), load_roster(Path(str(node["roster"])))
    known = roster.sites.get(site.name)
    if known is None or known.public_numbers() != identity.public_key().public_numbers():
        raise ConfigError(
            f"the roster {node['roster']} has {'no' if known is None else 'another'} key for '{site.name}', which this site is."
        )
    return identity, roster


def _simulated_company(site: Site) -> tuple[Identity, Roster]:
    """Every simulated site's key lies in its folder, where the others read it: on one machine nothing is hidden from them."""

    own = Memory.of(site.state, site.name, "0").folder.parent / "signing-key.pem"
    if not own.exists():
        _private_file(own, site.durable, private_pem(new_identity()))
    found = {unquote(path.parent.name): _kept(path, path.stat().st_mtime_ns) for path in site.state.glob("*/signing-key.pem")}
    return found[site.name], Roster({name: key.public_key() for name, key in found.items()})


@lru_cache(maxsize=4096)
def _kept(path: Path, changed: int) -> Identity:
    return load_identity(path)


# --- on the disk ------------------------------------------------------------------------------------
@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this site out of the session meanwhile: a server may ask twice at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "secure.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _at_stage(folder: Path, stage: str, occasion: Occasion) -> dict[str, Any]:
    """The session, if it is at the stage before this one.

    Raises:
        PolicyRefusal: it is another session, or at another stage: what was answered is not answered again.
    """
    session = _read(folder)
    if (session.get("session"), session.get("round")) != (occasion.session, occasion.round):
        raise PolicyRefusal(
            f"the server asks for the stage '{stage}' of a session that this site knows nothing of: it was replayed, or is over."
        )
    if session["stage"] != _BEFORE[stage]:
        raise PolicyRefusal(f"the server asks for the stage '{stage}' after '{session['stage']}': each stage is answered once, in order.")
    return session


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "secure.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _write(folder: Path, durable: bool, session: Mapping[str, Any]) -> None:
    _private_file(folder / "secure.json", durable, json.dumps(session).encode())


def _private_file(path: Path, durable: bool, content: bytes) -> None:
    """A file for this user only, whole or not at all; on the platter when this returns where it must outlast a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        tmp.unlink()
    with os.fdopen(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    tmp.replace(path)
    if durable:
        sync_folder(path.parent)


def _book(occasion: Occasion, session: Mapping[str, Any], config: Config) -> Book:
    adverts = session["adverts"]
    if not isinstance(adverts, list) or not all(isinstance(each, dict) for each in adverts):
        raise PolicyRefusal("the server's message holds no keys of sites.")
    book = Book.of(occasion, [Advert.from_values(each) for each in adverts], config.federation.secure_threshold)
    return book.on(session.get("weights", ""))


def _occasion(content: RecordDict) -> Occasion:
    return Occasion.from_values({**_said(content), "run": run_of(content)})


def _said(content: RecordDict) -> Mapping[str, Any]:
    return part_of(content, SETTINGS, ConfigRecord) or ConfigRecord()


def _names(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise PolicyRefusal("the server's message names no survivors.")
    return sorted(value)
