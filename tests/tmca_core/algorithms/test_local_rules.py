"""What algorithms change in a site's training: by hand, in real steps, and in small federations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from safetensors.torch import load_file
from tiny_runs import tiny
from torch import Tensor, nn

import client.app
import server.app
from simulations.engine import simulate
from simulations.inprocess import run_in_process
from tmca_core.algorithms import ALGORITHMS
from tmca_core.algorithms.fedprox import Pull
from tmca_core.cases.sites import load_site
from tmca_core.config import Config, parse
from tmca_core.errors import ConfigError
from tmca_core.networks import Network, build_network, roles, shared_state
from tmca_core.run import Run
from tmca_core.training.centralised import build_pipeline
from tmca_core.training.loop import FitResult, fit
from tmca_core.training.rules import LocalRule
from tmca_core.training.state import TrainState

CPU = torch.device("cpu")
SITES = ["phantom-00", "phantom-01", "phantom-02"]


def one_round(config: Config, network: Network, rule: LocalRule | None, round: int = 1, state: TrainState | None = None) -> FitResult:
    """Round `round` at the first phantom site."""
    site = load_site(config, 0)
    pipeline = build_pipeline(network, config)
    return fit(network, site.train, pipeline, config, round=round, site=site.name, state=state, device=CPU, rule=rule)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def memory(out: Path, site: str, group: str) -> dict[str, Tensor]:
    """A group of tensors in the newest file that a site of a simulation wrote."""
    newest = max((out / "sites" / site).glob("*/round-*.safetensors"))
    return {name.removeprefix(f"{group}/"): tensor for name, tensor in load_file(newest).items() if name.startswith(f"{group}/")}


# --- FedProx, Ditto -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fedprox", "ditto"])
def test_the_pull_by_hand(name: str) -> None:
    # Loss w₁ + 2 w₂ at w = (3, 5), received (1, 1), μ = 0.5: gradient (1, 2) + 0.5 (2, 4) = (2, 4). `own` is not shared.
    config = parse({"federation.prox_mu": 0.5, "federation.ditto_lambda": 0.5})
    rule = ALGORITHMS[name].local(config)
    rule = rule.twin or rule
    network = nn.ParameterDict({key: nn.Parameter(torch.tensor([3.0, 5.0])) for key in ("w", "idle", "own")})
    rule.start(network, {"w": torch.ones(2), "idle": torch.ones(2)}, {}, {})
    (network["w"] @ torch.tensor([1.0, 2.0]) + network["own"].sum()).backward()
    rule.after_backward(0, 1)
    assert network["w"].grad.tolist() == [2.0, 4.0]
    assert network["idle"].grad.tolist() == [1.0, 2.0]  # the loss does not reach it, the pull does
    assert network["own"].grad.tolist() == [1.0, 1.0]
    assert rule.end().kept == {}


def test_the_pull_is_the_gradient_of_its_term() -> None:
    config = parse({"federation.prox_mu": 0.3})
    weight, centre = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 3)
    network = nn.ParameterDict({"w": nn.Parameter(weight)})
    rule = ALGORITHMS["fedprox"].local(config)
    rule.start(network, {"w": centre}, {}, {})
    network["w"].square().sum().backward()
    rule.after_backward(0, 1)
    expected = weight.clone().requires_grad_()
    (expected.square().sum() + 0.3 / 2 * (expected - centre).square().sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(network["w"].grad, expected.grad)


def test_a_stronger_pull_keeps_a_site_closer(tmp_path: Path) -> None:
    def drift(mu: float) -> float:
        config = tiny(tmp_path, training__steps=5, training__optimizer="sgd", training__learning_rate=0.05, federation__prox_mu=mu)
        network = build_network(config)
        begin = copied(shared_state(network))
        rule = ALGORITHMS["fedprox"].local(config)
        rule.start(network, begin, {}, {})
        one_round(config, network, rule)
        return sum(float((tensor - begin[name]).square().sum()) for name, tensor in shared_state(network).items())

    assert drift(0.0) > 1.05 * drift(10.0) > 0


# --- FedRep -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("share", "steps", "first"), [(0.5, 4, 2), (0.5, 1, 0), (0.01, 3, 1), (0.99, 3, 2), (0.25, 4, 1)])
def test_the_parts_take_turns(tmp_path: Path, share: float, steps: int, first: int) -> None:
    config = tiny(tmp_path, federation__algorithm="fedrep", federation__personal_share=share, training__steps=steps)
    network = build_network(config)
    begin = copied(shared_state(network))
    rule, real, trained = ALGORITHMS["fedrep"].local(config), None, []
    rule.start(network, begin, {}, {})
    real = rule.after_backward

    def watched(step: int, steps: int) -> None:
        real(step, steps)
        trained.append({name in begin for name, p in network.named_parameters() if p.grad is not None})

    rule.after_backward = watched  # type: ignore[method-assign]
    result = one_round(config, network, rule)
    assert trained == [{False}] * first + [{True}] * (steps - first)
    moved = {name for name, tensor in shared_state(network).items() if not torch.equal(tensor, begin[name])}
    assert len(moved) > 0.9 * len(begin)
    # What took part in fewer steps has its own count, which AdamW's correction of the bias goes by.
    again = TrainState.from_tensors(result.state.as_tensors())
    assert {again.counts.get(name, again.step) for name in again.moments if name in begin} == {steps - first}
    assert {again.counts.get(name, again.step) for name in again.moments if name not in begin} == ({first} if first else set())


def test_a_part_that_trains_alone_goes_on_as_if_it_had_never_paused(tmp_path: Path) -> None:
    # Two rounds of two personal steps, resumed through the file's form, are the same two rounds without a stop.
    from tmca_core.training.loop import build_optimizer
    from tmca_core.training.state import capture, restore

    def network() -> nn.Module:
        return nn.ParameterDict({"shared": nn.Parameter(torch.ones(2, 2)), "own": nn.Parameter(torch.ones(2, 2))})

    settings, whole, halves = parse({}).training, network(), network()
    optimizer = build_optimizer(whole, settings)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(4):
            optimizer.zero_grad()
            values = model["own"] if step < 1 else model["shared"]  # type: ignore[index]
            (values - torch.arange(4.0).reshape(2, 2)).square().sum().backward()
            optimizer.step()

    steps(whole, optimizer)
    steps(whole, optimizer)
    first = build_optimizer(halves, settings)
    steps(halves, first)
    state = TrainState.from_tensors(capture(halves, first, 4, {}).as_tensors())
    assert state.counts == {"shared": 3, "own": 1}
    second = build_optimizer(halves, settings)
    restore(halves, second, state)
    steps(halves, second)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


# --- plain SGD ----------------------------------------------------------------------------------
def test_plain_sgd_by_hand() -> None:
    from tmca_core.training.loop import build_optimizer
    from tmca_core.training.state import capture

    settings = parse({"training.optimizer": "sgd", "training.learning_rate": 0.1, "training.weight_decay": 0.5}).training
    network = nn.ParameterDict({"matrix": nn.Parameter(torch.full((1, 1), 2.0)), "bias": nn.Parameter(torch.full((1,), 2.0))})
    optimizer = build_optimizer(network, settings)
    for _ in range(2):
        optimizer.zero_grad()
        (network["matrix"].sum() + network["bias"].sum()).backward()
        optimizer.step()
    assert network["bias"].item() == pytest.approx(1.8)  # 2 − 0.1 − 0.1
    assert network["matrix"].item() == pytest.approx(((2.0 * 0.95) - 0.1) * 0.95 - 0.1)  # its decay is decoupled, as AdamW's
    assert capture(network, optimizer, 2, {}).moments == {}


# --- what is personal ---------------------------------------------------------------------------
def personal(**values: Any) -> set[str]:
    config = parse({"network.width": 16, "network.heads": 2} | {key.replace("__", "."): value for key, value in values.items()})
    return {name for name, role in roles(build_network(config)).items() if role == "personal"}


def test_fedbn_keeps_every_norm_and_nothing_else() -> None:
    names = personal(federation__algorithm="fedbn")
    network = build_network(parse({"network.width": 16, "network.heads": 2}))
    norms = {name for name, module in network.named_modules() if "norm" in type(module).__name__.lower()}
    assert len(norms) > 20
    assert names == {f"{norm}.{tensor}" for norm in norms for tensor in ("weight", "bias")}


@pytest.mark.parametrize("algorithm", ["fedper", "fedrep"])
def test_the_chosen_part_stays(algorithm: str) -> None:
    assert personal(federation__algorithm=algorithm) == {"head.weight", "head.bias"}
    decoder = personal(federation__algorithm=algorithm, federation__personal="decoder")
    assert {name.split(".")[0] for name in decoder} == {"skip_norms", "skips", "fuses", "blocks", "detail", "sharpen", "head"}
    text = personal(federation__algorithm=algorithm, federation__personal="text")
    assert {name.split(".")[0] for name in text} == {"text", "text_norm", "no_report"}
    norms = personal(federation__algorithm=algorithm, federation__personal="norms")
    assert norms == personal(federation__algorithm="fedbn")
    guided = personal(federation__algorithm=algorithm, federation__personal="text", network__name="ssa")
    assert "zone_tokens" in guided


def test_the_unet_has_a_decoder_and_no_text() -> None:
    values = {"federation__algorithm": "fedper", "network__name": "unet"}
    decoder, head = (personal(**values, federation__personal=part) for part in ("decoder", "head"))
    assert head < decoder
    assert {name.split(".")[2] for name in head} == {"2"}
    # Everything that is no decoder goes down: four levels and the bottom.
    network = build_network(parse({"network.width": 16, "network.name": "unet"}))
    down = {name.split(".conv")[0].split(".residual")[0] for name, _ in network.named_parameters() if name not in decoder}
    assert sorted(name.count("submodule") for name in down) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"'fedper' keeps the text at the sites, and network 'unet' has no trainable"):
        personal(**values, federation__personal="text")


def test_a_frozen_part_is_no_personal_one() -> None:
    config = parse({"network.width": 16, "network.heads": 2, "federation.algorithm": "fedbn"})
    network = build_network(config)
    assert any(name.startswith("image.") for name in network.personal)
    for parameter in network.image.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    names = ALGORITHMS["fedbn"].personal(network, config)
    assert names
    assert not any(name.startswith("image.") for name in names)


# --- in federations -----------------------------------------------------------------------------
def small(cache: Path, **values: Any) -> Config:
    return tiny(cache, federation__rounds=2, evaluation__bootstrap=0, evaluation__bootstrap_rounds=0, evaluation__examples=0, **values)


def final(out: Path) -> dict[str, Tensor]:
    last = Run(out).last_checkpoint()
    assert last is not None
    return last.weights


def test_dittos_shared_model_is_fedavgs_and_its_own_is_pulled_to_it(tmp_path: Path) -> None:
    config = small(tmp_path / "cache", federation__ditto_lambda=0.5)
    plain = simulate(config, tmp_path / "plain")
    ditto = config.with_values({"federation.algorithm": "ditto"})
    summary = simulate(ditto, tmp_path / "ditto")
    shared, expected = final(tmp_path / "ditto"), final(tmp_path / "plain")
    assert all(torch.equal(shared[name], expected[name]) for name in expected)
    assert summary["bytes"]["up_per_site_round"] == plain["bytes"]["up_per_site_round"]
    # A site's own model trains from round to round, with the same draws, and sees of the shared one what each round begins with.
    network, state = build_network(ditto), None
    for round in (1, 2):
        received = load_file(tmp_path / "ditto" / "checkpoints" / f"round-{round - 1:03d}" / "model.safetensors")
        rule = Pull(0.5)
        rule.start(network, {name: received[name] for name in shared_state(network)}, {}, {})
        state = one_round(ditto, network, rule, round, state).state
    own = memory(tmp_path / "ditto", "phantom-00", "twin")
    alone = dict(network.named_parameters())
    assert own.keys() == alone.keys()
    assert all(torch.equal(own[name], alone[name]) for name in alone)
    assert any(not torch.equal(own[name], shared[name]) for name in own)
    # It is what the site is judged by.
    losses = [[event["loss"] for event in Run(tmp_path / arm).events("site_eval")] for arm in ("plain", "ditto")]
    assert losses[0] != losses[1]


def scaffold_run(config: Config, out: Path, lost: set[tuple[int, int]]) -> dict[str, Any]:
    """A federation in which the replies of some (site, round) are lost after the site has trained."""
    app = client.app.make_app(config)

    def between(message: Message, context: Context) -> Message:
        reply, content = app(message, context), message.content.config_records["settings"]
        if message.metadata.message_type == "train" and (int(context.node_config["partition-id"]), content["round"]) in lost:
            raise ConnectionError("the reply was lost")
        return reply

    run_in_process(server.app.make_app(config, out, lambda event: None), between, 3)  # type: ignore[arg-type]
    return Run(out).read_json("run.json")


@pytest.mark.parametrize("lost", [set(), {(1, 2), (1, 3), (2, 3)}])
def test_scaffolds_variate_is_the_weighted_mean_of_the_sites(tmp_path: Path, lost: set[tuple[int, int]]) -> None:
    out = tmp_path / "run"
    config = small(tmp_path / "cache", federation__algorithm="scaffold").with_values({"federation.rounds": 4, "simulation.out": str(out)})
    summary = scaffold_run(config, out, lost)
    assert len(summary["faults"]) == len(lost)
    weights = {site["name"]: site["train_cases"] for site in summary["sites"]}
    own = {site: memory(out, site, "kept") for site in SITES}
    newest = max((out / "checkpoints").glob("round-*"))
    variate = {name: tensor for name, tensor in load_file(newest / "training.safetensors").items() if "extra/" in name}
    assert len(variate) == len(own[SITES[0]]) > 0
    for name, tensor in variate.items():
        key = name.split("extra/")[1]
        mean = sum(weights[site] * own[site][key].double() for site in SITES) / sum(weights.values())
        torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-5)
    assert max(float(tensor.abs().max()) for tensor in variate.values()) > 1e-3
    shared = sum(tensor.nbytes for tensor in own[SITES[0]].values())
    assert summary["bytes"]["up_per_site_round"] > 2 * shared


@pytest.mark.parametrize("algorithm", ["fedper", "fedrep", "fedbn"])
def test_personal_tensors_never_leave(tmp_path: Path, algorithm: str) -> None:
    out = tmp_path / "run"
    config = small(tmp_path / "cache", federation__algorithm=algorithm)
    summary = simulate(config, out)
    own = {site: memory(out, site, "personal") for site in SITES}
    network = build_network(config)
    initial, server = dict(network.named_parameters()), final(out)
    assert set(own[SITES[0]]) == {name for name, role in roles(network).items() if role == "personal"}
    for name in own[SITES[0]]:
        assert torch.equal(server[name], initial[name])
        values = [own[site][name] for site in SITES]
        assert not torch.equal(values[0], values[1])
        assert not torch.equal(values[1], values[2])
    sent = summary["bytes"]["up_per_site_round"]
    shared = sum(tensor.nbytes for tensor in shared_state(network).values())
    assert shared < sent < 1.05 * shared + 2000
