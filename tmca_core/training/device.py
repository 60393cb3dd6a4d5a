"""Device, threads and precision."""

from __future__ import annotations

import torch

from tmca_core.config import TrainingSettings
from tmca_core.errors import ConfigError


def resolve_device(settings: TrainingSettings) -> torch.device:
    """The device that the settings name; auto is the first CUDA device, else the CPU.

    Raises:
        ConfigError: the device is not there.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"training.device '{name}' is no device; use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"training.device '{name}' is not available here ({torch.cuda.device_count()} CUDA devices). Use auto or cpu.")
    return device


def set_threads(settings: TrainingSettings) -> None:
    """Use `training.threads` torch threads in this process; 0 leaves torch's own choice."""
    if settings.threads:
        torch.set_num_threads(settings.threads)


def autocast(settings: TrainingSettings, device: torch.device) -> torch.autocast:
    """bf16 autocast where asked for, or where `auto` finds CUDA that supports it; otherwise a context that does nothing."""
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
