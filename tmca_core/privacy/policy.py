"""`site.toml`: what one hospital lets a server ask for. It belongs to the hospital; nothing in a run's configuration overrides it."""

from __future__ import annotations

import json
import logging
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import Field, ValidationError, field_validator

from tmca_core.cases.figures import PREFIX, figures_of
from tmca_core.config import Config, Section
from tmca_core.errors import ConfigError, PolicyRefusal
from tmca_core.privacy.accounting import NoisySteps, bounded
from tmca_core.privacy.ledger import Budget, Ledger
from tmca_core.privacy.planning import mechanism_of, schedule
from tmca_core.text.screen.gate import ReportRules
from tmca_core.training.told import CASES

log = logging.getLogger(__name__)

UNREAD = "not read, since none is allowed"
SPANS = {"hd95_px": 100.0, "loss": 5.0}
"""Figures that have no upper bound of their own: what lies above leaves as this. All others lie between 0 and 1."""


class PrivacyRules(Section):
    """Bounds on DP-SGD; the budget is for each patient, add/remove, over all runs."""

    required: bool = Field(True, description="Only noised updates leave.")
    epsilon: float = Field(8.0, gt=0, description="Budget: largest ε of any patient over all runs together.")
    delta: float = Field(1e-5, gt=0, lt=1, description="δ of the budget; below one over the number of patients.")
    min_noise_multiplier: float = Field(0.5, gt=0, description="Floor of σ.")
    beside_plain: str = Field("", description="Why the budget may count noised releases alone where plain updates have left, in words.")
    max_clip: float = Field(10.0, gt=0, description="Ceiling of C, the largest norm of a patient's gradient.")
    max_sample_rate: float = Field(0.2, gt=0, le=1, description="Ceiling of q, a patient's probability of taking part in a step.")
    max_steps: int = Field(100_000, ge=1, description="Ceiling of the steps of one run.")
    min_patients: int = Field(20, ge=1, description="Fewest training patients with whom this hospital takes part.")


class MetricRules(Section):
    """Plain numbers beside the update: they are not covered by ε, so few, rough ones over enough cases may leave."""

    allowed: tuple[str, ...] = Field(("dice_image",), description="Names of metrics that may leave.")
    round_to: float = Field(0.01, gt=0, le=1, description="They leave as multiples of this part of their range.")
    min_cases: int = Field(20, ge=1, description="Fewest cases that a metric may be taken over.")
    case_counts: bool = Field(False, description="Numbers of cases and patients may leave, rounded down to tens.")
    check_noise: float = Field(0.0, ge=0, description="Noise multiplier of a data check's means, charged to the ledger; 0: rounded only.")

    @field_validator("allowed")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Targets name figures of a data check, so of these the part before the colon is looked at."""
        known = (*CASES, "seconds", *figures_of(()), f"{PREFIX}*")
        if unknown := [name for name in names if name.partition(":")[0] not in known]:
            raise ValueError(f"no such metric: {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
        return names

    def rounded(self, value: float, span: float = 0.0) -> float:
        """A value as a multiple of `round_to`; of `round_to` of its range where a span says 0 to what it is cut to.

        So a figure, whatever weights the server sent to be measured, is one of 1/round_to + 1 values.
        """
        step = self.round_to * (span or 1.0)
        cut = min(max(value, 0.0), span) if span else value
        return round(round(cut / step) * step, 12)


class AppRules(Section):
    """Which code runs here, and what it may fetch."""

    allowed: tuple[str, ...] = Field((), description="sha256 of the apps that may run; empty: any.")
    downloads: bool = Field(False, description="Weights may be fetched over the network.")
    starts: tuple[str, ...] = Field(
        (),
        description="sha256 of weights on this disk that network.start, image_weights and text_encoder may name; empty: none.",
    )


class LedgerPlace(Section):
    """Where the hospital's ledger is."""

    folder: str = Field("ledger", description="Its folder, relative to this file.")
    witness: str = Field("", description="Folder of its head, best on another disk; empty: beside the ledger.")


@dataclass(frozen=True)
class Request:
    """What a server asks of a site, and what the site knows about itself; checked before any report is screened or case read.

    Attributes:
        private: whether updates are noised.
        noise_multiplier, clip, sample_rate: σ, C and q.
        steps: of the whole run.
        delta: that the server states ε at.
        target_epsilon: that the server means to spend; 0: not said.
        patients: that would train, as the site counts them.
        metrics: names of figures that the run cannot do without.
        comparisons: several models a round are to be measured.
        case_counts: the run's weights, rates or steps follow from numbers of cases or patients, so that these get out.
        downloads: weights are to be fetched.
        app: sha256 of the code.
        starts: sha256 of the weights on the site's disk that the run would read, `UNREAD` in their place where none may be read.
    """

    private: bool
    noise_multiplier: float
    clip: float
    sample_rate: float
    steps: int
    delta: float
    patients: int
    target_epsilon: float = 0.0
    metrics: tuple[str, ...] = ()
    comparisons: bool = False
    case_counts: bool = False
    downloads: bool = False
    app: str = ""
    starts: tuple[str, ...] = ()

    def terms(self) -> dict[str, Any]:
        """What must stay as it is for a whole run: all but the site's own number of patients, in JSON's types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k != "patients"}


def request_of(config: Config, patients: int, public: int | None, app: str, starts: tuple[str, ...] = ()) -> Request:
    """What a run's settings ask of a site.

    Args:
        config: of the run.
        patients: that would train, as the site counts them.
        public: the number of them that the site lets out, which rates and steps follow from; None: it stays here.
        app: sha256 of the code.
        starts: see `Policy.starts_of`.
    """
    privacy, training, federation = config.privacy, config.training, config.federation
    by_counts = federation.weighting != "uniform"
    needed = federation.patience or federation.select == "best" or federation.contribution_every
    sigma, rate, steps = 0.0, 0.0, training.steps
    if privacy.enabled:
        by_counts |= not privacy.sample_rate
        number = max(1, patients if public is None else public)
        rate, steps = schedule(config, number)
        # With a δ that the policy refuses in any case there is no noise to be found.
        sigma = privacy.noise_multiplier or (mechanism_of(config, number).noise_multiplier if privacy.delta * number < 1 else 0.0)
    return Request(
        private=privacy.enabled,
        noise_multiplier=sigma,
        clip=privacy.clip,
        sample_rate=rate,
        steps=steps * federation.rounds,
        delta=privacy.delta,
        patients=patients,
        target_epsilon=privacy.target_epsilon,
        metrics=("dice_image",) if needed else (),
        comparisons=federation.contribution_every != 0,
        case_counts=by_counts,
        downloads=config.network.allow_download,
        app=app,
        starts=starts,
    )


class Policy(Section):
    """A hospital's policy.

    Example:
        policy = load_policy(Path("/etc/tmca/site.toml")); policy.check(request)
    """

    privacy: PrivacyRules = PrivacyRules()
    metrics: MetricRules = MetricRules()
    app: AppRules = AppRules()
    ledger: LedgerPlace = LedgerPlace()
    reports: ReportRules = ReportRules()

    @property
    def budget(self) -> Budget:
        """What may be spent on each patient."""
        return Budget(self.privacy.epsilon, self.privacy.delta, bool(self.privacy.beside_plain.strip()))

    def check(self, request: Request) -> None:
        """Let a request pass, or refuse it.

        Raises:
            PolicyRefusal: naming the rule, what was asked for, and the bound.
        """
        privacy, app = self.privacy, self.app
        if app.allowed and request.app not in app.allowed:
            _refuse("app.allowed", f"code {request.app or 'without a hash'}", f"{len(app.allowed)} other hashes")
        if not app.allowed:
            log.warning("site policy: app.allowed is empty, so any code of the federation may run here (%s).", request.app or "no hash")
        if unknown := [start for start in request.starts if start not in app.starts]:
            _refuse("app.starts", f"weights of this site's disk ({', '.join(unknown)})", f"{len(app.starts)} others")
        if request.downloads and not app.downloads:
            _refuse("app.downloads", "weights from the network", "false")
        if request.case_counts and not self.metrics.case_counts:
            bound = "false: federation.weighting must be uniform, and of a private run privacy.sample_rate set"
            _refuse("metrics.case_counts", "weights, rates or steps by numbers of cases or patients", bound)
        if unknown := sorted(set(request.metrics) - set(self.metrics.allowed)):
            _refuse("metrics.allowed", ", ".join(unknown), ", ".join(self.metrics.allowed) or "none")
        if request.comparisons:
            bound = "one model a round and split: federation.contribution_every must be 0"
            _refuse("figures of an evaluation", "figures of models that differ in one site's update", bound)
        if not request.patients >= privacy.min_patients:
            _refuse("privacy.min_patients", f"{request.patients} training patients", f"{privacy.min_patients}")
        if not request.private:
            if privacy.required:
                _refuse("privacy.required", "updates without noise", "true: privacy.enabled must be set")
            if not request.steps:
                _refuse("metrics.case_counts", "as many steps as the cases take", "no exact count leaves: training.steps must be set")
            if request.steps > privacy.max_steps:
                _refuse("privacy.max_steps", f"{request.steps} steps in the run", f"at most {privacy.max_steps}")
            return
        # Written so that NaN is refused.
        if not 0 < request.delta <= privacy.delta:
            _refuse("privacy.delta", f"δ = {request.delta:g}", f"at most {privacy.delta:g}, above 0")
        if not privacy.delta * request.patients < 1:
            _refuse("privacy.delta", f"{request.patients} patients", f"δ = {privacy.delta:g} must be below one over their number")
        if not privacy.min_noise_multiplier <= request.noise_multiplier < math.inf:
            _refuse("privacy.min_noise_multiplier", f"σ = {request.noise_multiplier:g}", f"at least {privacy.min_noise_multiplier:g}")
        if not 0 < request.clip <= privacy.max_clip:
            _refuse("privacy.max_clip", f"C = {request.clip:g}", f"at most {privacy.max_clip:g}, above 0")
        if not 0 < request.sample_rate <= privacy.max_sample_rate:
            _refuse("privacy.max_sample_rate", f"q = {request.sample_rate:g}", f"at most {privacy.max_sample_rate:g}, above 0")
        if not 0 < request.steps <= privacy.max_steps:
            _refuse("privacy.max_steps", f"{request.steps} steps in the run", f"at most {privacy.max_steps}, above 0")
        if not 0 <= request.target_epsilon <= privacy.epsilon:
            _refuse("privacy.epsilon", f"ε = {request.target_epsilon:g} for this run", f"at most {privacy.epsilon:g} over all runs")
        if not bounded(NoisySteps(request.noise_multiplier, request.sample_rate, request.steps), request.delta):
            bound = "one with which a finite ε goes: a larger one, or more noise"
            _refuse("privacy.delta", f"δ = {request.delta:g} at σ = {request.noise_multiplier:g}", bound)

    def starts_of(self, config: Config, *, alone: bool = False) -> tuple[str, ...]:
        """What a run reads of this site's disk, by sha256; nothing is read where nothing is allowed. To be asked after `check` of the rest.

        Such weights may come of training on these very patients, which no noise of this run covers.

        Args:
            alone: the site trains by itself, so that no server sends it the weights of the start.

        Raises:
            WeightsError: they are not there or cannot be read.
        """
        from tmca_core.networks.start import own_weights

        return tuple(digest() if self.app.starts else UNREAD for digest in own_weights(config, alone))

    def agree(self, request: Request, ledger: Ledger, run: str) -> None:
        """`check`, and hold the server to it: terms are noted when a run begins, and no later round may ask for others.

        Raises:
            PolicyRefusal: the request is against the policy, or not what this run began with.
            LedgerError: the ledger cannot be read or written.
        """
        self.check(request)
        terms = request.terms()
        before = _agreed(ledger, run)
        if before is None:
            ledger.note("agreed", run=run, terms=terms)
            before = _agreed(ledger, run) or terms  # of two processes that began at once, the first noted counts
        changed = [key for key in terms if before.get(key) != terms[key]]
        if changed:
            asked = ", ".join(f"{key} = {terms[key]}" for key in changed)
            agreed = ", ".join(f"{key} = {before.get(key)}" for key in changed)
            _refuse("the terms that this run began with", asked, agreed)

    def lets(self, name: str) -> bool:
        """Whether a metric of that name may leave at all; "data.*" allows every figure of a data check."""
        group, dot, _ = name.partition(".")
        return name in self.metrics.allowed or (bool(dot) and f"{group}.*" in self.metrics.allowed)

    def let_out(self, values: Mapping[str, float], cases: float) -> dict[str, float]:
        """The metrics that may leave, rounded; what may not is left out, and logged without its value.

        Args:
            values: name → value over `cases` cases.
            cases: that every value is a mean over.
        """
        rules = self.metrics
        out = {}
        for name, value in values.items():
            if not self.lets(name):
                log.info("site policy: metric '%s' stays here (metrics.allowed).", name)
            elif cases < rules.min_cases:
                log.info("site policy: metric '%s' stays here: too few cases (metrics.min_cases = %d).", name, rules.min_cases)
            elif math.isfinite(value):
                out[name] = rules.rounded(value, SPANS.get(name, 0.0))
        return out

    def count_out(self, count: int) -> int | None:
        """A number of cases or patients as it may leave: rounded down to tens, or not at all."""
        return count // 10 * 10 if self.metrics.case_counts else None


def load_policy(path: Path) -> Policy:
    """The policy in a TOML file; places in it are relative to its folder.

    Raises:
        ConfigError: it cannot be read, a key is unknown or a value out of bounds.
    """
    try:
        # Strict: "no" is no truth value and true no ε. As JSON, where a list is what a tuple is written as.
        policy = Policy.model_validate_json(json.dumps(tomllib.loads(path.read_text(encoding="utf-8"))), strict=True)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:  # TypeError: a date
        raise ConfigError(f"cannot read the site policy {path}: {error}.") from None
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in error.errors())
        raise ConfigError(f"site policy {path}: {faults}.") from None
    base = path.resolve().parent
    place = {"folder": str(base / policy.ledger.folder), "witness": policy.ledger.witness and str(base / policy.ledger.witness)}
    return policy.model_copy(update={"ledger": LedgerPlace(**place)})


def open_ledger(policy: Policy) -> Ledger:
    """The ledger that the policy names.

    Raises:
        LedgerError: it is missing or damaged.
    """
    return Ledger.open(Path(policy.ledger.folder), Path(policy.ledger.witness) if policy.ledger.witness else None)


def _agreed(ledger: Ledger, run: str) -> dict[str, Any] | None:
    return next((dict(e["terms"]) for e in ledger.read().entries if e["kind"] == "agreed" and e["run"] == run), None)


def _refuse(rule: str, asked: str, bound: str) -> NoReturn:
    raise PolicyRefusal(
        f"this hospital's policy refuses what the server asks for. Rule: {rule}; asked: {asked}; bound: {bound}.",
        f"Rule: {rule}; bound: {bound}.",  # what was asked for may be a number of patients
    )
