"""`ditto`: beside the shared model every site trains one of its own, which is held close to the shared one and never leaves."""

from __future__ import annotations

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.fedprox import Pull
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.training.rules import LocalRule


class WithTwin(LocalRule):
    """w trained as in `fedavg`; v trained on its loss + λ/2 ‖v − w_received‖² (Li et al. 2021, algorithm 1), and evaluated."""

    def __init__(self, strength: float) -> None:
        self.twin = Pull(strength)


ALGORITHMS.register("ditto")(Algorithm(FedAvg, ONE_SUM, local=lambda config: WithTwin(config.federation.ditto_lambda)))
