"""Before private training: is the bound on one patient's influence true of this network, on this machine, with these cases?"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

from tmca_core.cases.case import CaseTensors
from tmca_core.config import Config
from tmca_core.errors import PrivacyError
from tmca_core.losses import LOSSES
from tmca_core.networks.interface import Network
from tmca_core.privacy.gradients import ENGINES, CaseLosses, Drawn, Engine, by_loop, clipped_sum, flatten, in_their_batch, training_losses
from tmca_core.privacy.mechanism import Mechanism
from tmca_core.privacy.randomness import SecureStream
from tmca_core.privacy.training import draw, patients_of, refuse_uncovered
from tmca_core.text.features import TextPipeline

GRADIENT_TOLERANCE = 1e-3
"""Largest relative difference between an engine's gradient of a case and the oracle's (float32; another order of summation gives 1e-5)."""
SLACK = 1e-4
PATIENTS, CASES = 3, 2
"""How many patients, and cases of each, the self-test looks at: enough to couple, few enough to take a second."""


COINS = (1042, 989)
"""Seeds of what the network draws, of which torch's generator gives 0.0002 and 0.998 first: both sides of a coin of nearly any odds, so
that a loss which is computed in some steps only is tested too."""


@dataclass(frozen=True)
class Findings:
    """What the self-test measured.

    Attributes:
        gradient_error: largest ‖g − g'‖ / ‖g'‖ over cases, g' of one backward pass a case.
        coupling: the same with g' of the case's loss as computed in its batch.
        influence: largest ‖S − S without the patient‖ / C over patients.
    """

    gradient_error: float
    coupling: float
    influence: float


def measure(network: Network, drawn: Drawn, losses: CaseLosses, clip: float, *, engine: Engine, chunk: int) -> Findings:
    """Gradients against two oracles, and every patient removed once, on real cases."""
    batch = drawn.batch
    mine, alone, together = (_rows(way(network, batch, losses)) for way in (engine, by_loop, in_their_batch))
    whole = flatten(clipped_sum(network, drawn, losses, clip, engine=engine, chunk=chunk)[0])
    influence = 0.0
    for patient in range(len(drawn.counts)):
        rest = drawn.without(patient)
        others = flatten(clipped_sum(network, rest, losses, clip, engine=engine, chunk=chunk)[0]) if rest else torch.zeros_like(whole)
        influence = max(influence, float((whole - others).norm()) / clip)
    return Findings(_difference(mine, alone), _difference(mine, together), influence)


def insist(network: Network, drawn: Drawn, losses: CaseLosses, clip: float, *, engine: Engine, chunk: int) -> Findings:
    """`measure`, and refuse to train where the guarantee would not hold.

    Raises:
        PrivacyError: naming what differs and by how much.
    """
    found = measure(network, drawn, losses, clip, engine=engine, chunk=chunk)
    if not found.gradient_error <= GRADIENT_TOLERANCE:
        raise PrivacyError(
            f"the gradients of single cases are wrong by {found.gradient_error:.2g} against one backward pass a case: clipping them would "
            "bound nothing. Set privacy.engine=loop, or leave out the part of the network that was changed last."
        )
    if not found.coupling <= GRADIENT_TOLERANCE:
        raise PrivacyError(
            f"a case's loss changes with the other cases of its batch (its gradient by {found.coupling:.2g}): such a loss cannot be made "
            "private by clipping. Use losses that look at one case at a time (tmca.alignment=bank)."
        )
    if not found.influence <= 1 + SLACK:
        raise PrivacyError(f"removing one patient moves the clipped sum by {found.influence:.4f} clips, and 1 is the bound: not training.")
    return found


def check_site(
    network: Network, data: CaseTensors, pipeline: TextPipeline, config: Config, mechanism: Mechanism, device: torch.device
) -> Findings:
    """`insist` on the first few of a site's own patients, with the weights that the round will start from; nothing of it leaves.

    Raises:
        PrivacyError: the guarantee would not hold.
    """
    refuse_uncovered(network, config)
    network.to(device).train()
    network.ready(device)
    chosen = [rows[:CASES] for rows in patients_of(data)[:PATIENTS]]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        drawn = draw(data, chosen, pipeline, config.with_values({"privacy.views": 1}), device, SecureStream())
        found = []
        for coin in COINS:
            losses = training_losses(config.training, 1.0, coin)
            _refuse_declared(network, drawn, config, coin)
            found.append(insist(network, drawn, losses, mechanism.clip, engine=ENGINES[config.privacy.engine], chunk=config.privacy.chunk))
    return Findings(*(max(values) for values in zip(*map(astuple, found), strict=True)))


@torch.no_grad()
def _refuse_declared(network: Network, drawn: Drawn, config: Config, coin: int) -> None:
    """Refuse a loss that itself says that it couples cases, whatever the measurement finds.

    Raises:
        PrivacyError: naming the loss.
    """
    torch.default_generator.manual_seed(coin)
    batch, name = drawn.batch, config.training.loss
    said = {f"training.loss={name}": LOSSES[name]().decomposable}
    said |= {kind: loss.decomposable for kind, loss in network.auxiliary(network(batch.images, batch.text), batch.masks).items()}
    if coupled := [kind for kind, decomposable in said.items() if not decomposable]:
        raise PrivacyError(
            f"the loss '{coupled[0]}' declares that a case's value depends on the other cases of its batch, so clipping bounds nothing. "
            "Use losses that look at one case at a time (tmca.alignment=bank)."
        )


def _rows(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, numbers) float64."""
    return torch.cat([gradient.detach().reshape(len(gradient), -1).double() for gradient in gradients.values()], 1)


def _difference(these: torch.Tensor, those: torch.Tensor) -> float:
    """Largest relative difference of rows; a row of zeros is compared with the largest."""
    scale = those.norm(dim=1).clamp_min(1e-6 * float(those.norm(dim=1).max()) + 1e-12)
    return float(((these - those).norm(dim=1) / scale).max())
