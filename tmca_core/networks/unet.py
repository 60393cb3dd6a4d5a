"""`unet`: MONAI's U-Net on the image alone, the baseline that cannot know what the report asks for."""

from __future__ import annotations

from torch import Tensor

from tmca_core.config import Config
from tmca_core.networks.interface import NETWORKS, Network, Output
from tmca_core.text.encoders import TextEncoder
from tmca_core.text.features import TextBatch


class ImageOnlyUNet(Network):
    """Residual U-Net with one-group norms (a batch's statistics would mix patients), 0.7 M parameters at width 64."""

    uses_text = False

    def __init__(self, config: Config, text_encoder: TextEncoder) -> None:
        super().__init__(text_encoder)
        from monai.networks.nets.unet import UNet  # 9 s of import: only where this network is asked for

        channels = config.network.unet_levels
        self.net = UNet(
            2,
            config.data.channels,
            len(config.data.target_names),
            channels,
            (2,) * (len(channels) - 1),
            num_res_units=1,
            norm=("GROUP", {"num_groups": 1}),
        )
        # MONAI nests the levels: down, the next level behind a skip connection, up.
        ups = tuple("net.model." + "1.submodule." * level + "2" for level in range(len(channels) - 1))
        self.parts = {"decoder": ups, "head": ups[:1]}

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`; the report is ignored."""
        return Output(self.net(images))


@NETWORKS.register("unet")
def unet(config: Config, text_encoder: TextEncoder) -> Network:
    """Image-only U-Net."""
    return ImageOnlyUNet(config, text_encoder)
