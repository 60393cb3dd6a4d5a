"""`fedper`: every site keeps its own head, decoder, text part or norms, trained together with what is shared."""

from __future__ import annotations

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.personal import chosen_part

# Arivazhagan et al. 2019; `federation.personal` says which part.
ALGORITHMS.register("fedper")(Algorithm(FedAvg, ONE_SUM, personal=chosen_part))
