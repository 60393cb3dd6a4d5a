"""The fast paths of the image encoders against the same networks written in PyTorch's plain operators."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tmca_core.networks.encoders import IMAGE_ENCODERS, convnext, onednn
from tmca_core.networks.encoders.efficientnet import EfficientNetLite0, FixedBatchNorm, SameConv


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def weights(channels: int) -> list[Tensor]:
    return [p.detach() + 0.1 * torch.randn_like(p) for p in convnext.Block(channels, 0.5).parameters()]


def block_inputs(channels: int, height: int, width: int) -> list[Tensor]:
    scale, *others = weights(channels)
    return [t.requires_grad_() for t in (torch.randn(2, channels, height, width), *others, scale)]


@pytest.mark.parametrize(("channels", "height", "width"), [(24, 16, 12), (16, 1, 1), (40, 3, 9), (8, 32, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_block_and_all_its_gradients_equal_the_plain_one(channels: int, height: int, width: int, layout: torch.memory_format) -> None:
    inputs = block_inputs(channels, height, width)
    given = [inputs[0].detach().contiguous(memory_format=layout).requires_grad_(), *inputs[1:]]
    fast, plain = convnext.FastBlock.apply(*given), convnext.block(*inputs)
    assert onednn.usable(given[0]) and torch.allclose(fast, plain, atol=1e-5)
    weight = torch.randn_like(plain)
    ours, theirs = torch.autograd.grad(fast, given, weight), torch.autograd.grad(plain, inputs, weight)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_an_image_that_needs_no_gradient_gets_none() -> None:
    image, *others = block_inputs(8, 4, 4)
    convnext.FastBlock.apply(image.detach(), *others).sum().backward()
    assert image.grad is None and all(t.grad is not None for t in others)


def test_the_gradient_can_be_differentiated_again() -> None:
    """As gradient inversion does."""
    inputs = block_inputs(8, 5, 5)
    direction = torch.randn_like(inputs[0])
    second = []
    for function in (convnext.FastBlock.apply, convnext.block):
        into_image = torch.autograd.grad(function(*inputs).pow(2).sum(), inputs[0], create_graph=True)[0]
        second.append(torch.autograd.grad((into_image * direction).sum(), inputs))
    for a, b in zip(*second, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", ["convnext-mini", "efficientnet-lite0"])
def test_gradients_a_case_by_vmap_equal_one_case_at_a_time(name: str) -> None:
    encoder = IMAGE_ENCODERS[name](1)
    images = torch.randn(2, 1, 64, 64)
    parameters = dict(encoder.named_parameters())

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.stack([m.pow(2).mean() for m in torch.func.functional_call(encoder, values, (image[None],))]).sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    for i, image in enumerate(images):
        alone = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for key, gradient in zip(parameters, alone, strict=True):
            assert torch.allclose(together[key][i], gradient, atol=2e-4 * max(1e-3, float(gradient.abs().max()))), key


def test_plain_operators_are_used_where_something_has_to_see_them() -> None:
    x = torch.randn(1, 4, 4)
    assert onednn.usable(x) and not onednn.usable(x.double()) and not onednn.usable(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not onednn.usable(x)
    seen: list[bool] = []
    torch.func.vmap(lambda t: seen.append(onednn.usable(t)) or t)(x)
    torch.jit.trace(lambda t: seen.append(onednn.usable(t)) or t * 2, x, check_trace=False)
    assert seen == [False, False]


def test_plain_operators_are_used_where_onednn_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not onednn.usable(torch.randn(1, 4, 4))


def _missing(*_: object) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def _changed(*_: object) -> Tensor:
    raise RuntimeError("mkldnn::_linear_pointwise() expected at most 5 argument(s)")


@pytest.mark.parametrize("operator", [_missing, _changed, lambda *_: torch.zeros(1, 1)])
def test_plain_operators_are_used_where_pytorch_lacks_the_operator(monkeypatch: pytest.MonkeyPatch, operator: object) -> None:
    x = torch.randn(1, 1, 64, 64)
    encoder = IMAGE_ENCODERS["convnext-mini"](1)
    fast = encoder(x)
    monkeypatch.setattr(onednn, "product", operator)
    onednn._present.cache_clear()
    try:
        assert not onednn.usable(x)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(fast, encoder(x), strict=True))
    finally:
        onednn._present.cache_clear()


def test_maps_keep_channels_last_in_memory() -> None:
    for name in IMAGE_ENCODERS.names():
        for m in IMAGE_ENCODERS[name](1)(torch.randn(2, 1, 64, 64)):
            assert m.is_contiguous(memory_format=torch.channels_last), name


def test_weight_gradient_either_way_round() -> None:
    for rows, out, width in ((50, 8, 3), (5, 8, 3), (50, 3, 8), (1, 1, 1)):
        gradient, x = torch.randn(rows, out), torch.randn(rows, width)
        assert torch.allclose(onednn.weight_gradient(gradient, x), gradient.T @ x, atol=1e-5)


def plain_conv(conv: SameConv, x: Tensor, norm: FixedBatchNorm) -> Tensor:
    """Oracle: pad as TensorFlow does, convolve, normalise."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
    x = F.pad(x, [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2])
    y = F.conv2d(x, conv.weight, None, stride, groups=conv.groups)
    return (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt() * norm.weight[
        :, None, None
    ] + norm.bias[:, None, None]


def test_efficientnet_equals_convolution_then_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EfficientNetLite0(1).double()
    for buffer in encoder.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    images = torch.randn(2, 1, 64, 96).double()

    def maps_and_gradients() -> list[Tensor]:
        maps = encoder(images)
        return [*maps, *torch.autograd.grad(sum(m.pow(2).mean() for m in maps), list(encoder.parameters()))]

    ours = maps_and_gradients()
    monkeypatch.setattr(SameConv, "forward", plain_conv)
    for a, b in zip(ours, maps_and_gradients(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
