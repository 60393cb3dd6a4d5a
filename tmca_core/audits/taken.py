"""One round's update of one site, and the film and words that can be taken from it.

The update comes from `fit` or `fit_privately` on the case, and through the run's compression: what a site sends, number for number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmca_core.audits.glass import WORDS, Glass
from tmca_core.audits.rehearsal import CPU, Subject, Weights
from tmca_core.cases.case import CaseTensors
from tmca_core.compression import COMPRESSIONS
from tmca_core.config import Config
from tmca_core.errors import AuditInvalid
from tmca_core.losses import LOSSES
from tmca_core.networks.interface import Network
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.training import fit_privately
from tmca_core.seeds import stream, torch_rng
from tmca_core.text.features import TextBatch, TextPipeline
from tmca_core.training.batches import prepare_images
from tmca_core.training.loop import fit

if TYPE_CHECKING:
    from tmca_core.audits.inversion import Setting

RATE = 1.0  # of the one step: so large that rounding of weights hides nothing of the gradient
WITHOUT_WORDS = "words.weight"  # of `Glass`: its gradient holds the words and nothing of the film
START = -2.0  # log-odds of the mask that the attack begins with: lesions are small
WINDOW = 7  # pixels, of the structural similarity

_WORST = {
    "training.optimizer": "sgd", "training.learning_rate": RATE, "training.weight_decay": 0.0, "training.warmup": 0.0,
    "training.schedule": "constant", "training.ema": 0.0, "training.epochs": 1, "federation.rounds": 1, "federation.algorithm": "fedavg",
    "privacy.views": 1, "privacy.engine": "vmap", "network.name": "guide", "network.phrases": "locational,descriptive,diagnostic",
    "augmentation.flip": 0.0, "augmentation.rotate": 0.0, "augmentation.scale": 0.0, "augmentation.shift": 0.0, "augmentation.gain": 0.0,
    "augmentation.noise": 0.0, "augmentation.no_report": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Victim:
    """A case that is attacked, its company, and the network that the server chose.

    Attributes:
        film: (C, S, S) standardised, as networks read it.
        guess: PSNR, dB, of the better of two guesses without an update: an even grey, and the next patient's film.
        cases: the victim first.
    """

    film: Tensor
    guess: float
    cases: CaseTensors
    config: Config
    network: Network
    start: Weights
    pipeline: TextPipeline


@dataclass(frozen=True)
class Recovered:
    """What an attack got.

    Attributes:
        film: (C, S, S) standardised.
        psnr: dB, over the range of the true film.
        ssim: structural similarity, at most 1.
        recall: share of the report's words among as many rows of the word table as the report has words, those that moved most.
        words: of the report, special ones aside; 0: it has none.
    """

    film: Tensor
    psnr: float
    ssim: float
    recall: float
    words: int


def victim_of(subject: Subject, side: int, company: int) -> Victim:
    """The first training case with a target and a report, at `side` pixels, and others of other patients.

    Raises:
        AuditInvalid: there are too few of them.
    """
    config = subject.config.with_values(_WORST | {"data.image_size": side})
    found: list[CaseTensors] = []
    people: set[tuple[str, str]] = set()
    for data in subject.sites.values():
        for i, case in enumerate(data.train.cases):
            new = (case.site, case.patient_id) not in people and len(found) < company
            if new and case.text and data.train.masks[i].any():
                people.add((case.site, case.patient_id))
                found.append(data.train.subset([i]))
    if len(found) < company:
        raise AuditInvalid(f"{len(found)} patients have a film with target and report, and {company} are needed.")
    films = F.adaptive_avg_pool2d(torch.cat([one.images for one in found]).float(), side).round().to(torch.uint8)
    masks = (F.adaptive_avg_pool2d(torch.cat([one.masks for one in found]).float(), side) >= 0.5).to(torch.uint8)
    cases = CaseTensors([one.cases[0] for one in found], films, masks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "audit", "inversion"))
        network = Glass(config)
    pipeline = TextPipeline(network.text_encoder, None)
    film, other = prepare_images(films[:2])
    guess = max(psnr(torch.zeros_like(film), film), psnr(other, film))
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return Victim(film, guess, cases, config, network, start, pipeline)


def update_of(victim: Victim, setting: Setting) -> Weights:
    """What the server receives: the change of the shared tensors after one round, compressed and unpacked again."""
    values = {"training.batch_size": setting.cases, "training.steps": setting.steps, "federation.compression": setting.compression}
    config = victim.config.with_values(values)
    mine = victim.cases.subset(range(setting.cases))
    victim.network.load_state_dict(victim.start)
    if setting.noise:
        expected = float(setting.cases)
        mechanism = Mechanism(setting.noise, config.privacy.clip, 1.0, expected, setting.steps)
        fit_privately(victim.network, mine, victim.pipeline, config, mechanism, round=1, site="audit", state=None, device=CPU)
    else:
        fit(victim.network, mine, victim.pipeline, config, round=1, site="audit", state=None, device=CPU)
    update = {name: tensor.detach() - victim.start[name] for name, tensor in victim.network.state_dict().items()}
    if setting.meaningless:
        noise = {name: torch.randn(tensor.shape) for name, tensor in update.items()}
        return {name: tensor * (update[name].norm() / tensor.norm()) for name, tensor in noise.items()}
    compression = COMPRESSIONS[config.federation.compression](config)
    payload, _ = compression.encode(update, {}, torch_rng(config.seed, "compression", "audit", 1))
    return compression.decode(payload, {name: (tuple(tensor.shape), "float32") for name, tensor in update.items()})


def recover(victim: Victim, update: Mapping[str, Tensor], setting: Setting, iterations: int) -> Recovered:
    """Films and masks whose gradient points where the update does, tensor by tensor.

    Source: Zhu, Liu and Han 2019 (arXiv 1906.08935) with the cosine of Geiping et al. 2020 (arXiv 2003.14053), by L-BFGS; the cosine
    knows no length, so neither learning rate nor clipping needs to be known. Of a batch, the film nearest to the victim's counts.
    """
    network = victim.network
    network.load_state_dict(victim.start)
    network.eval()
    text = victim.pipeline.encode([case.text for case in victim.cases.cases[: setting.cases]])
    target = {name: -tensor for name, tensor in update.items() if name != WITHOUT_WORDS and float(tensor.norm()) > 0}
    parameters = [dict(network.named_parameters())[name] for name in target]
    loss = LOSSES[victim.config.training.loss]().per_case
    rng = torch_rng(victim.config.seed, "audit", "inversion", "start")
    shape = (setting.cases, *victim.film.shape)
    films = (0.5 * torch.randn(shape, generator=rng)).requires_grad_()
    masks = torch.full((setting.cases, *victim.cases.masks.shape[1:]), START).requires_grad_()
    said = torch.zeros(setting.cases, 1, WORDS).requires_grad_()
    unknown = [films, masks] if setting.told else [films, masks, said]
    if not setting.told:
        text = TextBatch(None, said, text.mask, text.zones, text.kinds, text.certainty, text.identity)
    optimizer = torch.optim.LBFGS(
        unknown, max_iter=iterations, max_eval=iterations, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=0.0,
        tolerance_change=0.0,
    )  # fmt: skip

    def mismatch() -> Tensor:
        optimizer.zero_grad()
        value = loss(network(films, text).logits, masks.sigmoid()).mean()
        guessed = torch.autograd.grad(value, parameters, create_graph=True)
        pairs = zip(guessed, target.values(), strict=True)
        total = torch.stack([1 - F.cosine_similarity(a.flatten(), b.flatten(), 0, 1e-20) for a, b in pairs]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    optimizer.step(mismatch)  # type: ignore[no-untyped-call]
    found = max(films.detach().nan_to_num(), key=lambda film: psnr(film, victim.film))
    recall, words = _recall(victim, update)
    return Recovered(found, psnr(found, victim.film), ssim(found, victim.film), recall, words)


def psnr(film: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio, dB; the peak is the range of the true film."""
    error = (film - truth).double().square().mean().clamp_min(1e-12)
    return float(10 * torch.log10((truth.max() - truth.min()).double() ** 2 / error))


def ssim(film: Tensor, truth: Tensor) -> float:
    """Mean structural similarity over even windows of 7 × 7 pixels. Source: Wang et al. 2004, equation 13."""
    x, y = film[None].double(), truth[None].double()
    reach = float(truth.max() - truth.min())
    low, high = (0.01 * reach) ** 2, (0.03 * reach) ** 2

    def mean(value: Tensor) -> Tensor:
        return F.avg_pool2d(value, WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y, both = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + low) * (2 * both + high)
    return float((top / ((mean_x**2 + mean_y**2 + low) * (variance_x + variance_y + high))).mean())


def words_of_network(subject: Subject) -> str | None:
    """Words from the table of the configured network's own trainable text encoder, after one plain step as configured; None without."""
    encoder = subject.network.text_encoder
    if not subject.network.uses_text or encoder.frozen:
        return None
    tables = {f"{name}.weight": module for name, module in subject.network.named_modules() if isinstance(module, nn.Embedding)}
    table = max(tables, key=lambda name: tables[name].num_embeddings, default=None)
    if table is None or not tables[table].weight.requires_grad:
        return None
    site = next(iter(subject.sites.values()))
    spoken = [i for i, case in enumerate(site.train.cases) if case.text]
    if not spoken:
        return None
    one = site.train.subset(spoken[:1])
    subject.network.load_state_dict(subject.start)
    config = subject.config.with_values({"training.batch_size": 1, "training.steps": 1, "privacy.enabled": False})
    fit(subject.network, one, subject.pipeline, config, round=1, site="audit", state=None, device=CPU)
    moved = subject.network.state_dict()[table] - subject.start[table]
    words = _words(subject.pipeline, one.cases[0].text)
    found = moved.norm(dim=1).topk(len(words)).indices.tolist() if words else []
    subject.network.load_state_dict(subject.start)
    return f"{len(words & set(found))} of {len(words)}"


def _recall(victim: Victim, update: Mapping[str, Tensor]) -> tuple[float, int]:
    words = _words(victim.pipeline, victim.cases.cases[0].text)
    if not words:
        return 0.0, 0
    length = update[WITHOUT_WORDS].norm(dim=1)
    length[list(_words(victim.pipeline, "", special=True))] = 0.0  # every report has them
    return len(words & set(length.topk(len(words)).indices.tolist())) / len(words), len(words)


def _words(pipeline: TextPipeline, text: str, special: bool = False) -> set[int]:
    """Token ids of a report, without those that every report has; or these."""
    common = _ids(pipeline, "")
    return common if special else _ids(pipeline, text) - common


def _ids(pipeline: TextPipeline, text: str) -> set[int]:
    ids = pipeline.encode([text]).ids
    assert ids is not None
    return set(ids.flatten().tolist())
