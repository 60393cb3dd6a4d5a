"""`network.start`: what is read and checked, and what follows for those who need the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tmca_core.config import Config, load, parse
from tmca_core.errors import ConfigError, WeightsError
from tmca_core.networks import build_network, frozen_digest, shared_state
from tmca_core.networks.adapters import merged, plain_name
from tmca_core.networks.start import keep_start, needs_start, read_start, start_digest
from tmca_core.run import Checkpoint, Run

SMALL = {"phantom.sites": 1, "phantom.cases": 8, "data.image_size": 32, "network.width": 32}


def config(**values: object) -> Config:
    return parse(SMALL | {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights of seed 3 as a file."""
    save_file(build_network(config(seed=3)).state_dict(), str(tmp_path / "start.safetensors"))
    return tmp_path / "start.safetensors"


def finished(folder: Path, settings: Config, average: bool = False) -> Run:
    """A run with two checkpoints, the second of seed 3."""
    run = Run.create(folder, settings)
    run.save_checkpoint(Checkpoint(1, build_network(settings).state_dict(), {}))
    weights = build_network(settings.with_values({"seed": 3})).state_dict()
    training = {f"average/{name}": tensor + 1 for name, tensor in weights.items()} if average else {}
    run.save_checkpoint(Checkpoint(2, weights, {}, training))
    return run


def assert_same(network: torch.nn.Module, weights: dict[str, torch.Tensor], plus: float = 0.0) -> None:
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name] + plus), name


def test_a_file_a_checkpoint_and_a_run_are_the_same_start(start: Path, tmp_path: Path) -> None:
    run, weights = finished(tmp_path / "run", config()), load_file(str(start))
    last = run.folder / "checkpoints" / "round-002"
    for path in (start, last, last / "model.safetensors", run.folder):
        assert_same(build_network(config(network__start=str(path))), weights)
    assert len({start_digest(read_start(path)) for path in (start, last, run.folder)}) == 1
    assert not torch.equal(build_network(config()).get_parameter("head.weight"), weights["head.weight"])


def test_averaged_weights_are_the_start_where_the_run_kept_them(start: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", config(), average=True)
    assert_same(build_network(config(network__start=str(run.folder))), load_file(str(start)), plus=1.0)


def test_adapters_of_the_earlier_run_are_merged_and_own_ones_begin_at_nothing(start: Path, tmp_path: Path) -> None:
    adapted = build_network(config(network__start=str(start), network__trainable="lora"))
    assert_same(build_network(config(network__start=str(start))), merged(adapted.state_dict()))
    for tensor in shared_state(adapted).values():
        tensor.add_(0.1)
    save_file({name: tensor.contiguous() for name, tensor in adapted.state_dict().items()}, str(tmp_path / "adapted.safetensors"))
    expected = merged(adapted.state_dict())
    assert not torch.equal(expected["blocks.0.mlp.0.weight"], load_file(str(start))["blocks.0.mlp.0.weight"])
    for part in ("all", "lora"):
        after = build_network(config(network__start=str(tmp_path / "adapted.safetensors"), network__trainable=part)).state_dict()
        assert all(torch.equal(tensor, expected[plain_name(name)]) for name, tensor in after.items() if plain_name(name))
        assert all(not tensor.any() for name, tensor in after.items() if name.endswith(".up"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("head.bias"), "'head.bias' is missing"),
        (lambda w: w.update(other=torch.zeros(1)), "'other' is not the network's"),
        (lambda w: w.update({"head.bias": torch.zeros(9)}), r"'head.bias' is \(9,\), the network's \(4,\)"),
    ],
)
def test_another_network_is_refused_by_name_and_shape(change: object, says: str, start: Path) -> None:
    weights = load_file(str(start))
    change(weights)  # type: ignore[operator]
    save_file(weights, str(start))
    with pytest.raises(WeightsError, match=says):
        build_network(config(network__start=str(start)))


def test_what_shapes_do_not_show_is_compared_where_the_run_is_known(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", config(network__heads=2))
    with pytest.raises(ConfigError, match=r"network\.heads was 2, is 4"):
        build_network(config(network__start=str(run.folder)))
    build_network(config(network__start=str(run.folder / "checkpoints" / "round-002" / "model.safetensors")))  # on one's own word


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"network\.start"):
        build_network(config(network__start=str(tmp_path / "absent")))
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(WeightsError, match=r"cannot read network\.start"):
        build_network(config(network__start=str(tmp_path / "torn.safetensors")))
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        build_network(config(network__start=str(Run.create(tmp_path / "empty", config()).folder)))


def test_a_frozen_encoder_may_come_from_the_start_and_must_agree_with_its_weight_file(start: Path, tmp_path: Path) -> None:
    frozen = {"network__freeze_image_encoder": True, "network__start": str(start)}
    network = build_network(config(**frozen))
    assert_same(network, load_file(str(start)))
    own = {name.removeprefix("image."): tensor for name, tensor in load_file(str(start)).items() if name.startswith("image.")}
    save_file(own, str(tmp_path / "encoder.safetensors"))
    assert_same(build_network(config(**frozen, network__image_weights=str(tmp_path / "encoder.safetensors"))), load_file(str(start)))
    first = next(iter(own))
    save_file({**own, first: own[first] + 1}, str(tmp_path / "encoder.safetensors"))
    with pytest.raises(ConfigError, match=r"network\.image_weights and network\.start differ"):
        build_network(config(**frozen, network__image_weights=str(tmp_path / "encoder.safetensors")))


def test_the_pinned_digest_knows_the_start_where_a_site_has_to_read_it(start: Path, tmp_path: Path) -> None:
    weights = load_file(str(start))
    other = tmp_path / "other.safetensors"
    # The head trains and travels, so its frozen tensors are the same; the file is another one all the same.
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, str(other))
    digests = {}
    for name, more in {"all": {}, "head": {"network__trainable": "head"}, "personal": {"federation__algorithm": "fedbn"}}.items():
        networks = [build_network(config(network__start=str(path), **more)) for path in (start, other)]
        assert {needs_start(network) for network in networks} == {name != "all"}
        digests[name] = [frozen_digest(network) for network in networks]
    assert digests["all"][0] == digests["all"][1] == frozen_digest(build_network(config()))
    assert digests["head"][0] != digests["head"][1] and digests["personal"][0] != digests["personal"][1]


def test_a_run_is_not_gone_on_with_from_another_start(start: Path, tmp_path: Path) -> None:
    settings = config(network__start=str(start))
    run = Run.create(tmp_path / "run", settings)
    keep_start(run, settings)
    keep_start(run, settings)
    weights = load_file(str(start))
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, str(start))
    with pytest.raises(ConfigError, match="another start"):
        keep_start(run, settings)
    keep_start(Run.create(tmp_path / "scratch", config()), config())
    assert not (tmp_path / "scratch" / "start.json").exists()


def test_the_path_is_that_of_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[network]\nstart = "public/run"\n')
    assert load(tmp_path / "study.toml").network.start == str(tmp_path / "public" / "run")
