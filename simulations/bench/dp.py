"""What privacy costs: a private training step's time and memory over those of a plain step, and Opacus's ways beside it."""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from simulations.bench.fresh import in_fresh_process, resident
from simulations.bench.interface import BENCHMARKS, Measurement, Repeats
from simulations.bench.step import build, timed
from simulations.commands import DEMO
from tmca_core.config import Config, parse
from tmca_core.networks import Network
from tmca_core.networks.attention import Places
from tmca_core.networks.encoders.convnext import Block, Stage
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, Gradients, clipped_sum, flatten, pick, trainable, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.randomness import SecureStream
from tmca_core.privacy.training import noisy_step
from tmca_core.training.batches import Batch
from tmca_core.training.loop import build_optimizer, train_step

if TYPE_CHECKING:
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

log = logging.getLogger(__name__)
PLAIN, OURS = "plain", "vmap"
OPACUS = ("opacus_hooks", "opacus_hooks_contiguous", "opacus_ghost", "opacus_ghost_contiguous")
"""As they come, and with what their hooks read brought into contiguous memory (of which the first is `privacy.engine=opacus`)."""
HALFWAY = 0.5
"""Of training: the auxiliary losses have their whole weight."""

Sums = Callable[[Network, Drawn, CaseLosses, float], Gradients]
"""The sum of clipped gradients, of one case a patient."""


@BENCHMARKS.register("dp")
def dp(
    batch: Annotated[int, typer.Option(help="Patients a step, each of one case.", min=2)] = 8,
    size: Annotated[int, typer.Option(help="Side of the image, pixels.")] = DEMO["data.image_size"],
    threads: Annotated[int, typer.Option(help="torch threads.", min=1)] = 1,
    repeats: Repeats = 7,
) -> Measurement:
    """The demo's network: a step under differential privacy over a plain one, noise included; Opacus's hooks and ghost mode beside it.

    Opacus is measured on the same network as far as it can take it (`in_layers`). Memory is the highest that three steps in a
    process of their own need above what the imports, the network and the batch took before.
    """
    config = parse(
        {
            "data.image_size": size,
            "training.batch_size": batch,
            "privacy.chunk": batch,
            "training.device": "cpu",
            "training.threads": threads,
        }
    )
    kinds = [PLAIN, OURS, *OPACUS]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        subjects = {kind: Subject(kind, config) for kind in kinds}
        rounds = []
        for number in range(repeats + 1):
            log.info("round %d of %d%s", number, repeats, "" if number else " (to warm up)")
            rounds.append({kind: timed(subject.step) for kind, subject in subjects.items()})
        rounds = rounds[1:]
        figures = {f"{kind}.seconds": statistics.median(row[kind] for row in rounds) for kind in kinds}
        for kind in kinds[1:]:
            log.info("gradients of %s", kind)
            figures |= {f"{kind}.{key}": value for key, value in subjects[kind].faults().items()}
    finally:
        torch.set_num_threads(before)
    for kind in kinds:
        log.info("peak memory of %s", kind)
        # Twice: pages that the kernel takes back meanwhile, on a busy machine, are missing from a peak.
        figures[f"{kind}.peak_mb"] = max(in_fresh_process(peak, config.flat(), kind) for _ in range(2))
    ratios = {}
    for kind in kinds[1:]:
        prefix = "" if kind == OURS else f"{kind}_"
        ratios[f"{prefix}time"] = statistics.median(row[kind] / row[PLAIN] for row in rounds)
        ratios[f"{prefix}memory"] = figures[f"{kind}.peak_mb"] / figures[f"{PLAIN}.peak_mb"]
    return Measurement(ratios, figures, repeats, _table(kinds, figures, ratios))


class Subject:
    """A network, a batch and one kind of training step."""

    def __init__(self, kind: str, config: Config) -> None:
        self.config = config
        _, self.network, batch = build(config.network.name, config)
        if kind in OPACUS:
            in_layers(self.network)
        self.network.train()
        self.network.ready(batch.images.device)
        self.drawn = Drawn(batch, torch.ones(len(batch), dtype=torch.int64))
        self.optimizer = build_optimizer(self.network, config.training)
        self.losses = training_losses(config.training, HALFWAY, coin=0)
        self.mechanism = Mechanism(noise_multiplier=1.0, clip=config.privacy.clip, sample_rate=0.1, expected=float(len(batch)), steps=1)
        self.stream = SecureStream()
        self.sums = None if kind == PLAIN else _ways(config.privacy.chunk)[kind]

    def step(self) -> None:
        """One step as in training."""
        if self.sums is None:
            train_step(self.network, self.drawn.batch, self.optimizer, self.config.training, HALFWAY)
        else:
            sums = self.sums(self.network, self.drawn, self.losses, self.mechanism.clip)
            noisy_step(self.network, sums, self.optimizer, self.mechanism, self.stream)

    def faults(self) -> dict[str, float]:
        """What a patient adds to the clipped sum against what one backward pass a case says, in units of a clip that holds for all.

        Returns:
            error: largest distance of the two over patients, 0 where gradients are right.
            influence: largest length of the former: above 1 the guarantee does not hold.
        """
        assert self.sums is not None
        oracle = partial(clipped_sum, engine=ENGINES["loop"], chunk=1)
        clip = float(oracle(self.network, self.drawn, self.losses, 1.0)[1].min())
        whole, error, influence = flatten(self.sums(self.network, self.drawn, self.losses, clip)), 0.0, 0.0
        for patient in range(len(self.drawn.counts)):
            rest = self.drawn.without(patient)
            assert rest is not None
            alone = Drawn(pick(self.drawn.batch, slice(patient, patient + 1)), self.drawn.counts[patient : patient + 1])
            mine = whole - flatten(self.sums(self.network, rest, self.losses, clip))
            theirs = flatten(oracle(self.network, alone, self.losses, clip)[0])
            error = max(error, float((mine - theirs).norm()) / clip)
            influence = max(influence, float(mine.norm()) / clip)
        return {"gradient_error": error, "largest_clipped_norm_over_clip": influence}


def peak(settings: Mapping[str, Any], kind: str) -> float:
    """MB that three steps take at most in this process, above what was there before."""
    config = parse(settings)
    torch.set_num_threads(config.training.threads)
    if kind in OPACUS:
        import tmca_core.privacy.opacus_hooks  # noqa: F401  (what imports take is not the steps' own)
    subject = Subject(kind, config)
    before = resident("VmRSS")
    for _ in range(3):
        subject.step()
    return resident("VmHWM") - before


class Scale(nn.Module):
    """A layer scale as a layer."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, C) → same."""
        return x * self.weight


class LayeredBlock(nn.Module):
    """A ConvNeXt block that calls its layers one after the other, for hooks to see."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.dwconv, self.layernorm, self.pwconv1, self.pwconv2 = block.dwconv, block.layernorm, block.pwconv1, block.pwconv2
        self.scale = Scale(block.layer_scale_parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → same."""
        y = self.layernorm(self.dwconv(x).flatten(2).transpose(1, 2))  # ghost mode takes linear layers of (B, N, C) and no others
        y = self.scale(self.pwconv2(F.gelu(self.pwconv1(y))))
        result: Tensor = x + y.transpose(1, 2).view_as(x)
        return result


def in_layers(network: Network) -> None:
    """Turn `guide` into a network that Opacus's hooks run through: blocks of layers, and frozen what no hook can take (0.3 % of it)."""
    for stage in [module for module in network.modules() if isinstance(module, Stage)]:
        stage.layers = nn.ModuleList([LayeredBlock(block) for block in stage.layers if isinstance(block, Block)])
    for module in network.modules():
        if isinstance(module, Places) or next(module.children(), None) is not None:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def _ways(chunk: int) -> dict[str, Sums]:
    """Every kind of step's sum."""
    return {
        OURS: partial(_by_engine, OURS, chunk),
        "opacus_hooks": _by_hooks,
        "opacus_hooks_contiguous": partial(_by_engine, "opacus", chunk),
        "opacus_ghost": partial(_by_ghost, contiguous=False),
        "opacus_ghost_contiguous": partial(_by_ghost, contiguous=True),
    }


def _by_engine(name: str, chunk: int, network: Network, drawn: Drawn, losses: CaseLosses, clip: float) -> Gradients:
    return clipped_sum(network, drawn, losses, clip, engine=ENGINES[name], chunk=chunk)[0]


def _by_hooks(network: Network, drawn: Drawn, losses: CaseLosses, clip: float) -> Gradients:
    return clipped_sum(network, drawn, losses, clip, engine=_as_they_come, chunk=len(drawn.batch))[0]


def _as_they_come(network: Network, batch: Batch, losses: CaseLosses) -> Gradients:
    """An engine: Opacus's hooks without a look at what they are given."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    hooks = GradSampleHooks(network, loss_reduction="sum", strict=False)
    try:
        _backward(network, losses(network, batch).sum())
        return {name: getattr(parameter, "grad_sample") for name, parameter in trainable(network).items()}  # noqa: B009  (Opacus's own)
    finally:
        _clean(hooks, network)


def _by_ghost(network: Network, drawn: Drawn, losses: CaseLosses, clip: float, *, contiguous: bool) -> Gradients:
    """Opacus's ghost clipping: norms without gradients in a first backward pass, their weighted sum in a second (Li et al. 2021)."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping

    from tmca_core.privacy.opacus_hooks import in_standard_memory

    class Contiguous(GradSampleHooksFastGradientClipping):  # type: ignore[misc]  # opacus is not typed
        def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
            return in_standard_memory(*super().rearrange_grad_samples(**given))

    kind = Contiguous if contiguous else GradSampleHooksFastGradientClipping
    hooks = kind(network, loss_reduction="sum", strict=False, max_grad_norm=clip)
    try:
        values = losses(network, drawn.batch)
        _backward(network, values.sum(), retain_graph=True)
        weights = hooks.get_clipping_coef()
        hooks.disable_hooks()
        return _backward(network, (weights * values).sum())
    finally:
        _clean(hooks, network)


def _backward(network: Network, value: Tensor, retain_graph: bool = False) -> Gradients:
    parameters = trainable(network)
    with warnings.catch_warnings():
        # Said of the first layer, whose input is an image and needs no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed with respect to module outputs")
        return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values()), retain_graph=retain_graph), strict=True))


def _clean(hooks: GradSampleHooks, network: Network) -> None:
    hooks.cleanup()
    for module in network.modules():
        module.__dict__.pop("activations", None)


def _table(kinds: list[str], figures: Mapping[str, float], ratios: Mapping[str, float]) -> str:
    heads = ("s a step", "× plain", "peak MB", "× plain", "gradient error", "largest norm / C")
    lines = [f"{'':<26}" + "".join(f"{head:>18}" for head in heads)]
    for kind in kinds:
        prefix = "" if kind == OURS else f"{kind}_"
        cells = [figures[f"{kind}.seconds"], ratios.get(f"{prefix}time"), figures[f"{kind}.peak_mb"], ratios.get(f"{prefix}memory")]
        cells += [figures.get(f"{kind}.{key}") for key in ("gradient_error", "largest_clipped_norm_over_clip")]
        lines.append(f"{kind:<26}" + "".join(f"{'–':>18}" if cell is None else f"{cell:>18.3g}" for cell in cells))
    return "\n".join(lines)
