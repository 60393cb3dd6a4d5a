"""What every image encoder offers, and how one is built and given pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from tmca_core.config import NetworkSettings
from tmca_core.errors import ConfigError, WeightsError
from tmca_core.registry import Registry


class ImageEncoder(nn.Module):
    """Feature pyramid of an image.

    Attributes:
        channels: channels of the four maps, at strides 4, 8, 16 and 32.
    """

    channels: tuple[int, int, int, int]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) float32, H and W divisible by 32 → four maps (B, channels[i], H/s, W/s), finest first."""
        raise TypeError(f"{type(self).__name__} defines no forward.")

    def load_package_weights(self) -> None:
        """Load the weights that the `pretrained` extra carries for this encoder."""
        raise ConfigError(
            f"no package carries weights for {type(self).__name__}: set network.image_weights to a safetensors file, or leave it empty."
        )


IMAGE_ENCODERS: Registry[Callable[[int], ImageEncoder]] = Registry("image encoder")


def build_image_encoder(settings: NetworkSettings, in_channels: int) -> ImageEncoder:
    """The encoder that the settings name, with its weights loaded and frozen where asked for.

    Raises:
        ConfigError: unknown name, or frozen without weights.
        WeightsError: a weight file does not fit.
    """
    encoder = IMAGE_ENCODERS[settings.image_encoder](in_channels)
    if settings.image_weights == "package":
        encoder.load_package_weights()
    elif settings.image_weights:
        load_weights_file(encoder, Path(settings.image_weights))
    if settings.freeze_image_encoder:
        if not (settings.image_weights or settings.start):
            raise ConfigError("network.freeze_image_encoder freezes random weights: set network.image_weights or network.start too.")
        encoder.requires_grad_(False)
    return encoder


def load_weights_file(encoder: ImageEncoder, path: Path) -> None:
    """Load a safetensors file into an encoder; a `convnext.` prefix and classifier heads are passed over.

    Raises:
        WeightsError: unreadable, or a tensor is missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read image weights {path}: {error}.") from None
    load_named(encoder, {name.removeprefix("convnext."): tensor for name, tensor in weights.items()}, str(path))


def load_named(encoder: ImageEncoder, weights: dict[str, Tensor], source: str) -> None:
    """Copy tensors by name; three-channel stems are summed to one channel for grey images.

    Summing keeps the response to a grey image repeated on three channels exactly.
    """
    own = encoder.state_dict()
    for name, target in own.items():
        if name not in weights:
            raise WeightsError(f"{source} has no tensor '{name}' for {type(encoder).__name__}.")
        given = weights[name]
        if given.dim() == 4 and given.shape[1] == 3 and target.shape[1] == 1 and given.shape[0] == target.shape[0]:
            given = given.sum(1, keepdim=True)
        if given.shape != target.shape:
            raise WeightsError(f"{source}: '{name}' is {tuple(given.shape)}, the encoder's is {tuple(target.shape)}.")
        target.copy_(given)
