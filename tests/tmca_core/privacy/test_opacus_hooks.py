"""Opacus's hooks as an engine: right where they can be, refused by name where they cannot, and gone afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from private_cases import SMALL, line_batch, ready
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from tmca_core.config import parse
from tmca_core.errors import PrivacyError
from tmca_core.networks import NETWORKS, Network, Output
from tmca_core.networks.attention import Places
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, by_loop, clipped_sum, trainable
from tmca_core.privacy.selftest import measure
from tmca_core.text.features import TextBatch
from tmca_core.training.batches import Batch

OPACUS = ENGINES["opacus"]
TRACES = ("grad_sample", "_forward_counter", "_current_grad_sample", "activations", "max_batch_len", "ft_compute_sample_grad")


def clean(network: nn.Module) -> bool:
    hooks = any(layer._forward_hooks or layer._backward_hooks or layer._forward_pre_hooks for layer in network.modules())
    owners = (*network.modules(), *network.parameters())
    return not hooks and not any(trace in owner.__dict__ for owner in owners for trace in (*TRACES, "autograd_grad_sample_hooks"))


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
def test_unet_gets_the_gradients_of_one_backward_pass_a_case(memory_format: torch.memory_format) -> None:
    network, drawn, losses, _ = ready(4, **{"network.name": "unet"})
    network.to(memory_format=memory_format)
    batch = Batch(drawn.batch.images.to(memory_format=memory_format), drawn.batch.masks, drawn.batch.text)
    found = measure(network, Drawn(batch, drawn.counts), losses, 1.0, engine=OPACUS, chunk=3)
    assert found.gradient_error < 1e-5 and found.coupling < 1e-5 and found.influence <= 1.0001
    assert clean(network)


@pytest.mark.parametrize("name", [name for name in NETWORKS.names() if name != "unet"])
def test_the_other_networks_are_refused_as_a_whole_and_the_layer_is_named(name: str) -> None:
    network, drawn, losses, _ = ready(2, **{"network.name": name})
    with pytest.raises(PrivacyError, match=r"'the network itself' has parameters of its own \(no_report.*privacy\.engine=vmap"):
        measure(network, drawn, losses, 1.0, engine=OPACUS, chunk=4)
    assert clean(network)


@pytest.mark.parametrize("parts", [("head",), ("fuses", "sharpen", "detail"), ("text.",), ("skips", "skip_norms", "text_norm", "head")])
def test_parts_of_a_network_can_be_trained(parts: tuple[str, ...]) -> None:
    network, drawn, losses, _ = ready(3, **{"network.name": "guide"})
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(parts))
    found = measure(network, drawn, losses, 1.0, engine=OPACUS, chunk=4)
    assert found.gradient_error < 1e-5 and found.influence <= 1.0001


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("blocks.0",), r"'blocks\.0\.positions' takes or gives something else than one tensor with a row a case"),
        (("image.encoder.stages.0.layers.0.dwconv",), r"'image\.encoder\.stages\.0\.layers\.0\.dwconv' is passed by"),
        (("image",), r"'image\.encoder\.stages\.0\.layers\.0' has parameters of its own \(layer_scale_parameter\)"),
    ],
)
def test_parts_that_it_cannot_take_are_refused_by_name(parts: tuple[str, ...], said: str) -> None:
    network, drawn, losses, _ = ready(3, **{"network.name": "guide"})
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(parts))
    with pytest.raises(PrivacyError, match=said):
        OPACUS(network, drawn.batch, losses)
    assert clean(network)


def test_an_encoder_whose_convolutions_take_two_inputs_is_refused_by_name() -> None:
    network, drawn, losses, _ = ready(2, **{"network.name": "guide", "network.image_encoder": "efficientnet-lite0"})
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("image"))
    with pytest.raises(PrivacyError, match=r"'image\._conv_stem' takes or gives something else"):
        OPACUS(network, drawn.batch, losses)
    assert clean(network)


class Small(Network):
    """`layers`, called by `run`; its logits are the output's mean."""

    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Tensor], *layers: nn.Module) -> None:
        nn.Module.__init__(self)
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, images: Tensor, text: TextBatch) -> Output:
        value = self.run(self.layers, images).flatten(1).mean(1)
        return Output(value[:, None, None, None].expand(-1, 1, *images.shape[-2:]))


def one_after_the_other(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def squared(network: Network, batch: Batch) -> Tensor:
    return network(batch.images, batch.text).logits.mean((1, 2, 3)).square()


def noise(cases: int = 3, channels: int = 4, side: int = 8) -> Batch:
    few = line_batch(*[0.0] * cases)
    return Batch(torch.randn(cases, channels, side, side, generator=torch.Generator().manual_seed(1)), few.masks, few.text)


def bare(network: Network, batch: Batch, losses: CaseLosses) -> dict[str, Tensor]:
    """Opacus as it comes."""
    hooks = GradSampleHooks(network, loss_reduction="sum", strict=False)
    with warnings.catch_warnings(action="ignore"):
        losses(network, batch).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad_sample for name, parameter in trainable(network).items()}  # type: ignore[attr-defined]
    hooks.cleanup()
    network.zero_grad(set_to_none=True)
    return found


def largest_error(found: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    return max(float((found[name] - true[name]).norm() / true[name].norm()) for name in true)


@pytest.mark.parametrize("side", (8, 1))  # maps of one pixel count as contiguous whatever their strides
@pytest.mark.parametrize("groups", (1, 4))
def test_maps_in_other_memory_are_silently_wrong_in_opacus_and_right_here(side: int, groups: int) -> None:
    torch.manual_seed(0)
    network = Small(one_after_the_other, nn.Conv2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=groups)).train()
    batch = noise(side=2 * side)
    batch = Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.masks, batch.text)
    true = by_loop(network, batch, squared)
    assert largest_error(bare(network, batch, squared), true) > 0.1  # or this test tests nothing
    assert largest_error(OPACUS(network, batch, squared), true) < 1e-5


class Buffered(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("seen", torch.zeros(1))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))


def parametrised() -> nn.Module:
    layer = nn.Linear(8, 8, bias=False)
    register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize(
    ("run", "layer", "said"),
    [
        (lambda layers, x: layers[0](layers[0](x)), nn.Linear(8, 8), r"'layers\.0' is used twice in one pass"),
        (lambda layers, x: F.linear(x, layers[0].weight), nn.Linear(8, 8), r"'layers\.0' is passed by"),
        (lambda layers, x: layers[0](x.flatten(0, 1)).view(x.shape), nn.Linear(8, 8), r"'layers\.0' takes or gives something else"),
        (lambda layers, x: x + layers[0](x).T.reshape(1, 8, 8, 8).mean(1), Places(8), r"'layers\.0' takes or gives something else"),
        (one_after_the_other, Buffered(), r"'layers\.0' keeps buffers"),
        (one_after_the_other, nn.MultiheadAttention(8, 2), r"'layers\.0' has parameters of its own"),
        (one_after_the_other, parametrised(), r"'layers\.0\.parametrizations\.weight' computes another layer's weight"),
        # Opacus pads with zeros whatever the layer says.
        (one_after_the_other, nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), r"'layers\.0' gets gradients that do not add up"),
    ],
)
def test_layers_that_it_cannot_take_are_refused_by_name(run: Callable[..., Tensor], layer: nn.Module, said: str) -> None:
    network = Small(run, layer).train()
    with pytest.raises(PrivacyError, match=said):
        OPACUS(network, noise(), squared)
    assert clean(network)


def test_what_the_loss_does_not_reach_has_gradients_of_zero_and_grad_is_left_alone() -> None:
    network = Small(lambda layers, x: layers[0](x), nn.Conv2d(4, 4, 1), nn.Linear(3, 3)).train()
    marks = {name: torch.full_like(parameter, 7.0) for name, parameter in network.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.grad = marks[name]
    found = OPACUS(network, noise(), squared)
    assert found["layers.1.weight"].shape == (3, 3, 3) and not found["layers.1.weight"].any()
    assert largest_error({"w": found["layers.0.weight"]}, {"w": by_loop(network, noise(), squared)["layers.0.weight"]}) < 1e-5
    assert all(parameter.grad is marks[name] for name, parameter in network.named_parameters())


def test_a_case_that_is_not_finite_costs_its_own_patient_only() -> None:
    network, drawn, losses, _ = ready(3, **{"network.name": "unet"})
    images = drawn.batch.images.clone()
    images[0, 0, 3, 3] = torch.nan
    spoilt = Drawn(Batch(images, drawn.batch.masks, drawn.batch.text), drawn.counts)
    sums, norms = clipped_sum(network, spoilt, losses, 0.5, engine=OPACUS, chunk=8)
    rest = drawn.without(0)
    assert rest is not None and norms.isinf().tolist() == [True, False, False]
    expected, _ = clipped_sum(network, rest, losses, 0.5, engine=ENGINES["loop"], chunk=8)
    assert all(torch.allclose(sums[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


def test_the_setting_is_known() -> None:
    assert parse(SMALL | {"privacy.engine": "opacus"}).privacy.engine == "opacus"
