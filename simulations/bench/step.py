"""What a training step and a prediction cost: seconds an image, peak memory, bytes that travel, and where the time goes."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from simulations.bench.fresh import resident
from simulations.bench.interface import BENCHMARKS, Measurement, Repeats
from simulations.bench.reference import TOKENS, Reference, write_bert
from tmca_core.config import Config, parse
from tmca_core.errors import ConfigError
from tmca_core.networks import NETWORKS, Network, Output, build_network, shared_state
from tmca_core.networks.tmca import Tmca
from tmca_core.text.encoders import TextEncoder, build_text_encoder
from tmca_core.training.batches import Batch
from tmca_core.training.centralised import build_pipeline
from tmca_core.training.loop import build_optimizer, case_losses, train_step

REFERENCE = "reference"
PARTS = ("image_encoder_", "text_", "losses_", "optimiser_")
"""Of a training step; `decoder` is what they leave of it."""
WORK = ("", "optimiser_", "losses_", "forward_", "uncached_", "image_encoder_", "text_")
"""In this order: the optimiser needs the gradients of a whole step."""
DRAWN = ("", "losses_", "uncached_")
"""Of `WORK`, what some steps do with the contrast and others without."""
log = logging.getLogger(__name__)
# Each longer than TOKENS, to which they are cut.
REPORTS = (
    "Bilateral pulmonary infection, two infected areas, upper left lung and lower right lung, with patchy consolidation and effusion.",
    "Unilateral pulmonary infection, one infected area, all of the left lung, with dense consolidation, volume loss and a small effusion.",
    "Patchy ground glass opacity in the right upper and middle zones, suggestive of viral pneumonia, without any effusion or pneumothorax.",
    "Two opacities, in the left lower zone and the right lower zone, in keeping with infection; the heart is of normal size and shape.",
)


@BENCHMARKS.register("step")
def step(
    networks: Annotated[str, typer.Option(help="Names, comma-separated; empty: all.")] = "",
    encoder: Annotated[str, typer.Option(help="Image encoder.")] = "convnext-tiny",
    text_encoder: Annotated[str, typer.Option(help="Text encoder; empty: BERT-base's shape, random weights, frozen.")] = "",
    size: Annotated[int, typer.Option(help="Side of the image, pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Images a step.", min=1)] = 4,
    threads: Annotated[int, typer.Option(help="torch threads.", min=1)] = 2,
    repeats: Repeats = 5,
) -> Measurement:
    """Each network's training step and prediction, interleaved with the ancestors' published architecture; memory by itself."""
    names = [name.strip() for name in networks.split(",") if name.strip()] or NETWORKS.names()
    for name in names:
        NETWORKS[name]
    with tempfile.TemporaryDirectory() as folder:
        config = parse(
            {
                "network.image_encoder": encoder,
                "network.text_encoder": text_encoder or str(write_bert(Path(folder) / "bert")),
                "network.max_tokens": TOKENS,
                "data.image_size": size,
                "data.cache_dir": f"{folder}/cache",
                "training.batch_size": batch,
                "training.device": "cpu",
                "training.threads": threads,
            }
        )
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            figures, rounds = _seconds([REFERENCE, *names], config, repeats)
        finally:
            torch.set_num_threads(before)
        for name in [REFERENCE, *names]:
            log.info("peak memory of %s", name)
            figures |= {f"{name}.{key}": value for key, value in _memory(config, name).items()}
    ratios = {}
    for name in names:
        for ratio, key in (("time", "seconds_per_image"), ("forward", "forward_seconds_per_image")):
            each = [row[f"{name}.{key}"] / row[f"{REFERENCE}.{key}"] for row in rounds]
            ratios[f"{name}.{ratio}_over_reference"] = statistics.median(each)
        ratios[f"{name}.memory_over_reference"] = figures[f"{name}.peak_rss_mb"] / figures[f"{REFERENCE}.peak_rss_mb"]
        ratios[f"{name}.shared_over_reference_state"] = figures[f"{name}.shared_bytes"] / figures[f"{REFERENCE}.state_bytes"]
    return Measurement(ratios, figures, repeats, _table([REFERENCE, *names], figures, ratios))


def _seconds(names: list[str], config: Config, repeats: int) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Medians an image of everything that is timed, with the bytes; and every round's seconds a batch."""
    subjects = {name: Subject(name, config) for name in names}
    rounds = []
    for number in range(repeats + 1):
        log.info("round %d of %d%s", number, repeats, "" if number else " (to warm up)")
        # One piece of work after the other, each for all networks: what else the machine does then falls on all of them.
        row = {}
        for what in WORK:
            for name, subject in subjects.items():
                if work := subject.work.get(what):
                    row[f"{name}.{what}seconds_per_image"] = expected_seconds(work, subject.network) if what in DRAWN else timed(work)
        rounds.append(row)
    rounds = rounds[1:]
    figures = {key: statistics.median(row[key] for row in rounds) / config.training.batch_size for key in rounds[0]}
    for name, subject in subjects.items():
        known = sum(figures.get(f"{name}.{part}seconds_per_image", 0.0) for part in PARTS)
        figures[f"{name}.decoder_seconds_per_image"] = figures[f"{name}.seconds_per_image"] - known
        figures |= {f"{name}.{key}": value for key, value in subject.bytes().items()}
    return figures, rounds


class Subject:
    """A network with a batch, and the pieces of work that are timed on it.

    Attributes:
        work: by name (`WORK`); the parts of a step are measured by themselves, forward and backward.
    """

    def __init__(self, name: str, config: Config) -> None:
        """Build it.

        Raises:
            ConfigError: an unknown network or encoder.
        """
        self.config = config.with_values({"network.name": "guide" if name == REFERENCE else name})
        self.encoder, self.network, self.batch = build(name, self.config)
        self.optimizer = build_optimizer(self.network, self.config.training)
        self.answers: dict[float, Answered] = {}
        reference = isinstance(self.network, Reference)
        self.work: dict[str, Callable[[], object]] = {
            "": self.train,
            "optimiser_": self._optimise,
            "losses_": self._losses,
            "forward_": self._predict,
        }
        if self.network.uses_text and self.encoder.frozen and not reference:
            self.work["uncached_"] = self._train_uncached
        images, text = self.batch.images, self.batch.text
        if isinstance(image := getattr(self.network, "image", None), nn.Module):
            seen = images.expand(-1, 3, -1, -1) if reference else images
            self.work["image_encoder_"] = lambda: self._backward(image(seen))
        if isinstance(reader := getattr(self.network, "text", None), nn.Module):
            self.work["text_"] = lambda: self._backward(reader(text.ids, text.mask.long() if reference else text.mask))

    def train(self) -> None:
        """One step as in training."""
        train_step(self.network.train(), self.batch, self.optimizer, self.config.training)

    def _optimise(self) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.training.clip_norm)
        self.optimizer.step()

    def _predict(self) -> None:
        self.network.eval()
        with torch.inference_mode():
            self.network(self.batch.images, self.batch.text)

    def _losses(self) -> None:
        share = self.network.tmca.share if isinstance(self.network, Tmca) else 0.0
        if share not in self.answers:
            with torch.no_grad():
                self.answers[share] = Answered(self.network.train(), self.network(self.batch.images, self.batch.text))
        case_losses(self.answers[share], self.batch, self.config.training).mean().backward()  # type: ignore[no-untyped-call]

    def _backward(self, output: Any) -> None:
        """Gradients of the sum of an encoder's maps or features, where it has weights to train."""
        found = getattr(output, "last_hidden_state", output)
        total = sum(part.sum() for part in (found if isinstance(found, list) else [found]))
        self.network.zero_grad(set_to_none=True)
        if isinstance(total, torch.Tensor) and total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]

    def _train_uncached(self) -> None:
        """One step with the batch's token features computed anew."""
        ids, mask = self.encoder.tokenize(_reports(len(self.batch)))
        with torch.no_grad():
            self.batch = replace(self.batch, text=replace(self.batch.text, features=self.encoder(ids, mask)))
        self.train()

    def bytes(self) -> dict[str, float]:
        """Bytes of what travels a round, and of the whole state."""
        shared, state = shared_state(self.network), self.network.state_dict()
        return {f"{key}_bytes": float(sum(t.nbytes for t in tensors.values())) for key, tensors in (("shared", shared), ("state", state))}


class Answered(Network):
    """Gives an answer computed before, as leaves, so that only its losses are measured."""

    def __init__(self, network: Network, output: Output) -> None:
        super().__init__(network.text_encoder)
        self.output = Output(_leaf(output.logits), *({k: _leaf(t) for k, t in d.items()} for d in (output.maps, output.hidden)))
        self._network = (network,)  # not a submodule: a loss may use its weights, but they are not this one's

    def forward(self, *_: object) -> Output:
        """The answer."""
        return self.output

    def auxiliary(self, output: Output, masks: torch.Tensor) -> Any:
        """See `Network.auxiliary`."""
        return self._network[0].auxiliary(output, masks)


def build(name: str, config: Config) -> tuple[TextEncoder, Network, Batch]:
    """The text encoder, the network and a made-up batch with real reports."""
    generator = torch.Generator().manual_seed(config.seed)
    size, count = config.data.image_size, config.training.batch_size
    images = torch.randn(count, config.data.channels, size, size, generator=generator)
    masks = torch.zeros(count, 1, size, size)
    masks[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    network: Network
    if name == REFERENCE:
        encoder = build_text_encoder(config.network)
        network = Reference(encoder)
    else:
        network = build_network(config)
        encoder = network.text_encoder
    text = build_pipeline(network, config).encode(_reports(count))
    if name == REFERENCE:
        ids, _ = encoder.tokenize(_reports(count))
        if ids.shape[1] != TOKENS:
            raise ConfigError(f"the reports give {ids.shape[1]} tokens, {TOKENS} are meant: use another --text-encoder.")
        text = replace(text, ids=ids, features=None)
    return encoder, network, Batch(images, masks, text)


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def expected_seconds(work: Callable[[], object], network: Network) -> float:
    """Seconds that `work`, a training step or a part of one, takes on average over steps.

    Steps that take the contrast are timed by themselves, and so are those without: left to the lot, a few repeats would have too many of
    either.
    """
    if not isinstance(network, Tmca) or network.tmca.alignment == "off":
        return timed(work)
    settings, total = network.tmca, 0.0
    try:
        for share, weight in ((1.0, settings.share), (0.0, 1 - settings.share)):
            network.tmca = settings.model_copy(update={"share": share})
            total += weight * timed(work)
    finally:
        network.tmca = settings
    return total


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _reports(count: int) -> list[str]:
    return [REPORTS[i % len(REPORTS)] for i in range(count)]


def _memory(config: Config, name: str) -> dict[str, float]:
    """Peak memory of three training steps in a process of their own, token features cached on disk before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, config.flat(), name).result()


def _peak(settings: Mapping[str, Any], name: str) -> dict[str, float]:
    config = parse({**settings, "tmca.share": 1.0, "tmca.contrasted": "all"})  # the steps that need the most
    torch.set_num_threads(config.training.threads)
    if name == REFERENCE:
        import transformers  # imported where the reference is built; what imports take is not its own

        transformers.ConvNextModel, transformers.BertModel  # noqa: B018  (loaded on first sight)
    imports = resident("VmRSS")
    subject = Subject(name, config)
    for _ in range(3):
        subject.train()
    peak = resident("VmHWM")
    return {"peak_rss_mb": peak, "peak_above_imports_mb": peak - imports}


def _table(names: list[str], figures: Mapping[str, float], ratios: Mapping[str, float]) -> str:
    columns = ["", "forward_", "uncached_", *PARTS, "decoder_"]
    heads = ["train s", "predict s", "uncached", "image enc.", "text", "losses", "optimiser", "decoder", "peak MB", "shared MB"]
    lines = ["seconds an image", f"{'':<11}" + "".join(f"{head:>11}" for head in heads)]
    for name in names:
        cells = [figures.get(f"{name}.{column}seconds_per_image") for column in columns]
        row = ["–" if cell is None else f"{cell:.4f}" for cell in cells]
        row += [f"{figures[f'{name}.peak_rss_mb']:.0f}", f"{figures[f'{name}.shared_bytes'] / 1e6:.1f}"]
        lines.append(f"{name:<11}" + "".join(f"{cell:>11}" for cell in row))
    lines += ["", *(f"{key}: {ratio:.3f}" for key, ratio in ratios.items())]
    return "\n".join(lines)
