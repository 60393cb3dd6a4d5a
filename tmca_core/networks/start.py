"""Where training starts: the weights of an earlier run of the same network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from tmca_core.config import Config
from tmca_core.errors import ConfigError, WeightsError
from tmca_core.networks.adapters import merged, plain_name
from tmca_core.networks.interface import Network
from tmca_core.networks.roles import roles
from tmca_core.run import Run, load_checkpoint

SAME = ("network.name", "network.image_encoder", "network.text_encoder", "network.heads", "network.phrases")
"""Settings that tensors' names and shapes do not show, or not readably, and that the earlier run must have had too."""


def read_start(path: Path) -> dict[str, Tensor]:
    """Tensors by name, averaged ones where the run kept an average, adapters merged into their layers.

    Args:
        path: a run's folder (its last checkpoint), one of its checkpoints/round-NNN, or a safetensors file.

    Raises:
        WeightsError: there is none, or it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        folder = path
        if (path / "config.toml").exists():
            if not (rounds := Run(path).checkpoints()):
                raise WeightsError(f"network.start: the run {path} has no complete checkpoint yet.")
            folder = rounds[-1]
        saved = load_checkpoint(folder)
        average = {name.removeprefix("average/"): tensor for name, tensor in saved.training.items() if name.startswith("average/")}
        return merged(saved.weights | average)
    try:
        return merged(load_file(str(path)))
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"cannot read network.start {path}: {error}. Give a run's folder, one of its checkpoints/round-NNN, or a safetensors file."
        ) from None


def start_digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of all tensors, by name: equal where the content is, whatever file it lies in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1e".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def keep_start(run: Run, config: Config) -> None:
    """Note in the run's folder what its weights started from: a resumed run must find the same.

    Raises:
        ConfigError: the content of `network.start` has changed since.
        WeightsError: it cannot be read.
    """
    if config.network.start:
        run.keep("start.json", {"sha256": weights_digest(Path(config.network.start))})


def needs_start(network: Network) -> bool:
    """Whether a site reads `network.start` itself: shared tensors come from the server, all others from nobody else."""
    return set(roles(network).values()) != {"shared"}


def own_weights(config: Config, alone: bool) -> tuple[Callable[[], str], ...]:
    """Digests of the weights that whoever trains by these settings reads from its own disk or cache, none of them read yet.

    Weights of packages are none. A text encoder's digest is its fingerprint.

    Args:
        alone: nobody sends shared tensors.
    """
    from tmca_core.text import huggingface, wordpiece  # noqa: F401  (they register themselves)
    from tmca_core.text.encoders import TEXT_ENCODERS, build_text_encoder

    found: list[Callable[[], str]] = []
    network = config.network
    if network.image_weights not in ("", "package"):
        found.append(partial(weights_digest, Path(network.image_weights)))
    if network.text_encoder not in TEXT_ENCODERS.names():
        found.append(lambda: build_text_encoder(network).fingerprint())
    if network.start and (alone or _site_reads_start(config)):
        found.append(partial(weights_digest, Path(network.start)))
    return tuple(found)


@lru_cache(maxsize=4)
def _site_reads_start(config: Config) -> bool:
    """Whether some tensor does not travel; asked of a network for which no file is opened."""
    from tmca_core.networks.build import build_network

    bare = {"network.image_weights": "", "network.text_encoder": "wordpiece", "network.allow_download": False}
    return needs_start(build_network(config.with_values(bare), started=False))


def weights_digest(path: Path) -> str:
    """`start_digest` of weights on the disk.

    Raises:
        WeightsError: there are none, or they cannot be read.
    """
    return start_digest(read_start(path))


@torch.no_grad()
def take_up_start(network: Network, config: Config) -> None:
    """Put the weights that `config.network.start` names into the network; its adapters stay as they are, and change nothing yet.

    The digest of all that was read becomes part of `network.constants` where a site reads it itself, and so of `frozen_digest`.

    Raises:
        WeightsError: unreadable, or names or shapes are not the network's.
        ConfigError: the earlier run had another network, or other frozen weights than `network.image_weights`.
    """
    path = Path(config.network.start)
    _compare_settings(path, config)
    weights = read_start(path)
    own = {plain_name(name): tensor for name, tensor in network.state_dict().items() if plain_name(name)}
    wrong = [f"'{name}' is missing" for name in own if name not in weights]
    wrong += [f"'{name}' is not the network's" for name in weights if name not in own]
    wrong += [
        f"'{name}' is {tuple(weights[name].shape)}, the network's {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(
            f"network.start {path} does not fit network '{config.network.name}' ({len(wrong)} tensors differ; {'; '.join(wrong[:3])}): "
            "take the network settings of the run that it comes from, or leave network.start empty."
        )
    loaded = config.network.freeze_image_encoder and config.network.image_weights
    for name, tensor in own.items():
        if loaded and name.startswith("image.") and not torch.equal(weights[name].to(tensor.dtype), tensor):
            raise ConfigError(
                f"network.image_weights and network.start differ in '{name}', which network.freeze_image_encoder keeps as loaded: leave "
                "one of the two empty."
            )
        tensor.copy_(weights[name])
    if needs_start(network):
        network.constants += f"start:{start_digest(weights)}"


def _compare_settings(path: Path, config: Config) -> None:
    """Of a folder whose run is known: what names and shapes do not show."""
    home = next((folder for folder in (path, *path.parents) if (folder / "config.toml").exists()), None) if path.is_dir() else None
    if home is None:
        return
    theirs, ours = Run(home).config().flat(), config.flat()
    if differing := [f"{key} was {theirs[key]!r}, is {ours[key]!r}" for key in SAME if theirs[key] != ours[key]]:
        raise ConfigError(
            f"network.start {path} is of a run with another network ({'; '.join(differing)}): set the same, or give its "
            "model.safetensors, of which only names and shapes are compared."
        )
