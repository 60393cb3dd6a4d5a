"""What `network.trainable` leaves to train: roles, adapters that change nothing at first, both ways of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import load_sites
from tmca_core.config import Config, parse
from tmca_core.errors import ConfigError
from tmca_core.networks import NETWORKS, Network, build_network, roles, shared_state
from tmca_core.networks.adapters import LowRank, merged, plain_name
from tmca_core.privacy.gradients import ENGINES, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.planning import trained_numbers
from tmca_core.privacy.selftest import measure
from tmca_core.privacy.training import draw, fit_privately, patients_of
from tmca_core.text.features import TextPipeline
from tmca_core.training.batches import training_batches
from tmca_core.training.centralised import build_pipeline, concatenate
from tmca_core.training.loop import fit

CPU = torch.device("cpu")
SMALL = {"phantom.sites": 1, "phantom.cases": 16, "data.image_size": 32, "network.width": 32, "training.steps": 2, "training.batch_size": 4}
PARTS = ("decoder", "norms", "head", "lora")


class Known:
    def read(self, size: int) -> bytes:
        return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


@pytest.fixture(scope="module")
def cases() -> CaseTensors:
    return concatenate([site.train for site in load_sites(parse(SMALL)).values()])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_file(build_network(parse({**SMALL, "seed": 3})).state_dict(), str(tmp_path / "start.safetensors"))
    return tmp_path / "start.safetensors"


def only(part: str, **more: object) -> Config:
    return parse({**SMALL, "network.trainable": part, "network.start": "/elsewhere/start.safetensors", **more})


def built(part: str, **more: object) -> Network:
    return build_network(only(part, **more), started=False)


def test_by_default_everything_trains_under_the_names_it_had() -> None:
    network = build_network(parse(SMALL))
    assert set(roles(network).values()) == {"shared"} and not any("parametrizations" in name for name in network.state_dict())


@pytest.mark.parametrize("name", NETWORKS.names())
def test_a_part_trains_and_the_rest_is_frozen_in_every_network(name: str) -> None:
    kinds = {part: roles(built(part, **{"network.name": name})) for part in ("decoder", "norms", "head")}
    shared = {part: {tensor for tensor, role in found.items() if role == "shared"} for part, found in kinds.items()}
    whole = roles(build_network(parse({**SMALL, "network.name": name})))
    assert all(set(found) == set(whole) and set(found.values()) == {"shared", "frozen"} for found in kinds.values())
    assert shared["head"] < shared["decoder"] < set(whole)
    assert all(tensor.rpartition(".")[2] in ("weight", "bias") for tensor in shared["norms"])
    norms = dict(build_network(parse({**SMALL, "network.name": name})).named_parameters())
    assert all(norms[tensor].dim() == 1 for tensor in shared["norms"])


def test_norms_are_all_of_them() -> None:
    network = build_network(parse(SMALL))
    one_dimensional = [m for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) or type(m).__name__ == "ChannelNorm"]
    assert trained_numbers(only("norms")) == sum(p.numel() for m in one_dimensional for p in m.parameters())


def test_adapters_sit_on_linear_layers_and_1x1_convolutions_and_count_as_they_should() -> None:
    network = build_network(parse(SMALL))
    expected = 0
    for module in network.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            out, width = module.weight.shape[:2]
            expected += min(3, out, width) * (out + width)
    assert expected > 0 and trained_numbers(only("lora", **{"network.adapter_rank": 3})) == expected


def test_an_adapter_begins_at_nothing_and_is_a_product_after() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 1, 1)
    adapter = LowRank(weight, 2)
    assert torch.equal(adapter(weight), weight)
    nn.init.ones_(adapter.up)
    by_hand = torch.stack([weight[:, i, 0, 0] + adapter.down[:, i].sum() for i in range(3)], 1)[..., None, None]
    assert torch.allclose(adapter(weight), by_hand)
    assert LowRank(torch.randn(2, 9), 8).up.shape == (2, 2)


def test_adapters_leave_the_start_as_it_is_and_can_be_merged_into_it() -> None:
    plain, adapted = build_network(parse(SMALL)).eval(), built("lora").eval()
    text = TextPipeline(plain.text_encoder, None).encode(["Left lung.", ""])
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images, text).logits, adapted(images, text).logits)
        for name, tensor in shared_state(adapted).items():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
        moved = adapted(images, text).logits
        assert not torch.allclose(plain(images, text).logits, moved, atol=1e-3)
        plain.load_state_dict(merged(adapted.state_dict()))
        assert torch.allclose(plain(images, text).logits, moved, atol=1e-5)
    assert {plain_name(name) for name in adapted.state_dict()} - {""} == set(plain.state_dict())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("private", [False, True])
def test_training_moves_what_trains_and_nothing_else(part: str, private: bool, cases: CaseTensors) -> None:
    config = only(part)
    network = build_network(config, started=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pipeline = build_pipeline(network, config)
    if private:
        mechanism = Mechanism(noise_multiplier=0.5, clip=1.0, sample_rate=0.9, expected=8.0, steps=2)
        result = fit_privately(network, cases, pipeline, config, mechanism, round=1, site="a", state=None, device=CPU)
    else:
        result = fit(network, cases, pipeline, config, round=1, site="a", state=None, device=CPU)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    shared = set(shared_state(network))
    assert moved <= shared and set(result.state.moments) <= shared
    # Keys' biases cancel in a softmax, and the learned token of a report without words is not reached by every batch.
    assert len(moved) > 0.7 * len(shared)


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_patients_are_right_and_bounded_for_every_part(part: str, cases: CaseTensors) -> None:
    config = only(part, **{"privacy.enabled": True, "privacy.noise_multiplier": 1.0})
    network = build_network(config, started=False).train()
    for name, tensor in shared_state(network).items():  # adapters have no gradient in `down` as long as `up` is zero
        tensor.add_(0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    drawn = draw(cases, patients_of(cases)[:3], build_pipeline(network, config), config, CPU, Known())
    losses = training_losses(config.training, 1.0, coin=7)
    found = measure(network, drawn, losses, 0.1, engine=ENGINES["vmap"], chunk=2)
    assert found.gradient_error < 1e-5 and found.coupling < 1e-5 and found.influence <= 1.0001


def test_adapters_learn_what_a_plain_computation_of_them_learns(cases: CaseTensors) -> None:
    config = only("lora")
    network = build_network(config, started=False)
    batch = next(training_batches(cases, build_pipeline(network, config), config, round=1, site="a", device=CPU))
    gradients: dict[str, Tensor] = {}
    layer = network.get_submodule("blocks.1.attend_text.query")
    weight = layer.parametrizations.weight  # type: ignore[union-attr]
    nn.init.normal_(weight[0].up)  # type: ignore[index, union-attr]
    training_losses(config.training, 1.0, coin=1)(network, batch).mean().backward()
    gradients = {name: p.grad for name, p in weight[0].named_parameters()}  # type: ignore[index, union-attr, misc]
    plain = build_network(parse(SMALL))
    plain.load_state_dict(merged(network.state_dict()))
    training_losses(config.training, 1.0, coin=1)(plain, batch).mean().backward()
    whole = plain.get_submodule("blocks.1.attend_text.query").weight.grad  # type: ignore[union-attr]
    assert torch.allclose(gradients["up"], whole @ weight[0].down.T, atol=1e-6)  # type: ignore[index, union-attr, operator]
    assert torch.allclose(gradients["down"], weight[0].up.T @ whole, atol=1e-6)  # type: ignore[index, union-attr, operator]


def test_random_weights_are_not_frozen() -> None:
    for part in PARTS:
        with pytest.raises(ConfigError, match="random weights"):
            parse({"network.trainable": part})
    assert parse({"network.trainable": "decoder", "network.image_weights": "package"}).network.trainable == "decoder"


def test_a_part_that_stays_at_the_site_must_be_one_that_trains() -> None:
    fedbn = {"federation.algorithm": "fedbn"}
    assert set(roles(built("norms", **fedbn)).values()) == {"personal", "frozen"}
    with pytest.raises(ConfigError, match="no trainable tensors"):
        built("head", **fedbn)
