"""A hospital's policy: what it refuses, how it says so, and what it lets out."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tmca_core.errors import ConfigError, LedgerError, PolicyRefusal
from tmca_core.privacy.ledger import Budget, Ledger
from tmca_core.privacy.policy import Policy, Request, load_policy, open_ledger

TOML = """
[privacy]
epsilon = 4.0
delta = 1e-5
min_noise_multiplier = 0.8
max_clip = 1.0
max_sample_rate = 0.05
max_steps = 1000
min_patients = 30

[metrics]
allowed = ["loss", "dice_image"]
round_to = 0.05
min_cases = 10

[app]
allowed = ["aa", "bb"]
"""
GOOD = Request(True, 1.0, 1.0, 0.03, 500, 1e-5, patients=200, target_epsilon=4.0, metrics=("dice_image",), app="aa")


def policy(folder: Path, text: str = TOML) -> Policy:
    (folder / "site.toml").write_text(text)
    return load_policy(folder / "site.toml")


def test_what_keeps_to_the_policy_passes(tmp_path: Path) -> None:
    found = policy(tmp_path)
    found.check(GOOD)
    found.check(replace(GOOD, noise_multiplier=0.8, clip=1.0, sample_rate=0.05, steps=1000, patients=30, target_epsilon=0.0))
    assert found.budget == Budget(4.0, 1e-5)


@pytest.mark.parametrize(
    ("change", "rule", "asked", "bound"),
    [
        ({"noise_multiplier": 0.79}, "privacy.min_noise_multiplier", "σ = 0.79", "at least 0.8"),
        ({"noise_multiplier": 0.0}, "privacy.min_noise_multiplier", "σ = 0", "at least 0.8"),
        ({"noise_multiplier": math.nan}, "privacy.min_noise_multiplier", "σ = nan", "at least 0.8"),
        ({"noise_multiplier": math.inf}, "privacy.min_noise_multiplier", "σ = inf", "at least 0.8"),
        ({"clip": 1.5}, "privacy.max_clip", "C = 1.5", "at most 1"),
        ({"clip": math.nan}, "privacy.max_clip", "C = nan", "at most 1"),
        ({"clip": 0.0}, "privacy.max_clip", "C = 0", "above 0"),
        ({"sample_rate": 0.06}, "privacy.max_sample_rate", "q = 0.06", "at most 0.05"),
        ({"sample_rate": math.nan}, "privacy.max_sample_rate", "q = nan", "at most 0.05"),
        ({"steps": 1001}, "privacy.max_steps", "1001 steps", "at most 1000"),
        ({"target_epsilon": 5.0}, "privacy.epsilon", "ε = 5", "at most 4"),
        ({"target_epsilon": math.nan}, "privacy.epsilon", "ε = nan", "at most 4"),
        ({"delta": 1e-4}, "privacy.delta", "δ = 0.0001", "at most 1e-05"),
        ({"delta": 1e-15}, "privacy.delta", "δ = 1e-15 at σ = 1", "a larger one"),
        ({"patients": 100_000}, "privacy.delta", "100000 patients", "below one over their number"),
        ({"patients": 29}, "privacy.min_patients", "29 training patients", "30"),
        ({"metrics": ("loss", "worst_case")}, "metrics.allowed", "worst_case", "loss, dice_image"),
        ({"case_counts": True}, "metrics.case_counts", "numbers of cases", "false"),
        ({"downloads": True}, "app.downloads", "network", "false"),
        ({"app": "cc"}, "app.allowed", "code cc", "2 other hashes"),
        ({"app": ""}, "app.allowed", "without a hash", "2 other hashes"),
        ({"private": False}, "privacy.required", "without noise", "true"),
    ],
)
def test_a_refusal_names_rule_value_and_bound(tmp_path: Path, change: dict[str, Any], rule: str, asked: str, bound: str) -> None:
    with pytest.raises(PolicyRefusal) as refusal:
        policy(tmp_path).check(replace(GOOD, **change))
    assert refusal.value.exit_code == 3
    assert f"Rule: {rule};" in str(refusal.value) and asked in str(refusal.value) and bound in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[privacy]\nepsilon = true", "'privacy.epsilon'"),
        ('[privacy]\nepsilon = "8"', "'privacy.epsilon'"),
        ('[privacy]\nrequired = "no"', "'privacy.required'"),
        ("[privacy]\nmin_patients = 20.5", "'privacy.min_patients'"),
        ("[reports]\nwaived = 2025-01-01", "cannot read"),
        ('[metrics]\nallowed = ["dice_image", "dice"]', "no such metric: 'dice'; there are dice_image, dice_pooled"),
        ('[metrics]\nallowed = ["data.prevalences:left"]', "no such metric: 'data.prevalences:left'"),
    ],
)
def test_a_policy_says_what_it_means(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        policy(tmp_path, text)
    policy(tmp_path, '[privacy]\nepsilon = 8\n[metrics]\nallowed = ["true", "data.*", "data.mask_area:left"]')


def test_noise_may_be_left_to_the_server_only_where_the_hospital_says_so(tmp_path: Path) -> None:
    plain = replace(GOOD, private=False, noise_multiplier=0.0)
    policy(tmp_path, "[privacy]\nrequired = false").check(plain)
    with pytest.raises(PolicyRefusal, match="min_noise_multiplier"):
        policy(tmp_path, "[privacy]\nrequired = false").check(replace(plain, private=True))


def test_any_code_runs_with_a_warning_where_none_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy(tmp_path, "").check(GOOD)
    assert "any code of the federation may run" in caplog.text


def test_a_server_that_changes_terms_at_round_7_is_refused_after_a_restart_too(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger")
    for _ in range(6):
        found = policy(tmp_path)  # every round is a new process
        found.agree(GOOD, open_ledger(found), "ab")
    ledger = open_ledger(found)
    assert [entry["kind"] for entry in ledger.read().entries] == ["created", "agreed"]
    for change, said in (
        ({"noise_multiplier": 0.9}, "noise_multiplier = 0.9; bound: noise_multiplier = 1.0"),
        ({"steps": 600}, "steps = 600; bound: steps = 500"),
        ({"metrics": ("loss", "dice_image")}, "metrics"),
        ({"app": "bb"}, "app = bb; bound: app = aa"),
    ):
        with pytest.raises(PolicyRefusal, match="terms that this run began with") as refusal:
            found.agree(replace(GOOD, **change), ledger, "ab")
        assert said in str(refusal.value)
    found.agree(replace(GOOD, patients=190), ledger, "ab")  # the site's own count is no term
    found.agree(replace(GOOD, noise_multiplier=0.9), ledger, "another")
    with pytest.raises(PolicyRefusal, match="min_noise_multiplier"):
        found.agree(replace(GOOD, noise_multiplier=0.5), ledger, "third")


def test_metrics_leave_rounded_listed_and_over_enough_cases(tmp_path: Path) -> None:
    found = policy(tmp_path)
    values = {"loss": 0.1234, "dice_image": 0.874, "worst_case": 0.1, "hd95": 3.0}
    assert found.let_out(values, cases=10) == {"loss": 0.0, "dice_image": 0.85}  # of 0 to 5, and of 0 to 1
    assert found.let_out({"loss": 0.9, "dice_image": 1.0}, cases=10) == {"loss": 1.0, "dice_image": 1.0}
    assert found.let_out({"loss": 1e6}, cases=10) == found.let_out({"loss": 5.1}, cases=10) == {"loss": 5.0}
    assert found.let_out({"loss": -1.0}, cases=10) == {"loss": 0.0}
    far = policy(tmp_path, '[metrics]\nallowed = ["hd95_px"]\n')
    assert far.let_out({"hd95_px": 12.7}, cases=20) == {"hd95_px": 13.0} and far.let_out({"hd95_px": 300.0}, cases=20) == {"hd95_px": 100.0}
    assert policy(tmp_path, "").let_out({"loss": 0.5, "dice_image": 0.5}, cases=20) == {"dice_image": 0.5}
    assert found.let_out(values, cases=9) == {}
    assert found.let_out({"loss": math.nan, "dice_image": math.inf}, cases=10) == {}
    assert found.count_out(1234) is None
    assert policy(tmp_path, "[metrics]\ncase_counts = true").count_out(1234) == 1230


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[privacy]\nepsilonn = 1", "privacy.epsilonn"),
        ("[nothing]", "nothing"),
        ("[privacy]\nepsilon = -1", "privacy.epsilon"),
        ("[privacy]\nepsilon = inf", "privacy.epsilon"),
        ("[privacy]\nmin_noise_multiplier = nan", "privacy.min_noise_multiplier"),
        ("[privacy]\ndelta = 1", "privacy.delta"),
        ("[privacy", "site.toml"),
    ],
)
def test_a_policy_with_a_fault_is_no_policy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        policy(tmp_path, text)
    with pytest.raises(ConfigError, match="cannot read"):
        load_policy(tmp_path / "none.toml")


def test_the_ledger_is_where_the_policy_says_and_is_never_made_on_the_way(tmp_path: Path) -> None:
    found = policy(tmp_path, '[ledger]\nfolder = "spent"\nwitness = "other/disk"')
    with pytest.raises(LedgerError, match="no privacy ledger"):
        open_ledger(found)
    Ledger.create(tmp_path / "spent", tmp_path / "other" / "disk")
    assert open_ledger(found).read().state == "intact"
    with pytest.raises(LedgerError):
        open_ledger(policy(tmp_path, '[ledger]\nfolder = "spent"'))


def test_a_plain_run_keeps_to_the_ceiling_of_steps_too(tmp_path: Path) -> None:
    plain = replace(GOOD, private=False, noise_multiplier=0.0, sample_rate=0.0, target_epsilon=0.0)
    found = policy(tmp_path, TOML.replace("[privacy]", "[privacy]\nrequired = false"))
    found.check(replace(plain, steps=1000))
    with pytest.raises(PolicyRefusal, match=r"Rule: privacy\.max_steps; asked: 1001 steps in the run; bound: at most 1000"):
        found.check(replace(plain, steps=1001))
