"""One suite for every registered network: a new one inherits it by being registered."""

import pytest
import torch

from tmca_core.config import Config, parse
from tmca_core.networks import NETWORKS, build_network, frozen_digest, roles, shared_state
from tmca_core.text.features import TextPipeline

REPORTS = ["Left lung.", "Consolidation in the right lower zone. No effusion.", ""]


@pytest.fixture(params=NETWORKS.names())
def config(request: pytest.FixtureRequest) -> Config:
    return parse({"network.name": request.param, "network.width": 32})


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 64)])
def test_logits_have_the_input_size(config: Config, height: int, width: int) -> None:
    network = build_network(config)
    text = TextPipeline(network.text_encoder, None).encode(REPORTS)
    logits = network(torch.randn(3, 1, height, width), text).logits
    assert logits.shape == (3, 1, height, width)
    assert logits.dtype == torch.float32


def test_a_batch_of_one_equals_its_row_in_a_batch(config: Config) -> None:
    network = build_network(config).eval()
    pipeline = TextPipeline(network.text_encoder, None)
    images = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        together = network(images, pipeline.encode(REPORTS)).logits
        alone = torch.cat([network(images[i : i + 1], pipeline.encode(REPORTS[i : i + 1])).logits for i in range(3)])
    assert torch.allclose(together, alone, atol=2e-5)  # padding and neighbours carry nothing


def test_text_changes_the_mask_exactly_where_the_network_says_it_reads_text(config: Config) -> None:
    network = build_network(config).eval()
    pipeline = TextPipeline(network.text_encoder, None)
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        left, right = (network(image, pipeline.encode([text])).logits for text in ("Left lung.", "Right lung."))
    assert torch.equal(left, right) != network.uses_text


def test_what_only_losses_read_is_left_in_training_alone(config: Config) -> None:
    network = build_network(config.with_values({"tmca.share": 1.0}))
    text, images = TextPipeline(network.text_encoder, None).encode(REPORTS), torch.randn(3, 1, 64, 64)
    aligned = {"tmca", "ssa", "tmca-ssa"}
    assert bool(network(images, text).hidden) == (config.network.name in aligned)
    assert network.eval()(images, text).hidden == {}


def test_every_tensor_has_a_role_and_every_shared_tensor_learns(config: Config) -> None:
    network = build_network(config)
    assert set(roles(network)) == set(network.state_dict())
    text = TextPipeline(network.text_encoder, None).encode(REPORTS)
    (network(torch.randn(3, 1, 64, 64), text).logits ** 2).mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert set(shared_state(network)) <= set(gradients)
    # Keys' biases cancel in a softmax: theirs is the one gradient that is truly zero.
    dead = [n for n in shared_state(network) if gradients[n] is None]
    assert dead == []


def test_initial_weights_are_a_function_of_the_seed_alone(config: Config) -> None:
    torch.manual_seed(1)
    first = build_network(config).state_dict()
    before = torch.random.get_rng_state()
    second = build_network(config).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_network(config.with_values({"seed": 1})).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_frozen_encoders_never_travel_and_are_pinned() -> None:
    config = parse({"network.image_encoder": "efficientnet-lite0", "network.width": 32})
    network = build_network(config)
    kinds = roles(network)
    assert {kinds[n] for n in kinds if "running_" in n} == {"frozen"}
    assert not any("running_" in n for n in shared_state(network))
    pinned = frozen_digest(network)
    next(b for n, b in network.named_buffers() if n.endswith("running_mean")).add_(1e-3)
    assert frozen_digest(network) != pinned


def test_personal_tensors_stay() -> None:
    network = build_network(parse({"network.width": 32}))
    network.personal = ("head.",)
    assert roles(network)["head.weight"] == "personal"
    assert "head.weight" not in shared_state(network)
    network.head.weight.requires_grad_(False)
    assert roles(network)["head.weight"] == "frozen"


def test_shared_state_is_a_view_of_the_network() -> None:
    network = build_network(parse({"network.width": 32}))
    shared_state(network)["head.bias"].fill_(3.0)
    assert network.state_dict()["head.bias"].eq(3).all()
