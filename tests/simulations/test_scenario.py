"""Scenarios: who is drawn, what a poisoned site does, and that a late answer costs no waiting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from tiny_runs import tiny

from client.site import TensorArray
from client.workspace import open_site, open_workspace
from server.exchange import exchange, request
from simulations.attacks import HUGE, ON_ANSWER, ON_DATA, Turn
from simulations.engine import simulate
from simulations.inprocess import InProcessGrid, Weather
from simulations.scenario import StagedApp, cast, stage, staged
from tmca_core.cases.sites import load_site
from tmca_core.config import Config, ScenarioSettings, load
from tmca_core.errors import ConfigError
from tmca_core.messages import ARRAYS, METRICS, SETTINGS, TRAIN
from tmca_core.run import Run
from tmca_core.wire import to_tensor

SCENARIOS = Path(stage.__code__.co_filename).parent / "scenarios"


def reply(**tensors: torch.Tensor) -> RecordDict:
    arrays = ArrayRecord()
    for name, tensor in tensors.items():
        arrays[name] = TensorArray(tensor)
    settings, metrics = ConfigRecord({"round": 3, "weight": 8}), MetricRecord({"loss": 0.5})
    return RecordDict({ARRAYS: arrays, SETTINGS: settings, METRICS: metrics})


def tensors(content: RecordDict) -> dict[str, torch.Tensor]:
    return {name: to_tensor(name, array) for name, array in content.array_records[ARRAYS].items()}


def attacked(kind: str, cohort: int = 5, scale: float = 1.0) -> dict[str, torch.Tensor]:
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])
    found = tensors(ON_ANSWER[kind](reply(a=a, b=b), Turn("x", cohort, scale)))
    assert a.tolist() == [1.0, -2.0] and b.tolist() == [[3.0]], "the resident network's own tensors were changed"
    return found


def test_attacks_on_updates_by_hand() -> None:
    assert torch.isnan(attacked("nan")["a"][0]) and attacked("nan")["b"].tolist() == [[3.0]]
    assert attacked("inf")["a"].tolist() == [float("inf"), -2.0]
    assert attacked("huge")["a"].tolist() == [HUGE, -2 * HUGE]
    assert attacked("sign-flip") == {"a": pytest.approx(torch.tensor([-1.0, 2.0])), "b": pytest.approx(torch.tensor([[-3.0]]))}
    assert attacked("sign-flip", scale=5.0)["a"].tolist() == [-5.0, 10.0]
    assert attacked("model-replacement", cohort=7)["b"].tolist() == [[21.0]]
    assert attacked("wrong-shape")["a"].shape == (1, 2)
    assert attacked("wrong-dtype")["a"].dtype == torch.float64
    assert list(attacked("missing-tensor")) == ["b"]
    assert list(attacked("extra-tensor")) == ["a", "b", "intruder"]
    with pytest.raises(MemoryError):
        attacked("raise")


def test_replay_sends_the_turn_before_as_it_was() -> None:
    turn, first = Turn("x", 5, 1.0), reply(a=torch.tensor([1.0]))
    assert tensors(ON_ANSWER["replay"](first, turn))["a"].tolist() == [1.0]
    tensors(first)["a"].mul_(9)  # the network trains on in the same memory
    again = ON_ANSWER["replay"](reply(a=torch.tensor([5.0])), turn)
    assert tensors(again)["a"].tolist() == [1.0]
    assert tensors(ON_ANSWER["replay"](reply(a=torch.tensor([6.0])), turn))["a"].tolist() == [5.0]


def test_every_poison_of_the_schema_is_played() -> None:
    annotation = ScenarioSettings.model_fields["poison"].annotation
    kinds = set(annotation.__args__) - {"", "duplicate"}  # type: ignore[union-attr]
    assert kinds == {*ON_ANSWER, *ON_DATA}


def test_data_are_poisoned_and_come_back_poisoned_after_they_were_dropped(tmp_path: Path) -> None:
    config = tiny(tmp_path, scenario__poison="swap-reports", scenario__poison_sites="phantom-01", simulation__resident_sites=1)
    config = config.with_values({"simulation.out": str(tmp_path / "run")})
    open_workspace.cache_clear()
    seen: list[str] = []

    def app(message: Message, context: Context) -> Message:
        site = open_site(config, context.node_config)
        seen.append(" ".join(case.text for case in (*site.data.train.cases, *site.data.test.cases)))
        return Message(RecordDict(), reply_to=message)

    played, _ = stage(config, app)  # type: ignore[arg-type]
    grid = InProcessGrid(played, 3)
    for node in (2, 3, 4, 3):
        (answer,) = grid.send_and_receive([request("query", node, None, {"round": 1}, "1")])
        assert not answer.has_error(), answer.error.reason
    clean = [load_site(config, k) for k in range(3)]
    own = [" ".join(case.text for case in (*site.train.cases, *site.test.cases)) for site in clean]
    assert seen[0] == own[0] and seen[2] == own[2]
    assert seen[1] == seen[3] != own[1]
    assert seen[1].lower().count("left") == own[1].lower().count("right") > 0


def test_masks_inside_out_are_of_the_training_cases_only(tmp_path: Path) -> None:
    site = load_site(tiny(tmp_path), 0)
    flipped = ON_DATA["label-flip"](site)
    assert torch.equal(flipped.train.masks, 1 - site.train.masks)
    assert torch.equal(flipped.test.masks, site.test.masks) and torch.equal(flipped.val.masks, site.val.masks)


def test_the_cast_is_drawn_by_seed_and_names_and_rounded_up() -> None:
    config = Config().with_values({"phantom.sites": 9, "scenario.poison": "nan", "scenario.poison_share": 0.2, "scenario.stragglers": 0.34})
    roles = cast(config)
    assert (len(roles.poisoned), len(roles.slow)) == (2, 4)
    assert cast(config) == roles
    assert cast(config.with_values({"seed": 5})).poisoned != roles.poisoned
    assert cast(config.with_values({"scenario.poison": ""})).poisoned == frozenset()
    named = config.with_values({"scenario.poison_sites": "phantom-03, phantom-05"})
    assert cast(named).poisoned == {"phantom-03", "phantom-05"}
    with pytest.raises(ConfigError, match="no site 'ghent'"):
        cast(config.with_values({"scenario.poison_sites": "ghent"}))


def test_without_a_scenario_the_very_app_runs() -> None:
    def app(message: Message, context: Context) -> Message:
        raise AssertionError

    played, weather = stage(Config(), app)  # type: ignore[arg-type]
    assert played is app and type(weather) is Weather
    assert not staged(Config().with_values({"scenario.stragglers": 0.5}))  # slow by nothing
    assert isinstance(stage(Config().with_values({"scenario.dropout": 0.5}), app)[0], StagedApp)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one process only"):
        stage(Config().with_values({"scenario.poison": "replay", "simulation.engine": "ray"}), app)  # type: ignore[arg-type]


class Late(Weather):
    """Node 3 answers an hour late."""

    def delay(self, message: Message, context: Context, usual: float) -> float:
        return 3600.0 if context.node_id == 3 else 0.0


@pytest.mark.parametrize(("deadline", "late"), [(1800.0, True), (7200.0, False), (0.0, False)])
def test_a_late_answer_costs_no_waiting(deadline: float, late: bool) -> None:
    def app(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 3, Late())  # type: ignore[arg-type]
    requests = {f"s{node}": request(TRAIN, node, None, {"round": 1}, "1") for node in (2, 3, 4)}
    start = time.monotonic()
    answers = {answer.site: answer for answer in exchange(grid, requests, poll=0.1, seconds=deadline)}
    assert time.monotonic() - start < 5
    assert [site for site, answer in answers.items() if answer.content is None] == (["s3"] if late else [])
    assert list(answers)[-1] == "s3"  # the others are not kept waiting


def run(tmp_path: Path, **values: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    open_workspace.cache_clear()
    name = "-".join(str(value) for value in values.values()) or "plain"
    summary = simulate(tiny(tmp_path / "cache", federation__rounds=2, **values), tmp_path / name)
    last = Run(tmp_path / name).last_checkpoint()
    assert last is not None
    return summary, last.weights


def test_a_refused_update_leaves_no_trace_and_a_second_reply_counts_once(tmp_path: Path) -> None:
    bad = {"scenario__poison_sites": "phantom-01"}
    absent, without = run(tmp_path, scenario__poison="raise", **bad)
    assert {fault["site"] for fault in absent["faults"]} == {"phantom-01"}
    summary, found = run(tmp_path, scenario__poison="nan", **bad)
    assert {fault["site"] for fault in summary["faults"]} == {"phantom-01"}
    assert all(torch.equal(found[name], without[name]) for name in without)
    _, plain = run(tmp_path)
    _, twice = run(tmp_path, scenario__poison="duplicate", **bad)
    assert all(torch.equal(plain[name], twice[name]) for name in plain)
    assert any(not torch.equal(plain[name], without[name]) for name in plain)


def test_poison_waits_for_its_round(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, scenario__poison="nan", scenario__poison_sites="phantom-00", scenario__poison_round=2)
    assert [(fault["round"], fault["site"]) for fault in summary["faults"]] == [(2, "phantom-00")]


def test_dropped_sites_are_named_and_the_same_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a", scenario__dropout=0.4)
    second, _ = run(tmp_path / "b", scenario__dropout=0.4)
    turns = [(fault["round"], fault["site"]) for fault in first["faults"]]
    assert turns and turns == [(fault["round"], fault["site"]) for fault in second["faults"]]
    assert all("does not answer" in fault["reason"] for fault in first["faults"])


def test_sites_above_the_limit_are_dropped_from_memory_and_the_result_is_the_same(tmp_path: Path) -> None:
    _, all_resident = run(tmp_path / "a")
    _, few = run(tmp_path / "b", simulation__resident_sites=1)
    assert (
        len(
            open_workspace(
                tiny(
                    tmp_path / "b" / "cache", federation__rounds=2, simulation__resident_sites=1, simulation__out=str(tmp_path / "b" / "1")
                )
            ).sites
        )
        == 1
    )
    assert all(torch.equal(all_resident[name], few[name]) for name in few)


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_scenario_files_are_of_the_schema(path: Path) -> None:
    config = load(path)
    assert config != Config()
    cast(config)
