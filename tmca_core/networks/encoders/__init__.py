"""Image encoders: four feature maps at strides 4, 8, 16 and 32."""

from tmca_core.networks.encoders import convnext, efficientnet
from tmca_core.networks.encoders.interface import IMAGE_ENCODERS, ImageEncoder, build_image_encoder

__all__ = ["IMAGE_ENCODERS", "ImageEncoder", "build_image_encoder", "convnext", "efficientnet"]
