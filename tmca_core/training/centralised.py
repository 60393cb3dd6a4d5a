"""Training without a federation: all sites pooled, or one site alone. The two baselines that every federation is held against."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tmca_core.cases.case import CaseTensors
from tmca_core.cases.sites import SiteData, splits_json
from tmca_core.config import Config
from tmca_core.errors import ConfigError
from tmca_core.networks import Network, build_network
from tmca_core.networks.start import keep_start
from tmca_core.run import Checkpoint, Run
from tmca_core.text.features import TextPipeline, token_cache
from tmca_core.training.device import resolve_device, set_threads
from tmca_core.training.evaluation import CaseScore, evaluate, summarise
from tmca_core.training.loop import fit
from tmca_core.training.state import TrainState

if TYPE_CHECKING:
    from tmca_core.privacy.centralised import PrivateTraining

OnEvent = Callable[[Mapping[str, Any]], None]


def concatenate(parts: Sequence[CaseTensors]) -> CaseTensors:
    """Several sets of cases as one."""
    return CaseTensors(
        [case for part in parts for case in part.cases], torch.cat([p.images for p in parts]), torch.cat([p.masks for p in parts])
    )


def build_pipeline(network: Network, config: Config) -> TextPipeline:
    """The text pipeline of a network, with its cache of token features on disk."""
    device = resolve_device(config.training)
    return TextPipeline(network.text_encoder, token_cache(config), device, phrase_kinds=config.network.phrase_kinds, read=network.uses_text)


def train_arm(
    config: Config,
    sites: Mapping[str, SiteData],
    run: Run,
    *,
    arm: str,
    checkpoints: str = "",
    on_event: OnEvent | None = None,
    private: PrivateTraining | None = None,
) -> tuple[Network, TextPipeline]:
    """Train on the pooled cases of `sites` for `federation.rounds` rounds, checkpointed each round and resumed where it stopped.

    Args:
        arm: "pooled" or "local:NAME", as it stands in metrics.jsonl.
        checkpoints: folder below the run's checkpoints/.
        private: pays for every round and adds its noise; None: plain training, whatever the settings say.
    """
    set_threads(config.training)
    train = concatenate([site.train for site in sites.values()])
    if private:  # before a file of weights is looked at
        private.admit(config, train.patients)
    keep_start(run, config)
    device = resolve_device(config.training)
    network = build_network(config).to(device)
    pipeline = build_pipeline(network, config)
    val = [site.val for site in sites.values() if len(site.val)]
    state: TrainState | None = None
    first = 1
    if last := run.last_checkpoint(checkpoints):
        network.load_state_dict(last.weights)
        state, first = TrainState.from_tensors(last.training), last.round + 1
    for round in range(first, config.federation.rounds + 1):
        if private:
            result = private.fit(network, train, pipeline, config, round=round, site=arm, state=state, device=device)
        else:
            result = fit(network, train, pipeline, config, round=round, site=arm, state=state, device=device, average=True)
        state = result.state
        weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        loss = None if private else result.loss  # no noise covers it
        run.save_checkpoint(Checkpoint(round, weights, {"loss": loss}, state.as_tensors()), checkpoints, keep=2)
        events: list[dict[str, Any]] = [{"event": "site_train", "site": arm, "loss": loss, "seconds": result.seconds}]
        if val and round % config.evaluation.every == 0:
            if private:
                private.evaluated("val", round)
            with averaged_weights(network, state.average):
                events += _validate(network, val, pipeline, config, device)
        dice = [e["dice_image"] * e["cases"] for e in events if e["event"] == "site_eval"]
        count = sum(e["cases"] for e in events if e["event"] == "site_eval")
        events.append({"event": "round", "dice_image": sum(dice) / count if count else None, "seconds": result.seconds})
        for event in events:
            event |= {"arm": arm, "round": round}
            run.log(**event)
            if on_event:
                on_event(event)
    if state and state.average:
        network.load_state_dict({**network.state_dict(), **state.average})
    return network, pipeline


class averaged_weights:  # noqa: N801  (a context manager, used as a verb)
    """Within the context the network carries its averaged weights; after it, its own again."""

    def __init__(self, network: Network, average: Mapping[str, Tensor]) -> None:
        self.network, self.average = network, average

    def __enter__(self) -> None:
        self.own = {name: p.detach().clone() for name, p in self.network.named_parameters() if name in self.average}
        self.network.load_state_dict(dict(self.average), strict=False)

    def __exit__(self, *error: object) -> None:
        self.network.load_state_dict(self.own, strict=False)


def _validate(
    network: Network, val: Sequence[CaseTensors], pipeline: TextPipeline, config: Config, device: torch.device
) -> list[dict[str, Any]]:
    events = []
    for data in val:
        scores = evaluate(network, data, pipeline, settings=config.evaluation, device=device, counterfactual=False, hd95=False)
        losses = [s.loss for s in scores if s.loss is not None]
        events.append(
            {
                "event": "site_eval",
                "site": data.cases[0].site,
                "dice_image": sum(s.dice for s in scores) / len(scores),
                "loss": sum(losses) / len(losses) if losses else None,
                "cases": len(scores),
            }
        )
    return events


def keep_data(run: Run, sites: Mapping[str, SiteData]) -> None:
    """Note in the run's folder which cases it stands on: splits.json (case ids) and data.json (a digest of all content a site).

    Raises:
        ConfigError: there is no held-out case to judge the model by (said before training, not after), or the folder's run stands
            on other cases.
    """
    if not any(len(site.test) for site in sites.values()):
        raise ConfigError("no site has a held-out case: raise data.test_fraction, or give the manifest a split column with 'test'.")
    run.keep("splits.json", splits_json(sites))
    run.keep("data.json", {name: content_digest(site) for name, site in sites.items()})


def content_digest(site: SiteData) -> str:
    """sha256 over a site's cases, whose they are, pixels, masks and reports, split by split."""
    digest = hashlib.sha256()
    for part in (site.train, site.val, site.test):
        digest.update("\x1f".join(f"{case.case_id}\x1e{case.patient_id}\x1e{case.text}" for case in part.cases).encode())
        digest.update(part.images.numpy().tobytes())
        digest.update(part.masks.numpy().tobytes())
    return digest.hexdigest()


def test_scores(network: Network, pipeline: TextPipeline, sites: Mapping[str, SiteData], config: Config) -> list[CaseScore]:
    """Every measure on the held-out cases of `sites`."""
    device = resolve_device(config.training)
    data = [site.test for site in sites.values() if len(site.test)]
    return evaluate(network, concatenate(data), pipeline, settings=config.evaluation, device=device)


def train_centralised(
    config: Config,
    sites: Mapping[str, SiteData],
    run: Run,
    *,
    arm: str,
    on_event: OnEvent | None = None,
    private: PrivateTraining | None = None,
) -> dict[str, Any]:
    """`tmca train`: train, test, write run.json and the report's material; returns run.json."""
    from tmca_core.report.examples import write_examples

    start = time.perf_counter()
    network, pipeline = train_arm(config, sites, run, arm=arm, on_event=on_event, private=private)
    trained = time.perf_counter()
    if private:
        private.evaluated("test", config.federation.rounds)
    scores = test_scores(network, pipeline, sites, config)
    test = concatenate([site.test for site in sites.values() if len(site.test)])
    write_examples(run, network, test, scores, pipeline, config.evaluation, resolve_device(config.training))
    now = time.perf_counter()
    summary = {
        "schema": 1,
        "network": config.network.name,
        "engine": "centralised",
        "arm": arm,
        "seed": config.seed,
        "rounds": config.federation.rounds,
        "sites": [describe_site(site) for site in sites.values()],
        **summarise(scores, bootstrap=config.evaluation.bootstrap, seed=config.seed, targets=config.data.target_names),
        "seconds": {"total": now - start, "training": trained - start, "evaluation": now - trained},
        "peak_rss_mb": peak_rss_mb(),
        "privacy": private.stated(config, arm, concatenate([site.train for site in sites.values()])) if private else None,
    }
    run.write_json("run.json", summary)
    return summary


def describe_site(site: SiteData) -> dict[str, Any]:
    """A site's entry in run.json."""
    patients = {case.patient_id for part in (site.train, site.val, site.test) for case in part.cases}
    return {
        "name": site.name,
        "patients": len(patients),
        "train_cases": len(site.train),
        "val_cases": len(site.val),
        "test_cases": len(site.test),
        "skipped": len(site.skipped),
    }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
