"""Training made again is the federation's own, number for number, and refuses what it cannot make again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simulations.engine import simulate
from tests.support.tiny_runs import tiny
from tmca_core.audits.rehearsal import material_of, rehearse, subject_of
from tmca_core.audits.subjects import fair_coins, held_out, key, planned, prepared
from tmca_core.config import Config
from tmca_core.errors import AuditInvalid, ConfigError
from tmca_core.privacy.accounting import NoisySteps, epsilon
from tmca_core.privacy.planning import mechanism_of
from tmca_core.run import Checkpoint, Run
from tmca_core.training.centralised import keep_data


def same_as_simulated(config: Config, out: Path) -> None:
    simulate(config, out)
    keep_data(Run(out), material_of(None, config).sites)
    subject = subject_of(out, config)
    sights = list(rehearse(subject, {name: site.train for name, site in subject.sites.items()}))
    assert len(sights) == config.federation.rounds
    for folder, sight in zip(Run(out).checkpoints()[-len(sights) :], sights, strict=True):
        weights = Run(out).checkpoint(int(folder.name[-3:])).weights
        assert all(torch.equal(tensor, sight.released[name]) for name, tensor in weights.items())


def test_a_federation_made_again_has_its_checkpoints_bit_for_bit(tmp_path: Path) -> None:
    config = tiny(
        tmp_path / "c",
        federation__rounds=2,
        training__steps=1,
        federation__compression="int8",
        federation__cohort=2,
        simulation__baselines=False,
    )
    same_as_simulated(config, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ("scaffold", "fedbn", "fedadam"))
def test_so_have_other_algorithms(algorithm: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "c", federation__algorithm=algorithm, federation__rounds=2, simulation__baselines=False)
    same_as_simulated(config, tmp_path / "run")


def test_noise_and_draws_are_the_runs_whoever_is_left_out(tmp_path: Path) -> None:
    subject = subject_of(None, tiny(tmp_path, privacy__enabled=True, privacy__noise_multiplier=1.5, federation__rounds=1))
    before = dict(subject.mechanisms)
    pool = {name: site.train for name, site in subject.sites.items()}
    few = held_out(pool, lambda name: not name.endswith("0"))
    assert 0 < sum(map(len, few.values())) < sum(map(len, pool.values()))
    first, second = (next(rehearse(subject, few)).released for _ in range(2))
    assert before == subject.mechanisms
    assert any(not torch.equal(first[name], second[name]) for name in first)  # the noise is fresh
    spent = [epsilon([NoisySteps(1.5, m.sample_rate, m.steps)], 1e-5) for m in before.values()]
    assert planned(subject).epsilon == pytest.approx(max(spent))
    assert not subject.with_values({"privacy.enabled": False}).mechanisms


def test_who_is_seen_depends_on_what_the_server_sees(tmp_path: Path) -> None:
    open_, sealed = (subject_of(None, tiny(tmp_path, federation__rounds=1, federation__secure=secure)) for secure in (False, True))
    pool = {name: site.train for name, site in open_.sites.items()}
    seen, unseen = (next(rehearse(subject, pool)) for subject in (open_, sealed))
    assert sorted(seen.sites) == sorted(pool) and unseen.sites == {}
    assert all(torch.equal(seen.released[name], unseen.released[name]) for name in seen.released)


def test_data_that_are_gone_or_others_are_said(tmp_path: Path) -> None:
    config = tiny(tmp_path / "c", federation__rounds=1)
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(AuditInvalid, match=r"no splits\.json"):
        subject_of(run.folder, config)
    keep_data(run, subject_of(None, config).sites)
    with pytest.raises(AuditInvalid, match="no checkpoint"):
        subject_of(run.folder, config)
    start = subject_of(None, config).start
    run.save_checkpoint(Checkpoint(1, start, {}))
    with pytest.raises(AuditInvalid, match="another network"):
        subject_of(run.folder, config.with_values({"network.width": 32}))
    assert subject_of(run.folder, config).sites
    (run.folder / "data.json").rename(run.folder / "data")
    with pytest.raises(AuditInvalid, match=r"no data\.json"):
        subject_of(run.folder, config)
    assert not (run.folder / "data.json").exists()  # nothing is written into what is audited
    (run.folder / "data").rename(run.folder / "data.json")
    with pytest.raises(AuditInvalid, match="other cases"):
        subject_of(run.folder, config.with_values({"phantom.seed": 1}))
    with pytest.raises(AuditInvalid, match="cannot be made again"):
        subject_of(None, config.with_values({"data.manifest": str(tmp_path / "gone.csv")}))
    with pytest.raises(AuditInvalid, match="hospital-level"):
        subject_of(None, config.with_values({"central.enabled": True}))
    with pytest.raises(ConfigError, match="not both"):
        prepared(tmp_path, tmp_path, None, 0.0, 0.05)


def test_a_run_that_stopped_early_is_made_again_as_far_as_it_went(tmp_path: Path) -> None:
    config = tiny(tmp_path / "c", federation__rounds=3, federation__patience=1, federation__min_gain=0.99, simulation__baselines=False)
    simulate(config, tmp_path / "run")
    run, whole = Run(tmp_path / "run"), subject_of(None, config)
    keep_data(run, whole.sites)
    subject = subject_of(run.folder, config)
    pool = {name: site.train for name, site in subject.sites.items()}
    *_, last = rehearse(subject, pool)
    assert subject.rounds == last.round == run.read_json("run.json")["stopped_early"] == 2 and whole.rounds == 3
    weights = run.checkpoint(2).weights  # the learning rate is that of the second round of three
    assert all(torch.equal(tensor, last.released[name]) for name, tensor in weights.items())
    mechanism = mechanism_of(config.with_values({"privacy.enabled": True, "privacy.noise_multiplier": 1.0}), 9)
    spent = [planned(replace(one, mechanisms={"a": mechanism})).epsilon for one in (subject, whole)]
    assert spent[0] == epsilon([NoisySteps(1.0, mechanism.sample_rate, 2 * mechanism.steps)], 1e-5) < spent[1]
    run.write_json("run.json", run.read_json("run.json") | {"stopped_early": None})
    with pytest.raises(AuditInvalid, match="3 rounds were made, and the last checkpoint is of round 2"):
        subject_of(run.folder, config)


def test_the_model_that_a_run_tested_must_be_there(tmp_path: Path) -> None:
    config = tiny(tmp_path / "c")
    run, subject = Run.create(tmp_path / "run", config), subject_of(None, config)
    keep_data(run, subject.sites)
    run.save_checkpoint(Checkpoint(3, subject.start, {}))
    run.write_json("run.json", {"schema": 1, "engine": "inprocess", "tested_round": 2, "privacy": None})
    with pytest.raises(AuditInvalid, match="the model of round 2 was tested"):
        subject_of(run.folder, config)
    run.save_checkpoint(Checkpoint(0, subject.start, {}))
    run.write_json("run.json", {"schema": 1, "engine": "inprocess", "tested_round": 0, "privacy": None})
    with pytest.raises(AuditInvalid, match="which no training has touched"):
        subject_of(run.folder, config)


def test_coins_are_fair_and_no_two_sets_alike() -> None:
    coins = fair_coins(200, 50)
    assert coins.shape == (200, 50) and 0.46 < coins.mean() < 0.54  # 8 standard deviations
    assert not (fair_coins(200, 50) == coins).all() and key("a", "1") != key("b", "1")
