import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tmca_core.cases.case import Case, CaseTensors
from tmca_core.config import Config, parse
from tmca_core.networks import Network, build_network
from tmca_core.text.features import TextPipeline
from tmca_core.training.batches import prepare_images, steps_a_round, training_batches
from tmca_core.training.loop import DivergedError, FitResult, fit, learning_rate
from tmca_core.training.state import TrainState

SMALL = {"network.width": 16, "data.image_size": 32, "training.batch_size": 4, "federation.rounds": 2, "training.epochs": 1}
CPU = torch.device("cpu")


def lesion_cases(count: int, size: int = 32) -> CaseTensors:
    """A bright square on each side; the report names one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    cases = []
    for i in range(count):
        left = i % 2 == 0
        images[i, :, 10:22, 3:13] = images[i, :, 10:22, 19:29] = 200
        masks[i, :, 10:22, 19:29] = int(left)
        masks[i, :, 10:22, 3:13] = int(not left)
        text = f"Consolidation in the {'left' if left else 'right'} lung."
        cases.append(Case(f"c{i}", f"p{i}", "a", None, None, text, text, "patient"))  # type: ignore[arg-type]
    return CaseTensors(cases, images, masks)


def run_round(config: Config, network: Network, round: int, state: TrainState | None, **options: bool) -> FitResult:
    pipeline = TextPipeline(network.text_encoder, None)
    return fit(network, lesion_cases(10), pipeline, config, round=round, site="a", state=state, device=CPU, **options)


def test_learning_rate_by_hand() -> None:
    settings = parse({"training.learning_rate": 1.0, "training.warmup": 0.1}).training
    assert learning_rate(settings, 0.05) == pytest.approx(0.5)
    assert learning_rate(settings, 0.1) == pytest.approx(1.0)
    assert learning_rate(settings, 0.55) == pytest.approx(0.01 + 0.99 / 2)
    assert learning_rate(settings, 0.999999) == pytest.approx(0.01, abs=1e-4)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, 0.9) == 1.0


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(1, 0, 3), (2, 0, 6), (2, 5, 5), (1, 7, 7)])
def test_a_round_has_the_steps_that_were_asked_for(epochs: int, steps: int, expected: int) -> None:
    config = parse(SMALL | {"training.epochs": epochs, "training.steps": steps})
    assert steps_a_round(10, config) == expected
    pipeline = TextPipeline(build_network(config).text_encoder, None)
    batches = list(training_batches(lesion_cases(10), pipeline, config, round=1, site="a", device=CPU))
    assert len(batches) == expected
    assert [len(b) for b in batches[:3]] == [4, 4, 2]  # every case once an epoch, none dropped


def test_standardised_images_forget_gain_and_offset() -> None:
    images = lesion_cases(2).images
    brighter = (images.float() * 0.5 + 100).to(torch.uint8)
    assert torch.allclose(prepare_images(images), prepare_images(brighter), atol=0.05)
    assert torch.isfinite(prepare_images(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))).all()


def test_a_round_repeated_is_the_same_round_to_the_bit() -> None:
    config = parse(SMALL)
    networks = [build_network(config) for _ in range(2)]
    torch.rand(5)  # the global stream must not matter
    results = [run_round(config, network, 1, None) for network in networks]
    assert results[0].loss == results[1].loss
    assert all(torch.equal(a, b) for a, b in zip(networks[0].state_dict().values(), networks[1].state_dict().values(), strict=True))


def test_saving_and_loading_the_state_between_rounds_changes_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = parse(SMALL | {"training.ema": 0.9})
    straight, resumed = build_network(config), build_network(config)
    state = run_round(config, straight, 1, None, average=True).state
    final = run_round(config, straight, 2, state, average=True).state
    save_file(run_round(config, resumed, 1, None, average=True).state.as_tensors(), tmp_path / "s.safetensors")
    again = run_round(config, resumed, 2, TrainState.from_tensors(load_file(tmp_path / "s.safetensors")), average=True).state
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert final.step == again.step == 6
    assert all(torch.equal(final.average[name], again.average[name]) for name in final.average)


def test_average_is_the_exponential_mean_by_hand() -> None:
    from tmca_core.training.loop import _accumulate

    layer = torch.nn.Linear(1, 1, bias=False)
    averaged: dict[str, torch.Tensor] = {}
    expected = None
    for step, weight in enumerate([1.0, 2.0, 4.0], start=1):
        layer.weight.data.fill_(weight)
        _accumulate(averaged, layer, 0.5, step)
        d = min(0.5, step / (step + 10))
        expected = weight if expected is None else d * expected + (1 - d) * weight
    assert averaged["weight"].item() == pytest.approx(expected)


def test_training_learns_the_side_that_the_report_names() -> None:
    config = parse(SMALL | {"training.steps": 100, "federation.rounds": 1, "training.learning_rate": 3e-3, "network.width": 32})
    network = build_network(config)
    result = run_round(config, network, 1, None)
    data = lesion_cases(10)
    with torch.inference_mode():
        text = TextPipeline(network.text_encoder, None).encode([case.text for case in data.cases])
        predicted = network.eval()(prepare_images(data.images), text).logits > 0
    truth = data.masks.bool()
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert math.isfinite(result.loss) and dice > 0.9


def test_a_loss_that_is_not_finite_stops_training_and_names_the_site() -> None:
    config = parse(SMALL)
    network = build_network(config)
    network.head.weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="site 'a', round 1"):
        run_round(config, network, 1, None)


def test_gradient_norm_is_clipped() -> None:
    config = parse(SMALL | {"training.clip_norm": 1e-12, "training.weight_decay": 0.0, "training.steps": 1})
    network = build_network(config)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    run_round(config, network, 1, None)
    # Adam divides by the gradient's own size, down to its eps of 1e-8: far below that nothing moves.
    assert max((p.detach() - before[n]).abs().max().item() for n, p in network.named_parameters()) < 1e-6


def test_the_restored_step_count_lies_beside_its_parameter() -> None:
    """Fused AdamW refuses a step count on another device; the meta device stands in for a GPU."""
    from tmca_core.training.state import restore

    layer = torch.nn.Linear(2, 2)
    state = TrainState(3, {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in layer.named_parameters()})
    layer.to("meta")
    optimizer = torch.optim.AdamW(layer.parameters(), fused=False)
    restore(layer, optimizer, state)
    assert {value.device.type for entry in optimizer.state.values() for value in entry.values()} == {"meta"}
