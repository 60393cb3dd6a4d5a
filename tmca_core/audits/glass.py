"""A network that hides nothing: the worst that a server could ask a site to train, in the project's own update path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.config import Config
from tmca_core.networks.interface import Network, Output
from tmca_core.text.encoders import build_text_encoder
from tmca_core.text.features import TextBatch

WORDS = 16  # width of a word's vector


class Glass(Network):
    """Two smooth convolutions, a dense layer that also reads the mean word, and a dense layer to a coarse mask; about 10⁵ numbers.

    The gradient of a dense layer's weights is its input times a known vector, so that one case's hidden map can be read off an update
    (Phong et al. 2018; Zhu, Liu and Han 2019 use such a network); smooth, so that gradients of gradients exist everywhere.
    """

    def __init__(self, config: Config) -> None:
        network = config.network.model_copy(update={"text_encoder": "wordpiece"})
        super().__init__(build_text_encoder(network))
        side, targets = config.data.image_size // 4, len(config.data.target_names)
        vocabulary = max(module.num_embeddings for module in self.text_encoder.modules() if isinstance(module, nn.Embedding))
        self.words = nn.Embedding(vocabulary, WORDS)
        self.near = nn.Conv2d(config.data.channels, 12, 5, stride=2, padding=2)
        self.far = nn.Conv2d(12, 12, 5, stride=2, padding=2)
        self.mix = nn.Linear(12 * side * side + WORDS, 32)
        self.mask = nn.Linear(32, targets * side * side)
        self._shape = (targets, side, side)
        with torch.no_grad():
            for module in (self.near, self.far, self.mix):
                for parameter in module.parameters():
                    parameter.uniform_(-0.5, 0.5) if module is not self.mix else parameter.uniform_(-0.05, 0.05)

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        """See `Network.forward`; features in the place of token ids are taken as words' vectors."""
        if text.ids is None:
            assert text.features is not None
            said = text.features.mean(1)
        else:
            said = (self.words(text.ids) * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True)
        hidden = torch.sigmoid(self.far(torch.sigmoid(self.near(images))))
        mixed = torch.sigmoid(self.mix(torch.cat([hidden.flatten(1), said], 1)))
        return Output(F.interpolate(self.mask(mixed).view(-1, *self._shape), size=images.shape[-2:], mode="nearest"))
