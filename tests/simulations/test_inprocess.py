"""The whole federation in one process, on phantom cases: finishes, learns, repeats itself to the bit, counts its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.common.serde import recorddict_to_proto
from tiny_runs import tiny
from torch import Tensor

from client.site import train
from client.workspace import open_site, open_workspace
from server.exchange import carried_bytes, packed, request
from simulations.engine import simulate
from simulations.inprocess import InProcessGrid
from tmca_core.config import Config
from tmca_core.errors import ConfigError, FederationError
from tmca_core.messages import ARRAYS, TRAIN
from tmca_core.networks import build_network, shared_state
from tmca_core.run import Run
from tmca_core.training.loop import fit
from tmca_core.wire import to_tensor

RUN = "0a"


def weights(out: Path) -> dict[str, Tensor]:
    last = Run(out).last_checkpoint()
    assert last is not None
    return last.weights


def test_a_federation_finishes_and_repeats_itself_to_the_bit(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    config = tiny(tmp_path / "cache")
    summary = simulate(config, tmp_path / "a", events.append)
    assert summary["engine"] == "inprocess"
    assert [site["name"] for site in summary["sites"]] == ["phantom-00", "phantom-01", "phantom-02"]
    assert summary["faults"] == []
    assert set(summary["final"]["per_site"]) == {"phantom-00", "phantom-01", "phantom-02"}
    assert set(summary["counterfactual"]) >= {"true", "swapped", "shuffled", "empty"}
    assert [len(event["completed"]) for event in events if event["event"] == "round"] == [3, 3, 3]
    first = weights(tmp_path / "a")
    start = build_network(config).state_dict()
    assert any(not torch.equal(first[name], start[name]) for name in first)
    open_workspace.cache_clear()
    again = simulate(config, tmp_path / "b")
    second = weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again["final"] == summary["final"]
    for name in ("phantom-00", "phantom-01", "phantom-02"):
        (run,) = (tmp_path / "a" / "sites" / name).iterdir()
        assert sorted(path.name for path in run.iterdir()) == [f"round-{k:03d}.safetensors" for k in (1, 2, 3)]


def test_without_kept_optimisers_nothing_is_remembered(tmp_path: Path) -> None:
    simulate(tiny(tmp_path / "cache", federation__keep_optimizer=False, federation__rounds=1), tmp_path / "run")
    assert not (tmp_path / "run" / "sites").exists()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    simulate(
        tiny(tmp_path / "cache", phantom__sites=2, federation__rounds=4, training__steps=6, training__learning_rate=3e-3),
        tmp_path / "run",
        events.append,
    )
    losses = [[e["loss"] for e in events if e["event"] == "site_train" and e["round"] == round] for round in (1, 4)]
    assert sum(losses[1]) < 0.99 * sum(losses[0])


def test_an_update_is_the_difference_that_fit_makes(tmp_path: Path) -> None:
    config = tiny(tmp_path / "cache").with_values({"simulation.out": str(tmp_path)})
    InProcessGrid(lambda message, context: message, 1)  # sets the identity that messages need
    site = open_site(config, {"partition-id": 1})
    start = {name: tensor.clone() for name, tensor in shared_state(build_network(config)).items()}
    reply = train(site, request(TRAIN, 2, packed(start), {"round": 1, "run": RUN, "counted": 0}, "1").content)
    received = {name: to_tensor(name, array) for name, array in reply[ARRAYS].items()}
    # The slow oracle: a network of its own, trained by itself.
    network = build_network(config)
    workspace = site.workspace
    fit(network, site.data.train, workspace.pipeline, config, round=1, site=site.name, state=None, device=workspace.device)
    expected = {name: tensor - start[name] for name, tensor in shared_state(network).items()}
    assert list(received) == list(expected)
    assert all(torch.equal(received[name], expected[name]) for name in expected)
    assert all(tensor.dtype == torch.float32 for tensor in received.values())
    # By reference, and not the network's own memory: the next site may train in it before this is folded.
    assert all(received[name] is reply[ARRAYS][name].tensor for name in received)
    for tensor in workspace.shared.values():
        tensor.zero_()
    assert all(torch.equal(received[name], expected[name]) for name in expected)


def test_bytes_up_are_the_shared_tensors_and_less_than_two_percent(tmp_path: Path) -> None:
    """For the default network, and against what protobuf makes of the real reply."""
    values = {"phantom.cases": 8, "phantom.sites": 1, "training.steps": 1, "training.batch_size": 1, "data.image_size": 32}
    config = Config().with_values(values | {"data.cache_dir": str(tmp_path), "simulation.out": str(tmp_path)})
    InProcessGrid(lambda message, context: message, 1)
    site = open_site(config, {"partition-id": 0})
    start = {name: tensor.clone() for name, tensor in site.workspace.shared.items()}
    reply = train(site, request(TRAIN, 2, packed(start), {"round": 1, "run": RUN, "counted": 0}, "1").content)
    shared = sum(tensor.numel() for tensor in start.values()) * 4
    counted, real = carried_bytes(reply), recorddict_to_proto(reply).ByteSize()
    assert shared < counted <= real < 1.02 * shared
    assert counted > 0.98 * real


def test_personal_tensors_stay_at_their_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from tmca_core.networks.guide import Guide

    monkeypatch.setattr(Guide, "personal", ("text_norm.",))
    config = tiny(tmp_path / "cache", phantom__sites=2, federation__keep_optimizer=False)
    own = {name: tensor for name, tensor in build_network(config).state_dict().items() if name.startswith("text_norm.")}
    summary = simulate(config, tmp_path / "run")
    assert summary["faults"] == []
    travelling = sum(tensor.numel() for tensor in shared_state(build_network(config)).values()) * 4
    assert travelling < summary["bytes"]["up_per_site_round"] < summary["bytes"]["full_state"] + 30_000
    # The server never saw another value than the initial one; each site trained its own.
    assert all(torch.equal(weights(tmp_path / "run")[name], tensor) for name, tensor in own.items())
    files = sorted((tmp_path / "run" / "sites").rglob("round-003.safetensors"))
    kept = [load_file(path) for path in files]
    assert len(kept) == 2
    name = "personal/text_norm.weight"
    assert not torch.equal(kept[0][name], kept[1][name])
    assert not torch.equal(kept[0][name], own["text_norm.weight"])


def test_frozen_tensors_do_not_travel(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from tmca_core.networks.encoders.interface import IMAGE_ENCODERS

    file = tmp_path / "encoder.safetensors"
    save_file(dict(IMAGE_ENCODERS["convnext-mini"](1).state_dict()), file)
    frozen_encoder = {"network.freeze_image_encoder": True, "network.image_weights": str(file)}
    config = tiny(tmp_path / "cache", phantom__sites=1, federation__rounds=1).with_values(frozen_encoder)
    summary = simulate(config, tmp_path / "run")
    network = build_network(config)
    shared = sum(tensor.numel() for tensor in shared_state(network).values()) * 4
    assert shared < summary["bytes"]["up_per_site_round"] < 1.1 * shared < 0.8 * summary["bytes"]["full_state"]
    start, end = network.state_dict(), weights(tmp_path / "run")
    frozen = [name for name in start if name not in shared_state(network)]
    assert frozen
    assert all(torch.equal(start[name], end[name]) for name in frozen)


def test_the_grid_answers_one_message_a_pull() -> None:
    answered: list[int] = []

    def app(message: Any, context: Any) -> Any:
        answered.append(context.node_config["partition-id"])
        return None

    grid = InProcessGrid(app, 3)  # type: ignore[arg-type]
    ids = [next(iter(grid.push_messages([request(TRAIN, node, None, {"round": 1}, "1")]))) for node in grid.get_node_ids()]
    assert answered == []
    (reply,) = grid.pull_messages(ids)
    assert answered == [0]
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == ids[0]
    assert [r.metadata.reply_to_message_id for r in grid.send_and_receive([request(TRAIN, 2, None, {"round": 1}, "1")])]
    assert list(grid.pull_messages(["nobody"])) == []


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no run"):
        simulate(tiny(tmp_path / "cache"), tmp_path / "run")


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({}, "does not say which data"),
        ({"manifest": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"partition-id": 7}, "no site number 7"),
    ],
)
def test_a_node_that_serves_nothing_says_why(tmp_path: Path, node: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_site(tiny(tmp_path / "cache"), node)


def test_a_deployed_node_serves_its_own_manifest(tmp_path: Path) -> None:
    from tmca_core.cases.phantom import write

    config = tiny(tmp_path / "cache")
    manifest = write(tmp_path / "own", sites=2, cases=12, seed=0, size=64)
    site = open_site(config, {"manifest": str(manifest), "site": "phantom-01", "state": str(tmp_path / "state")})
    assert site.name == "phantom-01"
    assert site.state == tmp_path / "state"
    assert {case.site for case in site.data.train.cases} == {"phantom-01"}
    assert site.workspace.config.digest() == config.digest()
    with pytest.raises(ConfigError, match=r"holds 2 sites .*add site="):
        open_site(config, {"manifest": str(manifest)})
    with pytest.raises(ConfigError, match="has no site 'x'"):
        open_site(config, {"manifest": str(manifest), "site": "x"})
    alone = write(tmp_path / "alone", sites=1, cases=12, seed=0, size=64)
    assert open_site(config, {"manifest": str(alone)}).name == "phantom-00"
    assert open_site(config, {"manifest": str(alone), "site": "ghent"}).name == "ghent"


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path / "cache").with_values({"simulation.out": str(tmp_path)})
    InProcessGrid(lambda message, context: message, 1)
    site = open_site(config, {"partition-id": 0})
    name, tensor = next(iter(site.workspace.shared.items()))
    with pytest.raises(FederationError, match="do not fit this site's network: tensor"):
        train(site, request(TRAIN, 2, packed({name: tensor}), {"round": 1, "run": RUN, "counted": 0}, "1").content)


def test_metrics_lines_are_what_the_callback_saw(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    simulate(tiny(tmp_path / "cache", federation__rounds=1), tmp_path / "run", events.append)
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == events
