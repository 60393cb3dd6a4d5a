"""Secure aggregation in the round loop: who is in the sum, what a server that lies gets, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from made_up_sites import Tiny, final_weights
from masked_sites import NAMES, STAGES, MaskedSites, settings

from client.site import KEPT_RUNS, _drop_old_runs
from server import rounds
from server.app import federate
from server.exchange import packed
from simulations.inprocess import Weather
from tmca_core.algorithms import ALGORITHMS
from tmca_core.errors import ConfigError, FederationError
from tmca_core.networks import shared_state
from tmca_core.run import Run
from tmca_core.secure import shamir


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "build_network", lambda config: Tiny())


def run(sites: MaskedSites, out: Path, weather: Weather | None = None) -> dict[str, Any]:
    return federate(sites.grid(weather), sites.config, out, lambda event: None)


def assert_moved(out: Path, by: float, tolerance: float = 1e-6) -> None:
    found, start = final_weights(out), Tiny().state_dict()
    for name in ("a", "b"):
        torch.testing.assert_close(found[name], start[name] + by, atol=tolerance, rtol=0)


def test_the_sum_by_hand_and_no_update_in_what_the_server_gets(tmp_path: Path) -> None:
    sites = MaskedSites(settings(federation__rounds=2), tmp_path / "state")
    summary = run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 2 * 0.3)  # (0.1 + … + 0.5) / 5, twice
    assert summary["faults"] == []
    assert [(site, stage) for site, stage in sites.asked[:25] if site == "cork"] == [("cork", stage) for stage in STAGES]
    # 4 numbers of 4 bytes; of equal updates no two look alike, nor does a number look like its neighbours.
    seen = [tuple(sites.sent[name].view(torch.int32).tolist()) for name in NAMES]
    assert all(len(each) == 4 == len(set(each)) for each in seen) and len(set(seen)) == 5
    secret = [json.loads(path.read_text()) for path in (tmp_path / "state").rglob("secure.json")]
    assert len(secret) == 5 and all(session.keys() == {"stage", "round", "session"} for session in secret)
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "state").rglob("*") if path.name in ("secure.json", "signing-key.pem")
    )


# t = 4 of 5
@pytest.mark.parametrize(("stage", "mean"), [("keys", 0.35), ("shares", 0.35), ("train", 0.35), ("agree", 0.3), ("unmask", 0.3)])
def test_a_site_that_leaves_at_any_stage(stage: str, mean: float, tmp_path: Path) -> None:
    sites = MaskedSites(settings(), tmp_path / "state")
    sites.gone = {("aarhus", stage)}
    summary = run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", mean)
    (fault,) = summary["faults"]
    assert (fault["site"], fault["kind"]) == ("aarhus", "failed") and "the line is dead" in fault["reason"]
    (record,) = Run(tmp_path / "run").events("round")
    assert record["completed"] == [name for name in NAMES if name != "aarhus" or mean == 0.3]


@pytest.mark.parametrize("stage", STAGES[1:])
def test_two_sites_that_leave_are_one_too_many(stage: str, tmp_path: Path) -> None:
    sites = MaskedSites(settings(), tmp_path / "state")
    sites.gone = {("aarhus", stage), ("berlin", stage)}
    with pytest.raises(FederationError, match=r"round 1: 3 sites .*, 4 are needed .*aarhus: .*the line is dead"):
        run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0)
    sites.gone = set()
    run(sites, tmp_path / "run")  # the very command again
    assert_moved(tmp_path / "run", 0.3)


def test_two_of_five_may_leave_where_more_than_half_is_enough(tmp_path: Path) -> None:
    sites = MaskedSites(settings(federation__secure_threshold=0.5), tmp_path / "state")
    sites.gone = {("aarhus", "train"), ("berlin", "agree")}
    run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0.35)


def test_a_late_masked_update_is_left_out_and_the_sum_still_opens(tmp_path: Path) -> None:
    class Slow(Weather):
        def delay(self, message: Message, context: Context, usual: float) -> float:
            return 60.0 if message.metadata.message_type == "train" and context.node_config["partition-id"] == 4 else 0.0

    sites = MaskedSites(settings(federation__deadline=5.0), tmp_path / "state")
    summary = run(sites, tmp_path / "run", Slow())
    assert [(fault["site"], fault["kind"]) for fault in summary["faults"]] == [("essen", "late")]
    assert_moved(tmp_path / "run", 0.25)


def test_sixteen_bits_take_half_the_bytes_and_stay_within_their_step(tmp_path: Path) -> None:
    sites = MaskedSites(settings(federation__secure_bits=16), tmp_path / "state")
    run(sites, tmp_path / "run")
    assert all(len(sent) == 2 * 4 for sent in sites.sent.values())
    step = 1 / (32767 - 5)  # of the mean: bound · W / (2¹⁵ − 1 − n) / W
    assert_moved(tmp_path / "run", 0.3, tolerance=2.5 * step)
    assert sites.unsent and all(rest.abs().max() <= 2.6 * step for rest in sites.unsent.values())


def test_a_site_out_of_range_loses_its_turn_and_says_why(tmp_path: Path) -> None:
    sites = MaskedSites(settings(), tmp_path / "state")
    sites.steps["delft"] = -1.5
    summary = run(sites, tmp_path / "run")
    (fault,) = summary["faults"]
    assert (
        fault["site"] == "delft"
        and "changes by up to 1.5, and masked sums take at most 1: raise federation.secure_range" in fault["reason"]
    )
    assert_moved(tmp_path / "run", (0.1 + 0.2 + 0.3 + 0.5) / 4)


def test_a_wrong_share_is_named_and_does_no_harm(tmp_path: Path) -> None:
    sites = MaskedSites(settings(), tmp_path / "state")

    def lie(fields: Any) -> None:
        shares = json.loads(fields["body"])["shares"]
        fields["body"] = json.dumps({"shares": {dealer: hex((int(share, 16) + 1) % shamir.PRIME) for dealer, share in shares.items()}})

    sites.on_answer["berlin", "unmask"] = lie
    summary = run(sites, tmp_path / "run")
    assert [(fault["site"], fault["kind"]) for fault in summary["faults"]] == [("berlin", "share")]
    assert_moved(tmp_path / "run", 0.3)


def _body(change: Callable[[dict[str, Any], str], None]) -> Callable[[dict[str, Any]], None]:
    def applied(fields: dict[str, Any]) -> None:
        body = json.loads(fields["body"])
        change(body, fields["site"])
        fields["body"] = json.dumps(body)

    return applied


def _swap_keys(body: dict[str, Any], site: str) -> None:
    body["adverts"][1]["masking"] = body["adverts"][2]["masking"]


def _two_sets(body: dict[str, Any], site: str) -> None:
    """Half of the sites are shown a sum without one of them."""
    if site in ("delft", "essen"):
        body["survivors"].remove("aarhus")


def _leave_one_out(body: dict[str, Any], site: str) -> None:
    body["parcels"].pop("aarhus" if site != "aarhus" else "berlin")


def _swap_parcels(body: dict[str, Any], site: str) -> None:
    body["parcels"]["aarhus"], body["parcels"]["berlin"] = body["parcels"]["berlin"], body["parcels"]["aarhus"]


def _one_signature_for_all(body: dict[str, Any], site: str) -> None:
    body["signatures"] = dict.fromkeys(body["signatures"], body["signatures"]["aarhus"])


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("shares", _swap_keys, "keys of site 'berlin' are not signed by it"),
        ("train", _swap_parcels, "as those of site 'aarhus' are not from it"),
        ("train", _leave_one_out, "has no part in this session as this site knows it"),  # sites mask with others than their neighbours do
        ("agree", _two_sets, "different sets"),
        ("unmask", _one_signature_for_all, "has not signed the set"),
    ],
)
def test_a_server_that_lies_opens_nothing(stage: str, change: Callable[..., None], says: str, tmp_path: Path) -> None:
    sites = MaskedSites(settings(), tmp_path / "state")
    sites.on_request[stage] = _body(change)
    with pytest.raises(FederationError, match=says):
        run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0)


def test_a_site_that_was_sent_other_weights_than_the_rest_opens_nothing(tmp_path: Path) -> None:
    """One hospital gets the real weights, the others dead ones, whose updates the server knows: the sum would be that one's update."""
    sites = MaskedSites(settings(), tmp_path / "state")
    dead = packed({name: torch.zeros_like(tensor) for name, tensor in shared_state(Tiny()).items()}, False)
    sites.weights = dict.fromkeys(NAMES[1:], dead)
    sites.steps = dict.fromkeys(NAMES[1:], 0.0)
    with pytest.raises(FederationError, match="site 'aarhus' has not signed the set of survivors and the weights"):
        run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0)
    sites.weights, sites.steps = {}, {}
    run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0.3)


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_is_answered_twice(stage: str, tmp_path: Path) -> None:
    """The second time a site is asked, with the very message of the first; its first answer counts, and opens the sum."""
    sites, refusals = MaskedSites(settings(), tmp_path / "state"), []
    handler = sites._train if stage == "train" else sites._secure

    def twice(message: Message, context: Context) -> Message:
        first = handler(message, context)
        if message.metadata.message_type == "train" or message.content["settings"]["stage"] == stage:
            with pytest.raises(Exception, match=r"once more|each stage is answered once|knows nothing of"):
                handler(message, context)
            refusals.append(stage)
        return first

    sites.app._registered_funcs["train.default" if stage == "train" else "query.secure"] = twice
    run(sites, tmp_path / "run")
    assert len(refusals) == 5
    assert_moved(tmp_path / "run", 0.3)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_round_that_is_done_again_opens_the_same_set_or_none(forgotten: bool, tmp_path: Path) -> None:
    """Crash after the sites have signed; the second attempt without one of them would give its update away as a difference.

    So it is after the server has named so many other runs that the sites have made room for these.
    """
    sites = MaskedSites(settings(), tmp_path / "state")
    sites.gone = {(name, "unmask") for name in NAMES}
    with pytest.raises(FederationError, match="helped to open the sum"):
        run(sites, tmp_path / "run")
    if forgotten:
        folders = [path.parent for path in (tmp_path / "state").rglob("secure.json")]
        newer = [folder.parent / f"a{k:x}" for folder in folders for k in range(KEPT_RUNS)]
        for path in (*newer, *(folder.parent / "ff" for folder in folders)):
            path.mkdir()
            _drop_old_runs(path.parent) if path.name == "ff" else os.utime(path, (2e9, 2e9))
        assert len(folders) == 5 and not any(folder.exists() for folder in folders)
    sites.gone = {("aarhus", "train")}
    with pytest.raises(FederationError, match=r"signed another set of survivors \(missing now: aarhus; new: none\)"):
        run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0)
    sites.gone = set()
    run(sites, tmp_path / "run")
    assert_moved(tmp_path / "run", 0.3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"federation__algorithm": name}, "looks at single updates")
        for name in ("median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "norm-bound")
    ]
    + [
        ({"federation__max_norm_ratio": 30.0}, "max_norm_ratio=30: it compares the norms of single updates"),
        ({"federation__contribution_every": 1}, "contribution_every=1"),
        ({"federation__compression": "int8"}, "secure_bits=16"),
        ({"federation__keep_replies": "on"}, "keep_replies=on"),
        ({"federation__oversample": 0.5, "federation__cohort": 3}, "oversample=0.5"),
        ({"central__enabled": True}, "cannot clip what it does not see"),
        ({"scenario__poison": "sign-flip"}, "label-flip"),
    ],
)
def test_what_needs_single_updates_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    sites = MaskedSites(settings(**values), tmp_path / "state")
    with pytest.raises(ConfigError, match=says):
        run(sites, tmp_path / "run")
    assert sites.asked == []


def test_two_sites_have_no_sum(tmp_path: Path) -> None:
    sites = MaskedSites(settings(), tmp_path / "state", NAMES[:2])
    with pytest.raises(FederationError, match="2 sites announced keys, 3 are needed"):
        run(sites, tmp_path / "run")


def test_which_algorithms_need_the_mean_alone() -> None:
    like = shared_state(Tiny())
    linear = {name for name in ALGORITHMS.names() if ALGORITHMS[name].fold(like, settings()).linear}
    mean_type = {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fedbn", "fedper", "fedrep", "ditto", "scaffold"}
    assert linear == mean_type


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold"])
def test_to_a_linear_fold_one_mean_is_as_good_as_its_updates(name: str) -> None:
    from tmca_core.messages import Update

    torch.manual_seed(0)
    start, config = {name: torch.randn(50) for name in ("a", "b")}, settings(federation__algorithm=name)
    sent = ALGORITHMS[name].sent(dict.fromkeys(start, ((50,), "float32")))
    ends = []
    for together in (False, True):
        fold, weights = ALGORITHMS[name].fold(start, config), {key: tensor.clone() for key, tensor in start.items()}
        generator = torch.Generator().manual_seed(1)
        for round in (1, 2, 3):
            fold.begin(20)
            updates = [Update({key: torch.randn(50, generator=generator) for key in sent}, weight, {}, round) for weight in (2, 5, 9)]
            if together:
                mean = {key: sum(each.weight * each.tensors[key].double() for each in updates) / 16 for key in sent}
                updates = [Update(mean, 16, {}, round)]  # type: ignore[arg-type]
            for update in updates:
                fold.add(update)
            fold.finish(weights)
        ends.append({**weights, **fold.state()})
    for key, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][key], msg=key)
