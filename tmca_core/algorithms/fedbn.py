"""`fedbn`: every site keeps its own normalisation layers, for they carry what is peculiar to its images."""

from __future__ import annotations

from tmca_core.algorithms.fedavg import ONE_SUM, FedAvg
from tmca_core.algorithms.interface import ALGORITHMS, Algorithm
from tmca_core.algorithms.personal import norms

# Li et al. 2021 do so with batch norm. These networks have none, since a batch's statistics mix patients: what stays at a site
# are the scales and shifts of group and layer norms ("FedNorm").
ALGORITHMS.register("fedbn")(Algorithm(FedAvg, ONE_SUM, personal=norms))
