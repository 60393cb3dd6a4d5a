"""Every setting by section, with bounds, units and meaning; `tmca_core.config` makes one schema of them.

Values are scalars only (Flower's run-config carries no lists); "" and 0 mean "not set" where the field says so.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataSettings(Section):
    """Which cases, how they are read, and how patients are split."""

    manifest: str = Field("", description="Path of the manifest (CSV or Parquet); empty: the phantom is generated.")
    image_size: int = Field(128, ge=32, le=1024, multiple_of=32, description="Side of the square network input, pixels.")
    channels: Literal[1, 3] = Field(1, description="1: grey, 3: colour.")
    laterality: Literal["auto", "patient", "image"] = Field(
        "auto", description="Side convention of reports where the manifest states none; auto: measured against the masks."
    )
    trust_laterality: bool = Field(False, description="Go on although the measured side convention differs from the declared one.")
    targets: str = Field(
        "", description="Names of several targets, comma-separated, each with a column 'mask:NAME'; empty: one, column 'mask'."
    )
    missing_reports: Literal["skip", "use"] = Field(
        "skip", description="A row without a report is skipped, or used with the learned no-report token."
    )
    on_bad_case: Literal["skip", "fail"] = Field("skip", description="What a bad row does; skips are counted and listed.")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="Share of a site's patients for validation, where no split column says.")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="Share of a site's patients held out for the final test.")
    split: Literal["auto", "counted", "independent"] = Field(
        "auto",
        description="counted: patients are dealt out so that the shares are met; independent: each by a hash of its own id, whoever else "
        "is there, as privacy needs; auto: independent where privacy.enabled, else counted.",
    )
    cache_dir: str = Field("", description="Folder of the decoded-tensor and token-feature caches; empty: the user's cache folder.")

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the mask channels, in order; one unnamed target is "lesion"."""
        return tuple(name.strip() for name in self.targets.split(",")) if self.targets else ("lesion",)

    @model_validator(mode="after")
    def _targets_are_names(self) -> DataSettings:
        names = self.target_names
        if not all(name and name.replace("-", "").replace("_", "").isalnum() for name in names) or len(set(names)) != len(names):
            raise ValueError(f"data.targets takes different names of letters, digits, - and _, separated by commas; got '{self.targets}'")
        return self


class PhantomSettings(Section):
    """The generated chest films used where no manifest is given."""

    sites: int = Field(4, ge=1, le=10_000, description="Number of phantom hospitals.")
    cases: int = Field(100, ge=4, description="Cases per hospital.")
    shift: float = Field(1.0, ge=0, le=2, description="Strength of the differences between sites (0: none).")
    seed: int = Field(0, ge=0, description="Seed of the generator.")


class PartitionSettings(Section):
    """How one pool of cases becomes the sites of a simulation."""

    by: Literal["site", "iid", "dirichlet-zones", "dirichlet-size", "quantity"] = Field(
        "site", description="site: the manifest's column; the others deal patients out anew."
    )
    sites: int = Field(4, ge=1, le=10_000, description="Number of sites where `by` is not `site`.")
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration; smaller is more uneven.")


class NetworkSettings(Section):
    """Which network, which encoders, how wide."""

    name: str = Field("guide", description="guide, tmca, ssa, tmca-ssa or unet.")
    image_encoder: str = Field("convnext-mini", description="convnext-mini, convnext-tiny or efficientnet-lite0.")
    text_encoder: str = Field("wordpiece", description="wordpiece, minilm, a folder, or a Hugging Face id.")
    image_weights: str = Field("", description="'package' for the pretrained extra, or a safetensors file; empty: from scratch.")
    freeze_image_encoder: bool = Field(False, description="Keep the image encoder's weights as loaded; they never leave.")
    start: str = Field("", description="Weights that training starts from: folder or safetensors file of an earlier run of this network.")
    trainable: Literal["all", "decoder", "norms", "head", "lora"] = Field(
        "all", description="What trains and travels; the rest is frozen. lora: low-rank adapters on linear layers and 1×1 convolutions."
    )
    adapter_rank: int = Field(4, ge=1, le=256, description="Rank of the adapters of trainable=lora.")
    allow_download: bool = Field(False, description="A Hugging Face id may be fetched from its hub.")
    width: int = Field(64, ge=16, le=1024, multiple_of=8, description="Channels of the decoder at its coarsest level.")
    unet_channels: str = Field("", description="Channels of unet's levels, comma-separated, e.g. 8,16,32; empty: five levels by width.")
    heads: int = Field(4, ge=1, le=16, description="Attention heads.")
    phrases: str = Field(
        "locational,descriptive,diagnostic", description="Kinds of phrase that are read; the others are taken out of reports."
    )
    max_tokens: int = Field(0, ge=0, le=512, description="Longest report in tokens; 0: the text encoder's own limit.")

    @property
    def phrase_kinds(self) -> frozenset[str]:
        """The kinds of phrase that are read."""
        return frozenset(kind.strip() for kind in self.phrases.split(",") if kind.strip())

    @property
    def unet_levels(self) -> tuple[int, ...]:
        """Channels of unet's levels, finest first."""
        base = self.width // 4
        given = tuple(int(part) for part in self.unet_channels.split(",") if self.unet_channels)
        return given or (base, 2 * base, 4 * base, 4 * base, 8 * base)

    @model_validator(mode="after")
    def _levels_are_widths(self) -> NetworkSettings:
        parts = self.unet_channels.split(",") if self.unet_channels else ["1", "1"]
        if not 2 <= len(parts) <= 6 or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise ValueError(f"network.unet_channels takes two to six numbers above 0, e.g. 8,16,32; got '{self.unet_channels}'")
        return self

    @model_validator(mode="after")
    def _phrases_are_known(self) -> NetworkSettings:
        if unknown := self.phrase_kinds - {"locational", "descriptive", "diagnostic"}:
            raise ValueError(f"network.phrases knows locational, descriptive and diagnostic; got '{', '.join(sorted(unknown))}'")
        return self

    @model_validator(mode="after")
    def _frozen_weights_come_from_somewhere(self) -> NetworkSettings:
        if self.trainable != "all" and not self.start and not (self.trainable == "decoder" and self.image_weights):
            raise ValueError(f"network.trainable={self.trainable} freezes random weights: set network.start to an earlier run")
        return self

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> NetworkSettings:
        if self.width // 2 % self.heads:
            raise ValueError(f"network.width / 2 = {self.width // 2} channels cannot be dealt to network.heads = {self.heads}")
        return self


class TmcaSettings(Section):
    """Modules of `tmca` and `tmca-ssa`: target-sensitive distance, multi-level contrast, language-guided enhancement."""

    alignment: Literal["bank", "batch", "off"] = Field(
        "bank", description="Negatives of the contrast: a public bank of reports and the own background, or the batch (not under privacy)."
    )
    positives: Literal["soft", "hard"] = Field("soft", description="soft: reports that name the same zones or are equal are positives too.")
    share: float = Field(0.25, gt=0, le=1, description="Share of the training steps that take the contrast, drawn at random.")
    contrasted: Literal["unparsed", "all"] = Field(
        "unparsed", description="Reports that tmca-ssa contrasts: those that the parser does not place, or all as tmca does."
    )
    distance: bool = Field(True, description="Margin: the report's words must find their like in the target, not in the background.")
    enhancement: bool = Field(True, description="Enhancement of decoder maps where the aligned report points.")
    align_width: int = Field(64, ge=8, le=1024, description="Channels of the aligned space.")
    temperature: float = Field(0.1, gt=0, description="Of the contrast and of the words' attention.")
    weight: float = Field(0.3, ge=0, description="Weight of alignment and enhancement in the loss, after the warm-up.")


class SsaSettings(Section):
    """Modules of `ssa` and `tmca-ssa`: symmetric optimal transport, composite directional guidance."""

    transport: Literal["both", "fine", "coarse", "off"] = Field(
        "both", description="Words to patches (fine), phrases to regions (coarse), or both."
    )
    prior: Literal["learned", "fixed", "mirrored", "random", "thirds", "off"] = Field(
        "learned", description="Zone prior: Gaussians that may learn their place, or stay; the others are controls for ablations."
    )
    tokens: bool = Field(True, description="A learned token for every zone that is named, beside the report's.")
    bias: bool = Field(True, description="The prior biases attention where positions are keys.")
    gate: bool = Field(True, description="The prior gates decoder maps.")
    penalty: float = Field(0.1, ge=0, description="Weight of probability outside of the prior in the loss.")
    weight: float = Field(0.1, ge=0, description="Weight of the transport loss, after the warm-up.")


class TrainingSettings(Section):
    """Local training. One round is `epochs` passes, or exactly `steps` optimiser steps where that is above 0."""

    epochs: int = Field(2, ge=1, description="Passes over the training cases a round.")
    steps: int = Field(0, ge=0, description="Optimiser steps a round; 0: `epochs` decides.")
    batch_size: int = Field(4, ge=1, description="Cases a step.")
    loss: str = Field("dice-ce", description="dice-ce.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: without momentum.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of the optimiser.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay, matrices only.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Over all rounds, after the warm-up.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of all steps with a linearly rising rate.")
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay a step of the averaged weights that are evaluated; 0: off.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on CUDA, fp32 elsewhere.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(1, ge=0, description="torch threads a client; 0: as the machine has.")


class AugmentationSettings(Section):
    """Random changes to a training case; all are laterality-safe. The defaults suit chest films."""

    flip: float = Field(0.5, ge=0, le=1, description="Probability of a left-right flip; the report's sides are swapped with it.")
    rotate: float = Field(10.0, ge=0, le=45, description="Largest rotation, degrees.")
    scale: float = Field(0.1, ge=0, lt=1, description="Largest relative zoom.")
    shift: float = Field(0.05, ge=0, lt=0.5, description="Largest shift, share of the image side.")
    gain: float = Field(0.2, ge=0, lt=1, description="Largest relative change of contrast and brightness.")
    no_report: float = Field(0.0, ge=0, lt=1, description="Probability that a case is shown without its report.")
    noise: float = Field(0.02, ge=0, lt=1, description="Standard deviation of added noise, share of the intensity range.")


class EvaluationSettings(Section):
    """What is measured, and when."""

    every: int = Field(1, ge=1, description="Rounds between validations.")
    batch_size: int = Field(16, ge=1, description="Cases a forward pass.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability above which a pixel is lesion.")
    bootstrap: int = Field(1000, ge=0, description="Resamplings of patients for the 95 % intervals; 0: none.")
    bootstrap_rounds: int = Field(200, ge=0, description="The same for every validation of a federation; 0: none.")
    examples: int = Field(6, ge=0, le=24, description="Cases drawn in the report.")
    published: Literal["", "qata-cov19", "mosmed-plus", "kvasir-seg", "cvc-clinicdb"] = Field(
        "", description="Data set whose published figures the report puts beside the run's; empty: none."
    )


class FederationSettings(Section):
    """The round loop."""

    algorithm: str = Field("fedavg", description="How updates become a model, and what of it stays at a site: docs/algorithms.md.")
    check: Literal["false", "true", "only"] = Field(
        "false", description="Ask the sites for figures of their data before the first round (docs/data-in-out.md); only: and stop there."
    )
    rounds: int = Field(15, ge=1, description="Rounds; the centralised baselines get the same number of passes.")
    cohort: int = Field(0, ge=0, description="Sites sampled a round; 0: all.")
    min_sites: int = Field(1, ge=1, description="Fewest good replies for a round to count.")
    weighting: Literal["cases", "patients", "uniform"] = Field("cases", description="Weight of a site in the mean.")
    keep_optimizer: bool = Field(True, description="A site keeps its optimiser state between rounds, on its own disk.")
    deadline: float = Field(0.0, ge=0, description="Seconds a round may take before the missing sites lose their turn; 0: none.")
    wait: float = Field(600.0, ge=0, description="Seconds to wait, before any round, for `min_sites` to be there.")
    poll: float = Field(0.2, gt=0, le=10, description="Seconds between looks for replies.")
    server_learning_rate: float = Field(0.0, ge=0, description="Step along the aggregated update; 0: the algorithm's own.")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="Of fedavgm; first moment of fedadam, fedyogi and fedadagrad.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the second moment of fedadam and fedyogi.")
    tau: float = Field(1e-3, gt=0, description="Adaptivity of fedadam, fedyogi and fedadagrad: added to the root of the second moment.")
    prox_mu: float = Field(0.01, ge=0, description="Of fedprox: strength of the pull to the round's start.")
    ditto_lambda: float = Field(0.1, ge=0, description="Of ditto: strength of the pull of a site's own model to the shared one.")
    personal: Literal["norms", "decoder", "text", "head"] = Field("head", description="Part that stays at the site in fedper and fedrep.")
    personal_share: float = Field(0.5, gt=0, lt=1, description="Of fedrep: share of a round's steps that train the personal part, first.")
    norm_bound: float = Field(10.0, gt=0, description="Of norm-bound: largest L2 norm of an update over all shared tensors.")
    trim: float = Field(0.2, ge=0, lt=0.5, description="Of trimmed-mean: share of the updates cut off at each end of every coordinate.")
    byzantine: int = Field(1, ge=0, description="Of krum and multi-krum: hostile sites that a round may hold.")
    spill: bool = Field(False, description="Robust algorithms keep a round's replies in a temporary file (TMPDIR), not in memory.")
    oversample: float = Field(0.0, ge=0, le=10, description="Share of sites asked beyond `cohort`; the first good replies count.")
    compression: str = Field("none", description="Of updates on their way up: none, bf16, int8, int4 or topk, with error feedback.")
    compression_share: float = Field(0.01, gt=0, le=1, description="Share of every tensor's values that topk sends.")
    keep_replies: Literal["auto", "on", "off"] = Field(
        "auto", description="Good replies are written to disk until their round is; auto: in a deployment, where asking again is dear."
    )
    max_norm_ratio: float = Field(
        30.0, ge=0, description="Largest norm of an update, in medians of the last accepted, per square root of local steps; 0: any."
    )
    patience: int = Field(0, ge=0, description="Rounds without a gain in mean validation Dice after which training stops; 0: never.")
    min_gain: float = Field(0.0, ge=0, lt=1, description="Dice by which a round must beat the best to count as a gain.")
    select: Literal["last", "best"] = Field("last", description="The round whose model is tested, by mean validation Dice for `best`.")
    contribution_every: int = Field(0, ge=0, description="Rounds between leave-one-out contributions of sites; 0: none.")
    secure: bool = Field(False, description="Secure aggregation: the server sees the sum of the updates, no single one (docs/secure.md).")
    secure_threshold: float = Field(2 / 3, ge=0.5, lt=1, description="Of secure: more than this share of sites must help to open a sum.")
    secure_range: float = Field(8.0, gt=0, description="Of secure: largest change of a number that a site may send.")
    secure_bits: Literal[16, 32] = Field(32, description="Of secure: bits a number takes on its way; 16 rounds more, with error feedback.")

    @field_validator("check", mode="before")
    @classmethod
    def _check_may_be_a_bool(cls, value: object) -> object:
        return str(value).lower() if isinstance(value, bool) else value


class PrivacySettings(Section):
    """Differential privacy of every patient, by noise that each hospital adds; a hospital's own policy may refuse these."""

    enabled: bool = Field(False, description="Updates leave a site only clipped and noised.")
    noise_multiplier: float = Field(0.0, ge=0, le=1e6, description="σ, noise over clip; 0: least that keeps target_epsilon.")
    clip: float = Field(1.0, ge=1e-9, le=1e9, description="C, largest norm of a patient's gradient.")  # float32 holds noise and sums
    sample_rate: float = Field(
        0.0, ge=0, le=1, description="Probability of a patient's taking part in a step; 0: training.batch_size over the site's patients."
    )
    target_epsilon: float = Field(0.0, ge=0, description="Largest ε of the run, add/remove; 0: as the noise gives.")
    delta: float = Field(1e-5, ge=1e-12, lt=1, description="δ that goes with ε; below one over the number of patients.")  # 1e-15: no ε

    engine: Literal["vmap", "loop", "opacus"] = Field(
        "vmap", description="How gradients of single cases are computed: all at once, one by one, or by Opacus's hooks (some networks)."
    )
    chunk: int = Field(8, ge=1, description="Cases whose gradients are held at once; memory grows with it, results do not change.")
    views: int = Field(1, ge=1, le=64, description="Augmented views of every drawn case, averaged in its patient's gradient.")

    @model_validator(mode="after")
    def _noise_is_said(self) -> PrivacySettings:
        if self.enabled and not (self.noise_multiplier or self.target_epsilon):
            raise ValueError("privacy.enabled needs privacy.noise_multiplier or privacy.target_epsilon above 0: no noise, no finite ε")
        return self


class CentralSettings(Section):
    """Differential privacy of whole hospitals, by noise that the server adds to the sum of clipped updates; few hospitals: a huge ε."""

    enabled: bool = Field(False, description="The server clips every update and adds noise to their sum.")
    noise_multiplier: float = Field(1.0, ge=0.05, le=1e6, description="σ, noise on the sum over clip.")
    clip: float = Field(1.0, ge=1e-9, le=1e9, description="C, largest norm of an update; where adaptive, in the first round.")
    delta: float = Field(1e-3, ge=1e-12, lt=1, description="δ that goes with ε; below one over the number of hospitals.")
    max_epsilon: float = Field(0.0, ge=0, description="Largest ε of a hospital; a run beyond it is refused; 0: any.")
    adaptive: bool = Field(False, description="The bound follows a quantile of the updates' norms (Andrew et al. 2021).")
    quantile: float = Field(0.5, gt=0, lt=1, description="Of adaptive: share of updates that are to stay unclipped.")
    clip_rate: float = Field(0.2, gt=0, le=2, description="Of adaptive: how fast the bound moves.")
    count_noise: float = Field(5.0, gt=0, description="Of adaptive: noise on the number of unclipped updates, above half the σ.")


class SimulationSettings(Section):
    """Engine and baselines of a simulated federation."""

    engine: Literal["inprocess", "ray"] = Field("inprocess", description="One process, or Flower's Ray runtime.")
    baselines: bool = Field(True, description="Also train pooled and local-only, for comparison.")
    workers: int = Field(2, ge=1, description="Processes: 1 runs baselines after the federation, more run them beside it.")
    out: str = Field("", description="The run's folder; empty: runs/<time>.")
    policies: str = Field("", description="Folder with a policy a site, SITE.toml, as hospitals have them; empty: there are none.")
    resident_sites: int = Field(200, ge=1, description="Phantom sites whose data stay in memory; the others are generated anew for a turn.")


class ScenarioSettings(Section):
    """What goes wrong in a simulation, done from outside of server and sites; a deployment knows nothing of it."""

    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a site does not answer in a round.")
    stragglers: float = Field(0.0, ge=0, le=1, description="Share of the sites that are slow.")
    slowness: float = Field(1.0, ge=1, description="Factor on a straggler's training time.")
    delay: float = Field(0.0, ge=0, description="Seconds that a straggler's reply is late besides.")
    poison: Literal[
        "", "nan", "inf", "huge", "sign-flip", "model-replacement", "label-flip", "swap-reports", "replay", "wrong-shape", "wrong-dtype",
        "missing-tensor", "extra-tensor", "duplicate", "raise",
    ] = Field("", description="What poisoned sites do (docs/simulations.md); empty: there are none.")  # fmt: skip
    poison_scale: float = Field(1.0, gt=0, description="Of sign-flip: factor on the turned update.")
    poison_share: float = Field(0.2, ge=0, lt=1, description="Share of the sites that are poisoned, drawn by the seed; rounded up.")
    poison_sites: str = Field("", description="Names of the poisoned sites, comma-separated, in the place of a share.")
    poison_round: int = Field(1, ge=1, description="First round in which updates are spoilt; data are poisoned from the start.")

    @property
    def poison_names(self) -> tuple[str, ...]:
        """The sites that are poisoned by name."""
        return tuple(name.strip() for name in self.poison_sites.split(",") if name.strip())
