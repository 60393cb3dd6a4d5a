"""Digests that both ends of the federation compute alike: of the code a site runs, and of what a message carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from tmca_core.algorithms import EXTRA
from tmca_core.messages import ARRAYS
from tmca_core.wire import tensors_of

SITE_PACKAGES, SOURCES = ("client", "tmca_core"), (".py", ".json")


def source_digest(root: Path) -> str:
    """`sources_digest` of `client` and `tmca_core` below `root`: what a site runs.

    Flower's simulation workers may import an app from a directory other than the one that was submitted; the server
    compares this digest with that of its own neighbours, so such a mix-up is an error and not a silent difference.
    """
    found = (path for package in SITE_PACKAGES for kind in SOURCES for path in (root / package).rglob(f"*{kind}"))
    return sources_digest({path.relative_to(root).as_posix(): path.read_bytes() for path in found})


def sources_digest(files: Mapping[str, bytes]) -> str:
    """sha256 over those of the files (name → content) that a site runs: Python and JSON of `client` and `tmca_core`."""
    digest = hashlib.sha256()
    for path, name in sorted((PurePosixPath(name), name) for name in files):
        if path.parts[0] in SITE_PACKAGES and path.suffix in SOURCES:
            digest.update(name.encode())
            digest.update(files[name])
    return digest.hexdigest()


def message_digest(content: Mapping[str, Mapping[str, Any]], tensors: str = "") -> str:
    """sha256 over what a message carries, the same at both ends of it.

    Args:
        content: its records by name; each but the arrays holds scalars, lists of them, or bytes.
        tensors: `tensors_digest` of its arrays, where it is known.
    """
    values = {name: {**record} for name, record in content.items() if name != ARRAYS}
    rest = json.dumps(values, sort_keys=True, default=bytes.hex)
    return hashlib.sha256(f"{rest}\n{tensors or tensors_digest(content)}".encode()).hexdigest()


def tensors_digest(content: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 over the tensors of a message: names, types, shapes and bytes; of none as of an empty record."""
    return weights_digest(tensors_of(content.get(ARRAYS, {})))


def shared_digest(content: Mapping[str, Mapping[str, Any]], tensors: str) -> str:
    """`weights_digest` of the shared weights of a message, without what an algorithm sends beside them.

    Args:
        tensors: `tensors_digest` of the message.
    """
    found = tensors_of(content.get(ARRAYS, {}))
    shared = {name: tensor for name, tensor in found.items() if not name.startswith(EXTRA)}
    return tensors if len(shared) == len(found) else weights_digest(shared)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        here = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {here.dtype} {tuple(here.shape)}\n".encode())
        digest.update(here.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
